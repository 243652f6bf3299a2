//go:build !linux || !amd64

package wallclock

import (
	"testing"
	"time"

	"svid-watchdog/internal/e2e/neighbour"
)

// Clock is a wall clock that may be set.
type Clock struct{}

// New skips the test.
func New(t testing.TB) *Clock {
	t.Helper()
	neighbour.Lacking(t, "the wall clock of a program can be set on Linux and amd64 only")
	return nil
}

// Now is what the clock shows.
func (*Clock) Now() time.Time { return time.Now() }

// Set sets the clock.
func (*Clock) Set(time.Duration) {}

// Begin puts a program under the clock.
func (*Clock) Begin(int) error { return nil }
