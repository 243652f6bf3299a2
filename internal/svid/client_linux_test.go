package svid

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"svid-watchdog/internal/rotation"
)

// The directory was deleted while it is in use. Here a file descriptor holds
// it, in a pod the mount does; stat sees the same.
func TestTheDirectoryIsOrphaned(t *testing.T) {
	t.Parallel()
	path := socketPath(t)
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	through := fmt.Sprintf("/proc/self/fd/%d/socket", dir.Fd())
	s := serve(t, listenUnix(t, path), sendAndStay(message(t, 1)))
	c := run(t, Config{Address: "unix://" + through})
	c.until(rotation.WorkloadAPIServing, "")

	// The socket goes first: that is not it yet.
	s.stop()
	c.until(rotation.WorkloadAPIUnreachable, rotation.ReasonNoSocket)
	if err := os.Remove(filepath.Dir(path)); err != nil {
		t.Fatal(err)
	}
	got := c.until(rotation.WorkloadAPIUnreachable, rotation.ReasonDirectoryOrphaned)
	want(t, got, rotation.WorkloadAPIUnreachable, rotation.ReasonDirectoryOrphaned, "false")
	// A new directory of that name, with a server in it, heals nothing.
	if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	serve(t, listenUnix(t, path), sendAndStay(message(t, 1)))
	for range 3 {
		want(t, c.state(), rotation.WorkloadAPIUnreachable, rotation.ReasonDirectoryOrphaned, "false")
	}
}

// The queue of the socket is full: nobody accepts, and many have tried.
func TestAFullQueueIsSilent(t *testing.T) {
	t.Parallel()
	path := socketPath(t)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	for {
		conn, err := net.Dial("unix", path)
		if err != nil {
			if !errors.Is(err, syscall.EAGAIN) {
				t.Fatal(err)
			}
			break
		}
		defer conn.Close()
	}
	c := run(t, Config{Address: "unix://" + path})
	got := c.state()
	want(t, got, rotation.WorkloadAPIUnreachable, rotation.ReasonSilent, "false")
	if !strings.Contains(got.Detail, "queue") {
		t.Errorf("detail %q", got.Detail)
	}
}
