// Command floor is the floor that the watchdog's memory is measured against:
// it links the same libraries, starts each of them once, and does nothing with
// them. What the watchdog takes beyond it is its own.
//
//	floor LISTEN_ADDRESS WORKLOAD_API DIRECTORY
package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"github.com/fsnotify/fsnotify"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/protobuf/encoding/protojson"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "floor:", err)
		os.Exit(1)
	}
}

// watcher takes what the Workload API sends.
type watcher struct{}

func (watcher) OnX509ContextUpdate(*workloadapi.X509Context) {}
func (watcher) OnX509ContextWatchError(error)                {}

func run() error {
	if len(os.Args) != 4 {
		return fmt.Errorf("want LISTEN_ADDRESS WORKLOAD_API DIRECTORY, got %q", os.Args[1:])
	}
	debug.SetGCPercent(50) // as the watchdog does
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()

	files, err := fsnotify.NewWatcher()
	if err != nil {
		return err
	}
	defer files.Close()
	if err := files.Add(os.Args[3]); err != nil {
		return err
	}
	if err := protojson.Unmarshal([]byte(`{"name":"default"}`), new(tlsv3.Secret)); err != nil {
		return err
	}
	go func() {
		// It ends with the context.
		_ = workloadapi.WatchX509Context(ctx, watcher{}, workloadapi.WithAddr(os.Args[2]))
	}()

	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	server := &http.Server{Addr: os.Args[1], Handler: promhttp.HandlerFor(registry, promhttp.HandlerOpts{}), ReadHeaderTimeout: 5 * time.Second}
	failed := make(chan error, 1)
	go func() { failed <- server.ListenAndServe() }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
		return server.Close()
	}
}
