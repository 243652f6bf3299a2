// Package sidecar builds the watchdog as it is shipped and runs it in tests.
package sidecar

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
	"testing"
	"time"

	"svid-watchdog/internal/e2e/neighbour"
	"svid-watchdog/internal/rotation"
)

var build struct {
	once sync.Once
	path string
	err  error
}

// Binary is the watchdog, built as it is shipped, once for all tests of a
// package.
func Binary(t testing.TB) string {
	t.Helper()
	build.once.Do(func() {
		var dir string
		if dir, build.err = os.MkdirTemp("", "svid-e2e-bin-"); build.err != nil {
			return
		}
		build.path = filepath.Join(dir, "watchdog")
		//nolint:gosec,noctx // the paths are ours
		cmd := exec.Command(filepath.Join(neighbour.Root(t), "tools", "build"), build.path)
		if out, err := cmd.CombinedOutput(); err != nil {
			build.err = fmt.Errorf("build the watchdog: %w\n%s", err, out)
		}
	})
	if build.err != nil {
		t.Fatal(build.err)
	}
	return build.path
}

// Main runs the tests of a package that uses Binary, and removes the binary.
func Main(m *testing.M) int {
	defer func() {
		if build.path != "" {
			os.RemoveAll(filepath.Dir(build.path)) //nolint:errcheck // it is temporary
		}
	}()
	return m.Run()
}

// Sidecar is a running watchdog.
type Sidecar struct {
	*neighbour.Process

	// Address is where it serves, as host:port.
	Address string

	t testing.TB
}

var listens = regexp.MustCompile(`listen_address=(\S+)`)

// Start starts a watchdog on a free port of loopback.
func Start(t testing.TB, args ...string) *Sidecar {
	t.Helper()
	return start(t, neighbour.How{}, nil, args...)
}

// StartWith is Start in a certain way.
func StartWith(t testing.TB, how neighbour.How, args ...string) *Sidecar {
	t.Helper()
	return start(t, how, nil, args...)
}

// StartUnder is Start by way of another program, which gets the command line.
func StartUnder(t testing.TB, program []string, args ...string) *Sidecar {
	t.Helper()
	return start(t, neighbour.How{}, program, args...)
}

func start(t testing.TB, how neighbour.How, program []string, args ...string) *Sidecar {
	t.Helper()
	command := slices.Concat(program, []string{Binary(t), "run", "--web.listen-address=127.0.0.1:0"}, args)
	p := neighbour.StartWith(t, how, command[0], command[1:]...)
	s := &Sidecar{Process: p, t: t}
	neighbour.Until(t, 10*time.Second, "the watchdog to listen", func() bool {
		m := listens.FindStringSubmatch(p.Out.String())
		if m != nil {
			s.Address = m[1]
		}
		return m != nil
	}, p)
	return s
}

// Get is what the watchdog answers at a path.
func (s *Sidecar) Get(path string) string {
	s.t.Helper()
	return Get(s.t, s.Address, path, s)
}

// Get is what the server at an address, of which more is known, answers at a
// path.
func Get(t testing.TB, address, path string, more fmt.Stringer) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatalf("%v\n%s", err, more)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("%s: %d %v\n%s", path, response.StatusCode, err, text)
	}
	return string(text)
}

// Verdict is the watchdog's verdict now.
func (s *Sidecar) Verdict() rotation.Verdict {
	s.t.Helper()
	var v rotation.Verdict
	if err := json.Unmarshal([]byte(s.Get("/api/v1/status")), &v); err != nil {
		s.t.Fatal(err)
	}
	return v
}

// Until waits for a verdict.
func (s *Sidecar) Until(bound time.Duration, what string, satisfied func(rotation.Verdict) bool, more ...fmt.Stringer) rotation.Verdict {
	s.t.Helper()
	var v rotation.Verdict
	neighbour.Until(s.t, bound, what, func() bool {
		v = s.Verdict()
		return satisfied(v)
	}, append(more, s)...)
	return v
}
