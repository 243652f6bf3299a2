package svid

import (
	"math/rand/v2"
	"time"
)

// backoff grows by half with each failure, and is jittered, so that the pods
// of a node do not come back to a restarted identity provider in step.
type backoff struct {
	first, most time.Duration
	next        time.Duration
}

func newBackoff(first, most time.Duration) *backoff {
	return &backoff{first: first, most: most, next: first}
}

// reset starts over, after a message has arrived.
func (b *backoff) reset() { b.next = b.first }

// wait is how long to wait before the next attempt: between half and all of
// the present step.
func (b *backoff) wait() time.Duration {
	step := b.next
	b.next = min(b.most, b.next+b.next/2)
	return step/2 + rand.N(step/2+1)
}
