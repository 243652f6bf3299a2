// Package web serves what the watchdog knows over HTTP:
//
//	/metrics        for Prometheus
//	/healthz        200 while the process lives; depends on nothing else
//	/readyz         200 after the first judgement, whatever it says: a sidecar
//	                must never take its pod's traffic away
//	/api/v1/status  the verdict as JSON
//	/               the verdict for people: a page for browsers, else text
//	/problems       the catalogue of problems, with what to do
//
// It answers GET and HEAD only, and there is no pprof. It holds no state of its
// own. TLS and basic auth come from package webconfig.
package web

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"svid-watchdog/internal/rotation"
	"svid-watchdog/internal/webconfig"
)

// Config says what to serve and where.
type Config struct {
	// ListenAddress is host:port; port 0 picks a free one.
	ListenAddress string
	// ConfigFile is a web configuration in exporter-toolkit's format, "" for
	// plain HTTP.
	ConfigFile string
	// Verdict is called for each status.
	Verdict func() rotation.Verdict
	// Ready tells whether a first judgement was made.
	Ready    func() bool
	Registry prometheus.Gatherer
	Version  string
	Log      *slog.Logger
}

// Status is the document at /api/v1/status.
type Status struct {
	Version string `json:"version"`
	rotation.Verdict
}

// Server is a listening server. It accepts connections from New on and
// answers them from Run on.
type Server struct {
	file     *webconfig.File
	listener net.Listener
	server   *http.Server
}

// Limits of a server that faces a whole pod network.
const (
	headerTimeout = 5 * time.Second
	writeTimeout  = 30 * time.Second
	idleTimeout   = 2 * time.Minute
	maxHeader     = 16 << 10
	// shutdownTimeout leaves a scrape that is under way time to end, within
	// the second that SIGTERM allows.
	shutdownTimeout = 500 * time.Millisecond
)

// New checks the web configuration and listens.
func New(cfg Config) (*Server, error) {
	file, err := webconfig.Open(cfg.ConfigFile, cfg.Log)
	if err != nil {
		return nil, err
	}
	listener, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", cfg.ListenAddress)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", cfg.ListenAddress, err)
	}
	return &Server{
		file:     file,
		listener: limit(listener, maxConnections),
		server: &http.Server{
			Handler:           Handler(cfg),
			ReadHeaderTimeout: headerTimeout,
			ReadTimeout:       headerTimeout,
			WriteTimeout:      writeTimeout,
			IdleTimeout:       idleTimeout,
			MaxHeaderBytes:    maxHeader,
			// Strangers cause these: a failed handshake is no news.
			ErrorLog: slog.NewLogLogger(cfg.Log.Handler(), slog.LevelDebug),
		},
	}, nil
}

// Address is the address that the server listens on, as host:port.
func (s *Server) Address() string { return s.listener.Addr().String() }

// Close ends a server that was never run.
func (s *Server) Close() error { return s.listener.Close() }

// Run serves until ctx ends, and then returns nil.
func (s *Server) Run(ctx context.Context) error {
	served := make(chan error, 1)
	go func() { served <- s.file.Serve(s.listener, s.server) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve on %s: %w", s.Address(), err)
	case <-ctx.Done():
	}
	deadline, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	if err := s.server.Shutdown(deadline); err != nil {
		s.server.Close()
	}
	if err := <-served; err != nil && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve on %s: %w", s.Address(), err)
	}
	return nil
}

// Handler answers the paths of the contract, and only GET and HEAD.
func Handler(cfg Config) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", scrape(cfg.Registry))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !cfg.Ready() {
			http.Error(w, "no judgement yet", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /api/v1/status", func(w http.ResponseWriter, _ *http.Request) {
		var document bytes.Buffer
		encoder := json.NewEncoder(&document)
		encoder.SetIndent("", "  ")
		if err := encoder.Encode(Status{cfg.Version, cfg.Verdict()}); err != nil {
			cfg.Log.Error("the status cannot be written as JSON", "error", err)
			http.Error(w, "the status cannot be written as JSON", http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json; charset=utf-8")
		if _, err := document.WriteTo(w); err != nil {
			cfg.Log.Debug("status not sent", "error", err)
		}
	})
	index := newPage(indexHTML, scriptJS)
	mux.Handle("GET /problems", newPage(problemsHTML(), ""))
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Vary", "Accept")
		if wantsHTML(r) {
			index.ServeHTTP(w, r)
			return
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		if err := writeText(w, cfg.Version, cfg.Verdict()); err != nil {
			cfg.Log.Debug("status not sent", "error", err)
		}
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Cache-Control", "no-store")
		if r.ContentLength != 0 {
			// No question here has a body, so none is read.
			w.Header().Set("Connection", "close")
			http.Error(w, "no request here has a body", http.StatusRequestEntityTooLarge)
			return
		}
		mux.ServeHTTP(w, r)
	})
}
