package rotation

import "time"

// restartTolerance is by how much the start of one life of Envoy may seem to
// move: uptime counts in seconds.
const restartTolerance = 2 * time.Second

// Start is when a life of Envoy began, as well as its uptime tells. That is the
// difference of two readings of the wall clock, of which the second is made
// while we wait for the answer. That may take a while, and the clock may be set
// meanwhile.
type Start struct {
	// Earliest is a time of the wall clock, zero when nothing is known.
	Earliest time.Time
	// Within is by how much it may be later.
	Within time.Duration
}

// StartOf tells the start from an uptime and from when it was asked for and
// answered.
func StartOf(uptime time.Duration, asked, answered time.Time) Start {
	took := answered.Sub(asked) // by the monotonic clock
	from, to := asked.Round(0), answered.Round(0)
	// Where the clock was set meanwhile, Envoy may have read it before or after.
	if early := to.Add(-took); early.Before(from) {
		from = early
	}
	if late := asked.Round(0).Add(took); late.After(to) {
		to = late
	}
	return Start{Earliest: from.Add(-uptime), Within: to.Sub(from)}
}

// Another takes another telling of the start and tells whether it is that of
// another life. It may be an earlier one, after the clock was set back.
func (s *Start) Another(told Start) bool {
	latest, toldLatest := s.Earliest.Add(s.Within), told.Earliest.Add(told.Within)
	switch {
	case told.Earliest.IsZero():
		return false
	case s.Earliest.IsZero():
		*s = told
		return false
	case told.Earliest.Sub(latest) >= restartTolerance || s.Earliest.Sub(toldLatest) >= restartTolerance:
		*s = told
		return true
	}
	// What both say is sharper than what one says. Uptime counts in seconds, so
	// they may also just miss each other.
	within := func(t time.Time) time.Time {
		switch {
		case t.Before(s.Earliest):
			return s.Earliest
		case t.After(latest):
			return latest
		default:
			return t
		}
	}
	earliest := within(told.Earliest)
	s.Earliest, s.Within = earliest, within(toldLatest).Sub(earliest)
	return false
}
