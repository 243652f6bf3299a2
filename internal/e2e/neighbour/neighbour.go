// Package neighbour finds and runs the real programs that stand beside the
// watchdog in tests. What is not on the machine skips a test there, and fails
// it in CI.
package neighbour

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"svid-watchdog/internal/child"
	"svid-watchdog/internal/freeport"
)

// Envoy is the path of a release of the real Envoy.
func Envoy(t testing.TB, version string) string {
	t.Helper()
	return Need(t, "envoy", version, "envoy")
}

// Need is the path of what `make neighbours` gets.
func Need(t testing.TB, elements ...string) string {
	t.Helper()
	path := filepath.Join(append([]string{Root(t), ".neighbours"}, elements...)...)
	if _, err := os.Stat(path); err != nil {
		Lacking(t, "no "+strings.Join(elements, "/")+" here: run `make neighbours`")
	}
	return path
}

// Installed is the path of a program of one of Debian's packages.
func Installed(t testing.TB, program, debianPackage string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		Lacking(t, "no "+program+" here: install Debian's package "+debianPackage)
	}
	return path
}

// Lacking skips a test that cannot run here; in CI it fails.
func Lacking(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatal(why)
	}
	t.Skip(why)
}

// Root is the directory of the repository.
func Root(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			t.Fatal("no go.mod above the working directory")
		}
		dir = parent
	}
}

// Port is a free port on loopback.
func Port(t testing.TB) int {
	t.Helper()
	port, err := freeport.Next()
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// Address is a free port on loopback, as HOST:PORT.
func Address(t testing.TB) string {
	t.Helper()
	return fmt.Sprintf("127.0.0.1:%d", Port(t))
}

// Until waits for a condition, and in vain says what is known.
func Until(t testing.TB, bound time.Duration, what string, satisfied func() bool, more ...fmt.Stringer) {
	t.Helper()
	deadline := time.NewTimer(bound)
	defer deadline.Stop()
	look := time.NewTicker(50 * time.Millisecond)
	defer look.Stop()
	for !satisfied() {
		select {
		case <-look.C:
		case <-deadline.C:
			for _, m := range more {
				t.Log(m.String())
			}
			t.Fatalf("waited %s in vain for %s", bound, what)
		}
	}
}

// Output collects what a process writes.
type Output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write implements io.Writer.
func (o *Output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

// String is what was written so far.
func (o *Output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// Process is a running program.
type Process struct {
	Cmd *exec.Cmd
	// Out is what it writes, on both streams.
	Out Output
	// Exited is closed when it has ended.
	Exited <-chan struct{}
}

// Start starts a program, which ends with the test.
func Start(t testing.TB, path string, args ...string) *Process {
	t.Helper()
	return StartWith(t, How{}, path, args...)
}

// How says how a program is started.
type How struct {
	// Attr is what the kernel is asked for, nil for nothing.
	Attr *syscall.SysProcAttr
	// Begin is called with the process, which is held before its first
	// instruction until it returns; nil for nothing.
	Begin func(pid int) error
}

// StartWith is Start in a certain way.
func StartWith(t testing.TB, how How, path string, args ...string) *Process {
	t.Helper()
	p := &Process{Cmd: exec.Command(path, args...)} //nolint:gosec,noctx // the test ends it
	p.Cmd.SysProcAttr = how.Attr
	p.Cmd.Stdout, p.Cmd.Stderr = &p.Out, &p.Out
	exited, err := child.StartHeld(p.Cmd, how.Begin)
	if err != nil {
		t.Fatal(err)
	}
	p.Exited = exited
	t.Cleanup(p.Kill)
	return p
}

// String is the program's name and the end of what it wrote.
func (p *Process) String() string {
	text := p.Out.String()
	return filepath.Base(p.Cmd.Path) + ":\n" + text[max(0, len(text)-6000):]
}

// Kill ends the program and returns when it has ended.
func (p *Process) Kill() {
	_ = p.Cmd.Process.Kill() // it may have ended
	<-p.Exited
}
