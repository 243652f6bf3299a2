package mesh

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"svid-watchdog/internal/e2e/neighbour"
)

func TestMissing(t *testing.T) {
	dir := t.TempDir()
	err := Missing(Config{Neighbours: dir, Istio: true})
	for _, part := range []string{"bin/kube-apiserver", "bin/pilot-discovery", "tools/neighbours kubernetes istio"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%v does not name %s", err, part)
		}
	}
	if err := Missing(Config{Neighbours: dir}); strings.Contains(err.Error(), "pilot-discovery") {
		t.Errorf("without Istio: %v", err)
	}
}

// TestAwaitTellsTheLastFailure: that time is up is known, why it was in vain is
// not.
func TestAwaitTellsTheLastFailure(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	calls := 0
	err := Await(ctx, "godot", func(ctx context.Context) error {
		calls++
		switch calls {
		case 1:
			return errors.New("he is late")
		case 2:
			cancel()
			return ctx.Err()
		}
		t.Error("called after the context ended")
		return nil
	})
	if err == nil || !strings.Contains(err.Error(), "godot: he is late") {
		t.Errorf("got %v", err)
	}
	if err := Await(t.Context(), "nothing", func(context.Context) error { return nil }); err != nil {
		t.Error(err)
	}
}

// TestStartSaysWhichProgramEndedAndWhy with an API server that does not start:
// the error has the end of its log, and nothing is left behind.
func TestStartSaysWhichProgramEndedAndWhy(t *testing.T) {
	neighbour.Installed(t, "etcd", "etcd-server")
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	bin := filepath.Join(dir, "neighbours", "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"kube-apiserver", "kube-controller-manager", "kubectl"} {
		if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\necho the flag is unknown >&2\nexit 3\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	plane, err := Start(t.Context(), Config{Neighbours: filepath.Join(dir, "neighbours")})
	if err == nil {
		plane.Close()
		t.Fatal("it started")
	}
	for _, part := range []string{"kube-apiserver ended at its start", "the flag is unknown"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("the error does not say %q: %v", part, err)
		}
	}
	left, err := filepath.Glob(filepath.Join(dir, "svid-mesh-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
