package standin

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"syscall"
	"time"
)

// The ports that FreeAddress gives out lie below those that the kernel gives
// to connections (net.ipv4.ip_local_port_range starts at 32768), which could
// take a port between now and its use, and over a restart of its user. They
// are taken in blocks, each of which belongs to the process that listens on
// its first port: other processes do the same at the same time.
const (
	lowestPort = 20000
	blocks     = 120
	blockSize  = 100
)

var given struct {
	sync.Mutex
	blocks []net.Listener // kept for as long as the process lives
	next   int            // port, a multiple of blockSize when none is left
}

// FreeAddress is a HOST:PORT on loopback that nobody listens on, and that is
// not given out again.
func FreeAddress() (string, error) {
	given.Lock()
	defer given.Unlock()
	err := errors.New("all blocks are taken")
	for range 10 * blocks {
		if given.next%blockSize == 0 {
			first := lowestPort + blockSize*rand.IntN(blocks)
			var block net.Listener
			if block, err = net.Listen("tcp", loopback(first)); err != nil {
				continue
			}
			given.blocks, given.next = append(given.blocks, block), first+1
		}
		address := loopback(given.next)
		given.next++
		var l net.Listener
		if l, err = net.Listen("tcp", address); err == nil {
			return address, l.Close()
		}
	}
	return "", fmt.Errorf("find a free port: %w", err)
}

func loopback(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }

// bindPatience is how long a port that was just given back may stay in use.
const bindPatience = 5 * time.Second

// listen listens on an address that nobody should have. A process that this one
// starts has copies of all its sockets for a moment, until it becomes another
// program, also of those that are closed meanwhile.
func listen(ctx context.Context, address string) (net.Listener, error) {
	ctx, cancel := context.WithTimeout(ctx, bindPatience)
	defer cancel()
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for {
		l, err := net.Listen("tcp", address)
		if !errors.Is(err, syscall.EADDRINUSE) {
			return l, err
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return nil, err
		}
	}
}
