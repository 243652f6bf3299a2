// Command mesh starts a real control plane on loopback with the injection
// templates of deploy/istio, says how to look at it, and ends it on Ctrl-C.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"svid-watchdog/internal/mesh"
)

func main() {
	operator := flag.String("operator", "deploy/istio/istio-config.yaml", "`file` of the kind IstioOperator to install; empty for Istio as it is")
	neighbours := flag.String("neighbours", ".neighbours", "`directory` that tools/neighbours fills")
	namespace := flag.String("namespace", "demo", "injected `namespace` to make")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	cfg := mesh.Config{Neighbours: *neighbours, Istio: true, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	if *operator != "" {
		cfg.Operators = []string{*operator}
	}
	if err := run(ctx, cfg, *namespace); err != nil {
		fmt.Fprintln(os.Stderr, "mesh:", err)
		stop()
		os.Exit(1) //nolint:gocritic // what was deferred is done
	}
}

func run(ctx context.Context, cfg mesh.Config, namespace string) (err error) {
	plane, err := mesh.Start(ctx, cfg)
	if err != nil {
		if ctx.Err() != nil {
			return nil // told to end before it had begun
		}
		return err
	}
	defer func() { err = errors.Join(err, plane.Close()) }()
	if err := plane.CreateNamespace(ctx, namespace, true); err != nil {
		return err
	}
	fmt.Printf(`The control plane is up, without nodes: pods are made and injected, and stay Pending.

  export KUBECONFIG=%s
  alias kubectl=%s

  kubectl create deployment web --image=web --namespace %[3]s
  kubectl patch deployment web --namespace %[3]s --type merge --patch '{"spec":{"template":{"metadata":{"annotations":{"inject.istio.io/templates":"sidecar,teleport-sidecar"}}}}}'
  kubectl get pods --namespace %[3]s -o yaml

The logs are in %[4]s. Ctrl-C ends it and removes everything.
`, plane.Kubeconfig(), plane.KubectlPath(), namespace, plane.Dir())
	ended, which := plane.Ended()
	select {
	case <-ctx.Done():
		return nil
	case <-ended:
		return fmt.Errorf("%s ended by itself; the end of its log:\n%s", which(), plane.Log(which()))
	}
}
