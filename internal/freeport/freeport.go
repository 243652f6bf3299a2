// Package freeport finds ports on loopback for programs that want to be told
// theirs: real neighbours, and those of the lab.
package freeport

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
)

// The ports that are given out lie below those that the kernel gives
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

// Next is a port on loopback that nobody listens on, and that is not given out
// again.
func Next() (int, error) {
	given.Lock()
	defer given.Unlock()
	err := errors.New("all blocks are taken")
	for range 10 * blocks {
		if given.next%blockSize == 0 {
			first := lowestPort + blockSize*rand.IntN(blocks)
			var block net.Listener
			if block, err = net.Listen("tcp", loopback(first)); err != nil { //nolint:noctx // it returns at once
				continue
			}
			given.blocks, given.next = append(given.blocks, block), first+1
		}
		port := given.next
		given.next++
		var l net.Listener
		if l, err = net.Listen("tcp", loopback(port)); err == nil { //nolint:noctx // it returns at once
			return port, l.Close()
		}
	}
	return 0, fmt.Errorf("find a free port: %w", err)
}

// Address is the HOST:PORT of such a port.
func Address() (string, error) {
	port, err := Next()
	if err != nil {
		return "", err
	}
	return loopback(port), nil
}

func loopback(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }
