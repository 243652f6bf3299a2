package chaos

import (
	"context"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// manner is how a door treats those who come.
type manner int

const (
	passing manner = iota
	refusing
	silent  // accepts and says nothing
	slow    // passes an answer on byte by byte
	cutting // cuts an answer off in the middle
	babbling
	manners
)

var mannerNames = [manners]string{"passes", "hangs up at once", "is silent", "is slow", "cuts answers off", "answers nonsense"}

// door is a port or a socket that stays, whoever is behind it.
type door struct {
	listener net.Listener

	mu     sync.Mutex
	behind string
	manner manner
	conns  map[net.Conn]struct{}
}

// newDoor opens a door at an address: a path for a unix socket, or host:port.
func newDoor(t *testing.T, address, behind string) *door {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), network(address), address)
	if err != nil {
		t.Fatal(err)
	}
	d := &door{listener: l, behind: behind, conns: make(map[net.Conn]struct{})}
	var served sync.WaitGroup
	served.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			served.Go(func() { d.serve(conn) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		d.lead(behind, refusing) // it hangs up on everybody
		served.Wait()
	})
	return d
}

func network(address string) string {
	if strings.HasPrefix(address, "/") {
		return "unix"
	}
	return "tcp"
}

func (d *door) address() string { return d.listener.Addr().String() }

// lead changes what is behind the door and how it behaves, and hangs up on
// those who are there.
func (d *door) lead(behind string, m manner) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.behind, d.manner = behind, m
	for conn := range d.conns {
		conn.Close()
	}
}

// hold keeps a connection until it is closed or hung up on.
func (d *door) hold(conn net.Conn) (release func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.conns[conn] = struct{}{}
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.conns, conn)
		conn.Close()
	}
}

func (d *door) serve(conn net.Conn) {
	defer d.hold(conn)()
	d.mu.Lock()
	behind, m := d.behind, d.manner
	d.mu.Unlock()
	switch m {
	case refusing:
		return
	case silent:
		_, _ = io.Copy(io.Discard, conn) // until it hangs up
		return
	case babbling:
		_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\n{\"certificates\":[[[[[[{\"version\":17,\x00\xff")
		return
	}
	other, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(context.Background(), network(behind), behind)
	if err != nil {
		return
	}
	defer d.hold(other)()
	var back sync.WaitGroup
	back.Go(func() {
		_, _ = io.Copy(other, conn)
		other.Close()
	})
	switch m {
	case slow:
		one := make([]byte, 1)
		for {
			if _, err := other.Read(one); err != nil {
				break
			}
			if _, err := conn.Write(one); err != nil {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
	case cutting:
		_, _ = io.CopyN(conn, other, 700)
	default:
		_, _ = io.Copy(conn, other)
	}
	conn.Close()
	back.Wait()
}
