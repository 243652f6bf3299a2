package lab

import (
	"net"
	"sync"
)

// gate lets everything through until it is closed; then whatever comes waits,
// as it does for a process that was sent SIGSTOP: connections are accepted by
// the kernel, and stay open, and nothing is read or written.
type gate struct {
	mu   sync.Mutex
	open chan struct{} // closed while everything passes
}

func newGate() *gate {
	g := &gate{open: make(chan struct{})}
	close(g.open)
	return g
}

func (g *gate) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case <-g.open:
		g.open = make(chan struct{})
	default: // it is shut already
	}
}

func (g *gate) unshut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case <-g.open:
	default:
		close(g.open)
	}
}

func (g *gate) now() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.open
}

// gated is a listener behind a gate.
type gated struct {
	net.Listener
	gate *gate
}

func (l gated) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &gatedConn{Conn: conn, gate: l.gate, closed: make(chan struct{})}, nil
}

type gatedConn struct {
	net.Conn
	gate   *gate
	once   sync.Once
	closed chan struct{}
}

// pass waits for the gate, and for the end of the connection.
func (c *gatedConn) pass() error {
	select {
	case <-c.gate.now():
		return nil
	case <-c.closed:
		return net.ErrClosed
	}
}

// Read waits also after the bytes came: they are not seen by a process that
// was stopped meanwhile.
func (c *gatedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if passErr := c.pass(); passErr != nil && err == nil {
		err = passErr
	}
	return n, err
}

func (c *gatedConn) Write(b []byte) (int, error) {
	if err := c.pass(); err != nil {
		return 0, err
	}
	return c.Conn.Write(b)
}

func (c *gatedConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}
