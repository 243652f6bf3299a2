package standin

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
)

var given struct {
	sync.Mutex
	ports map[int]bool
}

// The ports that FreeAddress gives out lie below those that the kernel gives
// to connections (net.ipv4.ip_local_port_range starts at 32768), which could
// take a port between now and its use, and over a restart of its user.
const lowestPort, highestPort = 20000, 32000

// FreeAddress is a HOST:PORT on loopback that nobody listens on, and that was
// not given out before in this process.
func FreeAddress() (string, error) {
	given.Lock()
	defer given.Unlock()
	if given.ports == nil {
		given.ports = make(map[int]bool)
	}
	err := errors.New("all are in use")
	for range 1000 {
		port := lowestPort + rand.IntN(highestPort-lowestPort)
		if given.ports[port] {
			continue
		}
		var l net.Listener
		if l, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err != nil {
			continue
		}
		given.ports[port] = true
		return l.Addr().String(), l.Close()
	}
	return "", fmt.Errorf("find a free port: %w", err)
}
