package rotation

import (
	"slices"
	"time"
)

// renewal learns from the Workload API stream how often the issuer renews,
// and by how much it back-dates.
type renewal struct {
	stream   int
	previous Certificate
	bundle   Fingerprint
	life     time.Duration // of the latest leaf, from its receipt
	// gaps are the latest distances between two leaves of one stream, leads
	// the latest distances from not-before to receipt.
	gaps, leads []time.Duration
}

// gapsKept is how many distances are remembered. A renewal out of turn makes
// short ones, which must not make later renewals look overdue, so the interval
// is a long one; yet not the longest, which may be that of a renewal that was
// late, and must not excuse the next one.
const gapsKept = 8

// leadsKept is how many leads are remembered; the shortest counts, since a
// leaf of an issuer that shares its SVIDs (SPIRE) may be old when received.
const leadsKept = 8

// learn takes a leaf that is new on the stream. The distance is taken between
// the two not-befores: a stream that was joined halfway through a leaf's life
// then still shows the whole distance. It only counts within one stream, as
// each new stream makes tbot issue anew, and under one trust bundle, as a CA
// rotation does too.
func (r *renewal) learn(i Issuance) {
	gap, bundle := i.Leaf.NotBefore.Sub(r.previous.NotBefore), i.Bundle.fingerprint()
	if r.stream == i.Stream && r.bundle == bundle && !r.previous.NotBefore.IsZero() && gap > 0 {
		r.gaps = keep(r.gaps, gap, gapsKept)
	}
	r.stream, r.previous, r.bundle = i.Stream, i.Leaf, bundle
	// The node's clock may be wrong, and then a life would seem to be longer.
	r.life = min(i.Leaf.NotAfter.Sub(i.At.Round(0)), i.Leaf.NotAfter.Sub(i.Leaf.NotBefore))
	r.leads = keep(r.leads, i.At.Round(0).Sub(i.Leaf.NotBefore), leadsKept)
}

func keep(list []time.Duration, d time.Duration, n int) []time.Duration {
	list = append(list, d)
	return slices.Clone(list[max(0, len(list)-n):])
}

// learned is the renewal interval, if two leaves of one stream were seen.
// While only few were, it is taken to be at least a third of the lifetime.
func (r *renewal) learned() (time.Duration, bool) {
	if len(r.gaps) == 0 {
		return 0, false
	}
	interval := slices.Max(r.usual())
	if len(r.gaps) < gapsKept {
		interval = max(interval, r.life/3)
	}
	return interval, true
}

// usual are the distances but for the longest, once there are enough.
func (r *renewal) usual() []time.Duration {
	sorted := slices.Sorted(slices.Values(r.gaps))
	if len(sorted) > 2 {
		sorted = sorted[:len(sorted)-1]
	}
	return sorted
}

// allowance is what a learned interval may be exceeded by before a renewal is
// overdue. tbot renews by a timer and needs none. SPIRE draws lots around half
// life, give or take a tenth of it (spire: pkg/common/rotationutil), so that
// the longest of a few distances is soon exceeded: for 24 h SVIDs by minutes.
// An issuer that was not seen to be steady is allowed a tenth.
func (r *renewal) allowance(grace time.Duration) time.Duration {
	interval, ok := r.learned()
	if !ok {
		return 0
	}
	if usual := r.usual(); len(r.gaps) == gapsKept && usual[len(usual)-1]-usual[0] <= grace/10 {
		return 0
	}
	return interval / 10
}

// lead is by how much the issuer back-dates, if a leaf was seen.
func (r *renewal) lead() (time.Duration, bool) {
	if len(r.leads) == 0 {
		return 0, false
	}
	return slices.Min(r.leads), true
}

// forgetClock drops what a step of the wall clock has made wrong.
func (r *renewal) forgetClock() {
	r.leads = nil
	r.previous = Certificate{}
}

// interval is the renewal interval that a leaf is judged by. Until it is
// learned it is assumed to be half of the life that the leaf had, as far back
// as its age is counted: no known issuer renews later than at half life. SPIRE's
// agent takes that by the node's clock, so that it renews later where the clock
// of the server, from which the times of the leaf are, is ahead.
func (l *Ledger) interval(leaf *seenLeaf) (time.Duration, IntervalSource) {
	if l.cfg.Interval > 0 {
		return l.cfg.Interval, IntervalConfigured
	}
	if learned, ok := l.renewal.learned(); ok {
		return learned, IntervalLearned
	}
	if leaf == nil {
		return 0, ""
	}
	whole, left := leaf.NotAfter.Sub(leaf.NotBefore), l.leftAtFirst(leaf)
	half := (left + leaf.earlier) / 2
	middle := left - whole/2 + leaf.earlier
	if !leaf.initial || left <= 0 {
		// It is fresh, or that nothing is left of it is the fault of a wrong clock.
		half = max(half, whole/2)
	}
	return max(0, half, middle), IntervalAssumed
}

// longestSkew is by how much the clock of an issuer is thought to be ahead of
// the node's at most.
const longestSkew = 5 * time.Minute

// leftAtFirst is how much of its life a leaf had left when it was first seen. By
// a wall clock that is wrong that may be anything. Where it was set since, what
// it says now of that time counts too: in doubt the leaf was young, but never
// younger than it can be.
func (l *Ledger) leftAtFirst(leaf *seenLeaf) time.Duration {
	whole := leaf.NotAfter.Sub(leaf.NotBefore)
	left := leaf.NotAfter.Sub(leaf.firstSeen.Round(0))
	if leaf.epoch != l.epoch {
		now := l.judgedAt.Round(0).Add(-l.judgedAt.Sub(leaf.firstSeen))
		switch other := leaf.NotAfter.Sub(now); {
		case other <= whole && left <= whole:
			left = max(left, other)
		default:
			left = min(left, other)
		}
	}
	return min(left, whole+longestSkew)
}
