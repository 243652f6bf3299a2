package svid

import (
	"math"
	"testing"
	"time"
)

// spread returns the shortest and the longest of many pauses at one level.
func spread(b backoff) (shortest, longest time.Duration) {
	shortest = math.MaxInt64
	for range 2000 {
		c := b
		d := c.next()
		shortest, longest = min(shortest, d), max(longest, d)
	}
	return shortest, longest
}

// between checks that the pauses fill an interval and never leave it.
func between(t *testing.T, what string, b backoff, low, high time.Duration) {
	t.Helper()
	shortest, longest := spread(b)
	slack := (high - low) / 10
	if shortest < low || longest > high || shortest > low+slack || longest < high-slack {
		t.Errorf("%s: %v to %v, want %v to %v", what, shortest, longest, low, high)
	}
}

func TestBackoff(t *testing.T) {
	b := backoff{min: time.Second, max: 30 * time.Second}
	between(t, "first", b, 0, time.Second)
	for _, bound := range []time.Duration{2, 4, 8, 16, 30, 30, 30} {
		b.next()
		between(t, "later", b, bound*time.Second/2, bound*time.Second)
	}
	for range 1000 {
		b.next()
	}
	between(t, "much later", b, 15*time.Second, 30*time.Second)

	b.answered(time.Hour)
	between(t, "after a long stream", b, 0, time.Second)
}

// A server that answers and hangs up is asked ever more rarely, though the
// first retry is quick.
func TestBackoffOfAServerThatHangsUp(t *testing.T) {
	b := backoff{min: time.Second, max: 30 * time.Second}
	b.answered(time.Minute)
	between(t, "after a long stream", b, 0, time.Second)
	b.next()
	for i, bound := range []time.Duration{2, 4, 8, 16, 30, 30} {
		b.answered(time.Second)
		between(t, "after a short stream", b, bound*time.Second/2, bound*time.Second)
		if i > 2 {
			b.next() // A failed attempt in between does not count as a stream.
		}
	}
	b.answered(30 * time.Second)
	between(t, "after a long stream", b, 0, time.Second)
}

func TestBackoffBounds(t *testing.T) {
	for _, b := range []backoff{
		{min: 1, max: 1},
		{min: time.Nanosecond, max: math.MaxInt64},
		{min: time.Hour, max: math.MaxInt64},
		{min: time.Second, max: time.Second, level: 1 << 20, flaps: 1 << 20},
	} {
		for range 200 {
			if d := b.next(); d < 0 || d > b.max {
				t.Fatalf("pause %v of %+v", d, b)
			}
		}
	}
}
