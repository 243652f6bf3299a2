package web

import (
	"net"
	"sync"
	"time"
)

// maxConnections bounds the connections at a time, and with them the memory
// that strangers can take. A scraper needs one.
const maxConnections = 64

// crowd is a listener that holds a bounded number of connections. One more
// than that costs an old one its place instead of waiting: whoever opens many
// and says little would else keep the scraper out.
//
// The place is taken from the address that has the most, so that a crowd from
// one address leaves those of others alone; of its connections from the oldest.
type crowd struct {
	net.Listener
	max int

	mu   sync.Mutex
	held map[*place]struct{}
}

func limit(l net.Listener, n int) *crowd {
	return &crowd{Listener: l, max: n, held: make(map[*place]struct{})}
}

// place is a connection that counts until it is closed.
type place struct {
	net.Conn
	crowd *crowd
	host  string
	since time.Time
}

// Accept implements net.Listener.
func (c *crowd) Accept() (net.Conn, error) {
	conn, err := c.Listener.Accept()
	if err != nil {
		return nil, err
	}
	host, _, err := net.SplitHostPort(conn.RemoteAddr().String())
	if err != nil {
		host = conn.RemoteAddr().String()
	}
	p := &place{Conn: conn, crowd: c, host: host, since: time.Now()}
	if out := c.admit(p); out != nil {
		_ = out.Close() // whoever it was
	}
	return p, nil
}

// admit counts a connection, and returns the one that has to go for it.
func (c *crowd) admit(p *place) (out *place) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.held) >= c.max {
		out = c.oldestOfTheMost()
	}
	c.held[p] = struct{}{}
	return out
}

func (c *crowd) oldestOfTheMost() (oldest *place) {
	count := make(map[string]int)
	for p := range c.held {
		count[p.host]++
	}
	for p := range c.held {
		switch {
		case oldest == nil,
			count[p.host] > count[oldest.host],
			count[p.host] == count[oldest.host] && p.since.Before(oldest.since):
			oldest = p
		}
	}
	return oldest
}

// Close implements net.Conn.
func (p *place) Close() error {
	p.crowd.mu.Lock()
	delete(p.crowd.held, p)
	p.crowd.mu.Unlock()
	return p.Conn.Close()
}

// CloseWrite lets an answer arrive that goes out before all was read.
func (p *place) CloseWrite() error {
	if c, ok := p.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return nil
}
