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
	from, to := asked.Round(0), answered.Round(0)
	if to.Before(from) {
		from, to = to, from // the clock was set back
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
	// Of the two the sharper, where both can be right.
	if told.Earliest.After(s.Earliest) && !told.Earliest.After(latest) {
		s.Earliest = told.Earliest
	}
	if toldLatest.Before(latest) && !toldLatest.Before(s.Earliest) {
		latest = toldLatest
	}
	s.Within = latest.Sub(s.Earliest)
	return false
}
