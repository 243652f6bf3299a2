package svid

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"svid-watchdog/internal/rotation"
)

// TestLookAtSocket: what stands at the socket's path is seen as Istio's agent
// would see it.
func TestLookAtSocket(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(filepath.Dir(socketPath(t)), "workload-spiffe-uds")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	look := func(name string) *rotation.Socket {
		return lookAtSocket(endpoint{"unix", filepath.Join(dir, name)})
	}
	if s := look("socket"); *s != (rotation.Socket{File: rotation.SocketFileAbsent}) {
		t.Errorf("none: %+v", s)
	}
	if s := look("other"); *s != (rotation.Socket{File: rotation.SocketFileAbsent, Renamed: true}) {
		t.Errorf("none of another name: %+v", s)
	}
	if err := os.WriteFile(filepath.Join(dir, "socket"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if s := look("socket"); *s != (rotation.Socket{File: rotation.SocketFileRegular}) {
		t.Errorf("a regular file: %+v", s)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: filepath.Join(dir, "dead")})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	if s := look("dead"); *s != (rotation.Socket{File: rotation.SocketFileSocket, Renamed: true}) {
		t.Errorf("a dead socket: %+v", s)
	}
	// In another directory nothing follows from the name.
	if s := lookAtSocket(endpoint{"unix", filepath.Join(filepath.Dir(dir), "agent.sock")}); s.Renamed {
		t.Errorf("another directory: %+v", s)
	}
	if s := lookAtSocket(endpoint{"tcp", "127.0.0.1:1"}); s != nil {
		t.Errorf("a network address: %+v", s)
	}
	if s := look("none/socket"); s != nil {
		t.Errorf("no directory: %+v", s)
	}
}

// TestReadOnlyDirectory: a directory that is mounted read-only is told from one
// that may be written to.
func TestReadOnlyDirectory(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	type seen struct {
		socket *rotation.Socket
		err    error
	}
	looked := make(chan seen)
	go func() {
		// The thread gets mounts of its own, and ends with them: it is never
		// unlocked.
		runtime.LockOSThread()
		if err := errors.Join(
			unix.Unshare(unix.CLONE_FS|unix.CLONE_NEWNS),
			unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""),
			unix.Mount("tmpfs", dir, "tmpfs", unix.MS_RDONLY, ""),
		); err != nil {
			looked <- seen{err: err}
			return
		}
		looked <- seen{socket: lookAtSocket(endpoint{"unix", filepath.Join(dir, "socket")})}
	}()
	s := <-looked
	if s.err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(s.err)
		}
		t.Skipf("nothing can be mounted here: %v", s.err)
	}
	if *s.socket != (rotation.Socket{File: rotation.SocketFileAbsent, DirReadOnly: true}) {
		t.Errorf("%+v", s.socket)
	}
}
