// Package netns makes network namespaces for tests, and lets a test listen and
// dial in them. A namespace that was made here ends with the process that made
// it, whichever way that ends.
package netns

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"svid-watchdog/internal/e2e/neighbour"
)

// Namespace is a network namespace, held by an open file.
type Namespace struct {
	t    testing.TB
	file *os.File
}

// New makes a namespace, in which loopback is up and nothing else is.
func New(t testing.TB) *Namespace {
	t.Helper()
	if os.Getuid() != 0 {
		neighbour.Lacking(t, "it takes root to make a network namespace")
	}
	var n *Namespace
	if err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace: %w", err)
		}
		var err error
		n, err = open(t, fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	n.IP("link", "set", "lo", "up")
	return n
}

// Of is the namespace of a process.
func Of(t testing.TB, pid string) *Namespace {
	t.Helper()
	n, err := open(t, "/proc/"+pid+"/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func open(t testing.TB, path string) (*Namespace, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("hold the network namespace: %w", err)
	}
	t.Cleanup(func() { file.Close() })
	return &Namespace{t, file}, nil
}

// onThread runs a function on a thread that ends with it.
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends
		done <- f()
	}()
	return <-done
}

// Path names the namespace for programs, as long as this process lives.
func (n *Namespace) Path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.file.Fd()) }

// Command is a command line that runs a command in the namespace.
func (n *Namespace) Command(command ...string) []string {
	return append([]string{"nsenter", "--net=" + n.Path(), "--"}, command...)
}

// IP runs the program ip in the namespace.
func (n *Namespace) IP(args ...string) {
	n.t.Helper()
	neighbour.Installed(n.t, "ip", "iproute2")
	command := n.Command(append([]string{"ip"}, args...)...)
	//nolint:gosec // our own
	if out, err := exec.CommandContext(n.t.Context(), command[0], command[1:]...).CombinedOutput(); err != nil {
		n.t.Fatalf("ip %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// Join connects two namespaces by a pair of interfaces eth0 with addresses such
// as 192.0.2.1/24.
func Join(a *Namespace, address string, b *Namespace, other string) {
	a.t.Helper()
	a.IP("link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", b.Path())
	for n, address := range map[*Namespace]string{a: address, b: other} {
		n.IP("addr", "add", address, "dev", "eth0")
		n.IP("link", "set", "eth0", "up")
	}
}

// do runs a function on a thread in the namespace; none is the test's own.
func (n *Namespace) do(f func() error) error {
	if n == nil {
		return f()
	}
	return onThread(func() error {
		if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter the network namespace: %w", err)
		}
		return f()
	})
}

// Dial connects to an IP address from within the namespace.
func (n *Namespace) Dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	err = n.do(func() error {
		conn, err = new(net.Dialer).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Forward listens at an IP address in one namespace and passes connections on
// to an address in another, until the test ends. Nil is the test's own. It
// returns the address that it listens at.
func Forward(t testing.TB, from *Namespace, address string, to *Namespace, target string) string {
	t.Helper()
	var listener net.Listener
	if err := from.do(func() (err error) {
		listener, err = new(net.ListenConfig).Listen(t.Context(), "tcp", address)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		listener.Close()
		running.Wait()
	})
	running.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			running.Go(func() { pass(ctx, conn, to, target) })
		}
	})
	return listener.Addr().String()
}

// pass copies both ways until one side ends.
func pass(ctx context.Context, conn net.Conn, to *Namespace, target string) {
	defer conn.Close()
	other, err := to.Dial(ctx, "tcp", target)
	if err != nil {
		return // who dialled sees the connection closed
	}
	defer other.Close()
	stop := context.AfterFunc(ctx, func() {
		conn.Close()
		other.Close()
	})
	defer stop()
	var both sync.WaitGroup
	for from, to := range map[net.Conn]net.Conn{conn: other, other: conn} {
		both.Go(func() {
			_, _ = io.Copy(to, from) // the end of a connection, or of the test
			if half, ok := to.(*net.TCPConn); ok {
				_ = half.CloseWrite() // it may be closed
			}
		})
	}
	both.Wait()
}
