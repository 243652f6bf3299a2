package rotation

import "time"

// seenLeaf is a leaf and when it was first seen at a stage.
type seenLeaf struct {
	Certificate
	firstSeen time.Time
	// initial is true for a leaf that was there at the first look, so that it
	// may be older than our knowledge of it. epoch is the clock epoch of
	// firstSeen, and earlier what is added to its age for the time before.
	initial bool
	epoch   int
	earlier time.Duration
}

// maxKnownLeaves bounds the memory of a stage. At a renewal every 20 minutes
// it reaches back for a day.
const maxKnownLeaves = 72

// stageRecord remembers what one stage showed.
type stageRecord struct {
	// current is what the stage showed last, nil while it showed nothing.
	current []*seenLeaf
	// known are the leaves that the stage ever showed, oldest first, so that
	// a leaf that comes back is not taken for a new one.
	known     []*seenLeaf
	rotations uint64
	seenAt    time.Time
}

// observe records what the stage shows now, and returns the leaves that it
// never showed before.
func (s *stageRecord) observe(at time.Time, epoch int, leaves []Certificate) (fresh []*seenLeaf) {
	first := s.seenAt.IsZero()
	s.seenAt = at
	s.current = nil
	for _, leaf := range leaves {
		seen := s.find(leaf)
		if seen == nil {
			seen = &seenLeaf{Certificate: leaf, firstSeen: at, initial: first, epoch: epoch}
			s.known = append(s.known, seen)
			fresh = append(fresh, seen)
			if !first {
				s.rotations++
			}
		}
		s.current = append(s.current, seen)
	}
	if len(leaves) == 0 && first {
		s.seenAt = time.Time{} // an empty stage was not seen yet
	}
	if n := len(s.known) - maxKnownLeaves; n > 0 {
		s.known = append([]*seenLeaf(nil), s.known[n:]...)
	}
	return fresh
}

func (s *stageRecord) find(leaf Certificate) *seenLeaf {
	for _, k := range s.known {
		if k.Same(leaf) {
			return k
		}
	}
	return nil
}

// holds tells whether the stage shows the leaf now.
func (s *stageRecord) holds(leaf Certificate) bool {
	for _, c := range s.current {
		if c.Same(leaf) {
			return true
		}
	}
	return false
}

// worst is the current leaf that expires first, nil if there is none.
func (s *stageRecord) worst() *seenLeaf {
	var worst *seenLeaf
	for _, c := range s.current {
		if worst == nil || c.NotAfter.Before(worst.NotAfter) {
			worst = c
		}
	}
	return worst
}

// longestLead is by how much an issuer is thought to back-date at most: tbot
// does it by a minute, SPIRE by ten seconds.
const longestLead = 2 * time.Minute

// age is how long ago the leaf was issued, as well as can be told. A leaf that
// came while we watched is as old as our knowledge of it. One that was there
// before is dated by its not-before and the lead by which this issuer
// back-dates, if that is known: tbot back-dates by a minute, SPIRE by ten
// seconds, so not-before alone would make each leaf too old.
func (l *Ledger) age(leaf *seenLeaf, now time.Time) time.Duration {
	lead, ok := l.renewal.lead()
	if l.cfg.OneLook {
		// What is issued now may be an old SVID that all streams share. One whose
		// whole life is over by now tells that the clock is ahead (or of an issuer
		// that is beyond help): then ages count from that one's.
		if expired := l.renewal.life <= 0; !ok || lead > longestLead && !expired {
			lead, ok = longestLead, true
		}
	}
	if ok && leaf.initial && leaf.epoch == l.epoch {
		leaf.earlier = max(0, leaf.firstSeen.Round(0).Sub(leaf.NotBefore.Add(lead)))
	}
	return max(0, now.Sub(leaf.firstSeen)) + leaf.earlier
}
