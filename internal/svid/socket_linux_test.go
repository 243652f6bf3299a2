package svid

import (
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"

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
	if err := syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_RDONLY, ""); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skipf("nothing can be mounted here: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	if s := lookAtSocket(endpoint{"unix", filepath.Join(dir, "socket")}); *s != (rotation.Socket{File: rotation.SocketFileAbsent, DirReadOnly: true}) {
		t.Errorf("%+v", s)
	}
}
