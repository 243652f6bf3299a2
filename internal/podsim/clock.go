package podsim

import (
	"time"
	"unsafe"
)

// Clock is the clock of a node whose wall clock can be set and which can be
// suspended, while its monotonic clock goes on as time does here: in a
// testing/synctest bubble, whose times have no monotonic reading of their own.
// The zero value starts when it is first read.
type Clock struct {
	start time.Time
	ahead time.Duration // of the wall clock before the monotonic clock
}

// base is a time with a monotonic reading, on a whole second.
var base = func() time.Time {
	t := time.Now()
	return t.Add(-time.Duration(t.Nanosecond()))
}()

// Set moves the wall clock, as an administrator or an NTP daemon does. A
// suspended node looks the same from within: on Linux the monotonic clock
// stands still meanwhile.
func (c *Clock) Set(by time.Duration) { c.ahead += by }

// Now is the node's time.
//
// Package time offers no way to make a time whose two readings differ by
// another amount than now, so the monotonic one is put back by hand: it is the
// second of the three words of a time.Time that has one. Should that change,
// TestClock fails.
func (c *Clock) Now() time.Time {
	if c.start.IsZero() {
		c.start = time.Now()
	}
	t := base.Add(time.Since(c.start) + c.ahead)
	words := (*struct {
		wall uint64
		ext  int64
		loc  *time.Location
	})(unsafe.Pointer(&t)) //nolint:gosec // see above
	words.ext -= int64(c.ahead)
	return t
}
