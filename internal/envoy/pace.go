package envoy

import "time"

const (
	// firstQuickLook is the distance of the first look after a nudge or a
	// change.
	firstQuickLook = 250 * time.Millisecond
	// closeLook is the distance of the looks while a delivery is expected, and
	// closeSpan how long after its time it still is. A timer that was set anew
	// after each renewal is a moment later each time.
	closeLook = time.Second
	closeSpan = 10 * time.Second
	// shortestPeriod is the shortest that is worth to be expected, in resting
	// distances: what comes more often is seen soon enough.
	shortestPeriod = 4
)

// pace says when to look. At rest that is once in a while. It is sooner where
// something is likely to be seen: after a nudge, after a change, and when the
// next delivery is due, since an identity provider renews by a timer of its
// own for each stream. So a rotation is seen within a second or two, and Envoy
// is not asked more often for it.
type pace struct {
	rest time.Duration

	quick time.Duration // distance of the next quick look, 0 at rest
	since time.Time     // of what made the looks quick

	nudge  time.Time     // the last
	change time.Time     // when a change was last seen
	stream time.Duration // the time between two nudges, 0 while not known
	last   time.Time     // of the last delivery
	period time.Duration // the time between two deliveries, 0 while not known
}

func newPace(rest time.Duration) *pace { return &pace{rest: rest} }

// nudged is told that the identity provider issued something, and returns how
// long to wait.
func (p *pace) nudged(now time.Time) time.Duration {
	if !p.nudge.IsZero() {
		p.stream = now.Sub(p.nudge)
	}
	p.nudge = now
	p.quick, p.since = 2*firstQuickLook, now
	return firstQuickLook
}

// delivered is told that something new was seen in Envoy, and what Envoy says
// of when it came.
func (p *pace) delivered(seen, updated time.Time) {
	at := seen
	// What Envoy says is more exact, unless it cannot be: the clock was set, or
	// nothing of the kind was said.
	if ago := seen.Round(0).Sub(updated); ago >= 0 && (p.change.IsZero() || ago <= seen.Sub(p.change)) {
		at = seen.Add(-ago)
	}
	if !p.change.IsZero() {
		p.period = at.Sub(p.last)
	}
	p.change, p.last = seen, at
	p.quick, p.since = firstQuickLook, seen // see it being loaded
}

// next returns how long to wait after a look. Settled tells whether Envoy's
// contexts hold what was delivered.
func (p *pace) next(now time.Time, settled bool) time.Duration {
	if settled && !p.change.Before(p.since) {
		p.quick = 0 // delivered and loaded
	}
	wait := p.rest
	if p.quick > 0 {
		wait = p.quick
		if p.quick *= 2; p.quick >= p.rest {
			p.quick = 0
		}
	}
	switch left := p.due(now).Sub(now); {
	case left < -closeSpan:
	case left > 0:
		wait = min(wait, left+firstQuickLook)
	default:
		wait = min(wait, closeLook)
	}
	return wait
}

// due is when the next delivery is expected, or long past if none is. Either
// period may be wrong once, after a stream that was opened anew.
func (p *pace) due(now time.Time) time.Time {
	var due time.Time
	if p.last.IsZero() {
		return due
	}
	// Envoy's stream is another than ours, and of the same server.
	for _, period := range []time.Duration{p.period, p.stream} {
		at := p.last.Add(period)
		if period >= shortestPeriod*p.rest && now.Sub(at) <= closeSpan && (due.IsZero() || at.Before(due)) {
			due = at
		}
	}
	return due
}
