package standin

import (
	"context"
	"errors"
	"net"
	"syscall"
	"testing"
	"time"

	"svid-watchdog/internal/freeport"
)

// TestAPortThatIsGivenBack: a port that is in use for a moment is waited for,
// one that stays in use is not taken.
func TestAPortThatIsGivenBack(t *testing.T) {
	address, err := freeport.Address()
	if err != nil {
		t.Fatal(err)
	}
	before, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := listen(ctx, address); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("a port in use: %v", err)
	}
	timer := time.AfterFunc(100*time.Millisecond, func() { before.Close() })
	defer timer.Stop()
	l, err := listen(t.Context(), address)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
}
