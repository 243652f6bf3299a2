package standin

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
)

// announced tells of each connection that is accepted.
type announced struct {
	net.Listener
	accepted chan struct{}
}

func (a announced) Accept() (net.Conn, error) {
	conn, err := a.Listener.Accept()
	if err == nil {
		select {
		case a.accepted <- struct{}{}:
		default:
		}
	}
	return conn, err
}

// TestStopWhileConnecting: whoever is stopped in the very moment in which its
// connection gets ready leaves none behind.
func TestStopWhileConnecting(t *testing.T) {
	// t.TempDir's path may be too long for a socket.
	dir, err := os.MkdirTemp("", "svid-standin-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "socket")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	accepted := make(chan struct{}, 1)
	server := grpc.NewServer()
	served := make(chan error, 1)
	go func() { served <- server.Serve(announced{l, accepted}) }()
	defer func() {
		server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()

	e, err := New(Config{SDSSocket: path})
	if err != nil {
		t.Fatal(err)
	}
	before := goleak.IgnoreCurrent()
	for range 200 {
		if err := e.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		<-accepted
		if err := e.Stop(); err != nil {
			t.Fatal(err)
		}
		select { // of a second connect
		case <-accepted:
		default:
		}
	}
	// What the server has of a connection ends when it has seen the end of it.
	server.Stop()
	goleak.VerifyNone(t, before)
}
