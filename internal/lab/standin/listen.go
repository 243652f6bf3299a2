package standin

import (
	"context"
	"errors"
	"net"
	"syscall"
	"time"
)

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
