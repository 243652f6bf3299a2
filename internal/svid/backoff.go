package svid

import (
	"math/rand/v2"
	"time"
)

// backoff spaces the attempts. The jitter keeps the pods of a node, whose
// streams all break at the same moment, from coming back in step.
type backoff struct {
	min, max time.Duration
	level    int // attempts in a row without a message
	// flaps counts the streams in a row that brought a message and broke
	// within max. Each new stream makes tbot issue an SVID, so a server that
	// answers and hangs up is asked ever more rarely too.
	flaps int
}

// answered notes that a stream brought a message and lasted for so long.
func (b *backoff) answered(lasted time.Duration) {
	if lasted >= b.max {
		b.flaps = 0
	}
	b.level = b.flaps
	b.flaps++
}

// next returns the time until the next attempt: at first anything up to min,
// so that what became of a broken stream is known soon; then between one half
// and all of a bound that doubles up to max.
func (b *backoff) next() time.Duration {
	if b.level == 0 {
		b.level++
		return rand.N(b.min + 1)
	}
	bound := b.max
	// Shifted any further, the bound would overflow.
	if b.level < 32 && b.min<<b.level>>b.level == b.min {
		bound = min(b.min<<b.level, b.max)
		b.level++
	}
	return bound/2 + rand.N(bound/2+1)
}
