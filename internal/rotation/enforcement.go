package rotation

import (
	"strconv"
	"strings"
	"time"
)

// envoyRecord remembers what one life of Envoy showed.
type envoyRecord struct {
	seen      bool
	lastGood  time.Time
	downSince time.Time // zero while it answers
	downUntil time.Time // the end of the latest look that failed
	err       string
	version   string
	state     string
	spent     time.Duration

	// The rest belongs to the present life of Envoy.
	started  Start
	secrets  *Secrets
	contexts *Contexts
	cluster  *SDSCluster
	stats    *SDSStats
	// warming is what was last known of providers that wait.
	warmingKnown                   bool
	identityWarming, bundleWarming int
	// delivered tells whether a leaf was accepted in this life; the leaves
	// accepted after it are rotations that can be verified.
	delivered bool
	// toVerify are accepted leaves that no context was seen to hold yet,
	// toServe those that contexts hold and no handshake has shown yet.
	toVerify, toServe []*seenLeaf
	// refused are the leaves of the dump that Envoy rejected.
	refused map[certificateKey]refusal
	// counted is a rejection that the statistics count and no leaf shows.
	counted *countedRefusal
	// doubted is the leaf that the dump showed first right after the statistics
	// had counted a rejection: where one update was accepted and the next
	// refused between two looks, it is the refused one. The contexts tell.
	doubted Certificate
	// surplus is how many accepted updates the statistics count beyond the
	// changes that the dump showed; one that lasts is a hollow update.
	surplus int64
	// changes is how many changes the dump showed since the statistics were
	// last asked.
	changes int64
	// lastHollow is when an update last changed nothing.
	lastHollow time.Time

	// The SDS stream: since when it is down, when a look last found it open,
	// and which counter rose last.
	streamDown time.Time
	lastOpen   time.Time
	lastRise   Reason
	reopening  reopening
}

// reopening is a run of looks at the SDS cluster between which requests were
// opened again and again. It ends when none was for the grace, or for as long
// as Envoy waits at most where one is still missing.
type reopening struct {
	since, last time.Time
	requests    uint64
	rises       int
	// looks counts the looks of the run, short those at which some requests
	// were open, yet fewer than Envoy has secrets to ask for, and none those
	// at which none was.
	looks, short, none int
}

// maxBackoff is how long Envoy waits at most before it opens an SDS stream
// again (envoy: grpc_stream.h, subscription_factory.h).
const maxBackoff = 30 * time.Second

type refusal struct {
	since  time.Time
	reason Reason
	leaf   Certificate
}

type countedRefusal struct {
	since     time.Time
	successes uint64
}

// reset forgets one life of Envoy.
func (e *envoyRecord) reset() {
	*e = envoyRecord{
		seen: e.seen, lastGood: e.lastGood, downSince: e.downSince, downUntil: e.downUntil, err: e.err,
		version: e.version, state: e.state, spent: e.spent,
		refused: make(map[certificateKey]refusal),
	}
}

// versionTolerance is by how much an accepted secret's version, tbot's send
// time, may be later than Envoy's last_updated. Both clocks are the node's.
const versionTolerance = time.Second

// RecordEnvoy takes a look at Envoy's admin interface.
func (l *Ledger) RecordEnvoy(o Envoy) {
	e := &l.envoy
	wasUp, seen := e.downSince.IsZero(), e.seen
	e.seen = true
	e.spent += o.Spent
	problem := o.Err
	if problem == "" {
		problem = o.Incomplete
	}
	e.err = problem
	l.sourceEvent(o.At, SourceEnvoyAdmin, seen, wasUp, o.Err)
	if o.Err != "" {
		if e.downSince.IsZero() {
			e.downSince = o.At
		}
		e.downUntil = o.At.Add(o.Spent)
		return
	}
	e.downSince = time.Time{}
	e.lastGood = o.At
	e.version, e.state = o.Version, o.State
	if e.started.Another(o.Started) {
		e.reset()
		e.started = o.Started
		l.stages[Loaded].current, l.stages[Served].current = nil, nil
		l.event(Event{At: o.At, Type: EventEnvoyRestarted, Source: SourceEnvoyAdmin, Message: "Envoy was restarted."})
	}
	if o.Stats != nil {
		l.recordStats(*o.Stats)
	}
	if o.Secrets != nil {
		l.recordSecrets(*o.Secrets)
	}
	if o.Contexts != nil {
		l.recordContexts(*o.Contexts)
	}
	if o.SDSCluster != nil {
		e.recordCluster(*o.SDSCluster, l.cfg.Grace)
	}
	l.verifyServed(o.At)
}

// verifyServed verifies the rotations that a handshake has shown. It takes a
// look at Envoy after the handshake, as only that tells that Envoy was not
// restarted before it.
func (l *Ledger) verifyServed(at time.Time) {
	e := &l.envoy
	waiting := e.toServe[:0]
	for _, v := range e.toServe {
		switch {
		case l.stages[Served].holds(v.Certificate) && !l.stages[Served].seenAt.After(at):
			l.verify(at, Served, "A rotation went all the way to a TLS handshake.")
		case l.stages[Delivered].holds(v.Certificate):
			waiting = append(waiting, v)
		}
	}
	e.toServe = waiting
}

func (l *Ledger) verify(at time.Time, stage Stage, message string) {
	l.verified++
	l.event(Event{At: at, Type: EventVerified, Stage: stage, Message: message})
}

// recordSecrets compares the dump with the one before. Elements of one name
// have no identity of their own, so they are compared as sets.
func (l *Ledger) recordSecrets(s Secrets) {
	e := &l.envoy
	if s.WarmingKnown {
		e.warmingKnown, e.identityWarming, e.bundleWarming = true, s.IdentityWarming, s.BundleWarming
	}
	before := e.secrets
	e.secrets = &s

	var accepted []Certificate
	present := make(map[certificateKey]bool)
	for _, now := range s.Identity {
		if now.Leaf.SHA256.IsZero() {
			continue // not readable, the source says so
		}
		present[now.Leaf.key()] = true
		reason := l.refusalOf(now, before)
		if _, known := e.refused[now.Leaf.key()]; !known && reason != ReasonNone && !l.stages[Loaded].holds(now.Leaf) {
			l.refuse(s.At, now.Leaf, reason)
		}
		l.compareUpdate(now, before, s.At)
		if _, refused := e.refused[now.Leaf.key()]; !refused {
			accepted = append(accepted, now.Leaf)
		}
	}
	for key := range e.refused {
		if !present[key] {
			delete(e.refused, key) // another secret took its place
		}
	}
	if len(accepted) == 0 && len(s.Identity) > 0 {
		// Everything shown was refused: Envoy goes on with what it had.
		l.stages[Delivered].seenAt = s.At
		return
	}
	fresh := l.stages[Delivered].observe(s.At, l.epoch, accepted)
	l.rotated(s.At, Delivered, fresh)
	if e.delivered {
		e.toVerify = append(e.toVerify, fresh...)
	}
	e.delivered = e.delivered || len(accepted) > 0
	kept := e.toVerify[:0]
	for _, v := range e.toVerify {
		if l.stages[Delivered].holds(v.Certificate) {
			kept = append(kept, v)
		}
	}
	e.toVerify = kept
}

// refusalOf tells whether the dump shows a leaf that Envoy refused: the leaf
// changed and last_updated did not (all versions), or the version is a time
// later than last_updated (Envoy 1.37 and newer).
func (l *Ledger) refusalOf(now DeliveredIdentity, before *Secrets) Reason {
	if before != nil {
		sameTime, sameContent := false, false
		for _, was := range before.Identity {
			if was.LastUpdated.Equal(now.LastUpdated) {
				sameTime = true
				sameContent = sameContent || was.Content == now.Content
			}
		}
		if sameTime && !sameContent && !now.LastUpdated.IsZero() {
			return ReasonLeafChangedAlone
		}
	}
	if !now.SentAt.IsZero() && !now.LastUpdated.IsZero() && now.SentAt.Sub(now.LastUpdated) > versionTolerance {
		return ReasonVersionAhead
	}
	return ReasonNone
}

func (l *Ledger) refuse(at time.Time, leaf Certificate, reason Reason) {
	e := &l.envoy
	e.refused[leaf.key()] = refusal{since: at, reason: reason, leaf: leaf}
	e.counted = nil
	if e.stats == nil { // else the statistics count it
		l.rejected++
	}
	l.event(Event{At: at, Type: EventRejectedUpdate, Stage: Delivered, Message: "Envoy refused a new certificate."})
}

// compareUpdate looks for updates that changed the content, and, where the
// statistics do not count updates, for those that changed nothing: up to
// Envoy 1.36 they move last_updated.
func (l *Ledger) compareUpdate(now DeliveredIdentity, before *Secrets, at time.Time) {
	e := &l.envoy
	if before == nil {
		return
	}
	var same *DeliveredIdentity
	for i, was := range before.Identity {
		if was.Content != now.Content {
			continue
		}
		if was.LastUpdated.Equal(now.LastUpdated) {
			return // the very same
		}
		same = &before.Identity[i]
	}
	if same == nil {
		if _, refused := e.refused[now.Leaf.key()]; !refused {
			e.changes++
			if e.counted != nil && e.counted.since.Equal(e.stats.At) {
				e.doubted = now.Leaf
			}
			e.counted = nil
		}
		return
	}
	if e.stats == nil && now.LastUpdated.After(same.LastUpdated) {
		l.sawHollow(at, 1)
	}
}

func (l *Ledger) sawHollow(at time.Time, n uint64) {
	l.hollow += n
	l.envoy.lastHollow = at
	l.event(Event{At: at, Type: EventHollowUpdate, Stage: Delivered, Message: "An update of the identity secret changed nothing."})
}

// maxUpdates bounds what two looks at a counter may differ by: an answer that
// says more is no count of anything.
const maxUpdates = 1 << 20

// recordStats reads the subscription's counters. They are asked before the
// dump of the same look, so a change may show in the dump before its count:
// only a count that has found no change one look later is a hollow update.
func (l *Ledger) recordStats(s SDSStats) {
	e := &l.envoy
	was := e.stats
	e.stats = &s
	if was == nil || s.UpdateSuccess < was.UpdateSuccess || s.UpdateRejected < was.UpdateRejected {
		e.changes, e.surplus = 0, 0
		return
	}
	e.surplus -= e.changes
	e.changes = 0
	if e.surplus > 0 {
		l.sawHollow(s.At, uint64(e.surplus))
		e.surplus = 0
	}
	e.surplus += int64(min(s.UpdateSuccess-was.UpdateSuccess, maxUpdates))
	if n := s.UpdateRejected - was.UpdateRejected; n > 0 {
		l.rejected += n
		if len(e.refused) == 0 {
			e.counted = &countedRefusal{since: s.At, successes: s.UpdateSuccess}
			l.event(Event{At: s.At, Type: EventRejectedUpdate, Stage: Delivered, Message: "Envoy counted a refused update."})
		}
	}
	if e.counted != nil && len(e.refused) == 0 && s.UpdateSuccess > e.counted.successes {
		e.counted = nil
	}
}

// recordContexts takes the leaves of the live TLS contexts, and verifies the
// rotations that have arrived there.
func (l *Ledger) recordContexts(c Contexts) {
	e := &l.envoy
	e.contexts = &c
	leaves := make([]Certificate, 0, len(c.Leaves))
	for _, loaded := range c.Leaves {
		leaves = append(leaves, loaded.Leaf)
	}
	l.rotated(c.At, Loaded, l.stages[Loaded].observe(c.At, l.epoch, leaves))
	for key, r := range e.refused {
		if l.stages[Loaded].holds(r.leaf) {
			delete(e.refused, key) // it is in use after all
		}
	}
	waiting := e.toVerify[:0]
	for _, v := range e.toVerify {
		if c.At.Before(v.firstSeen) || !l.stages[Loaded].holds(v.Certificate) {
			waiting = append(waiting, v)
			continue
		}
		if l.cfg.Handshake {
			e.toServe = append(e.toServe, v)
			continue
		}
		l.verify(c.At, Loaded, "A rotation went all the way to Envoy's TLS contexts.")
	}
	e.toVerify = waiting
}

// recordCluster follows the SDS stream. A stream that the server closes at
// once may be open for the blink of a look, so that it takes two looks within
// the grace, or one without a new request, to call it up again.
func (e *envoyRecord) recordCluster(c SDSCluster, grace time.Duration) {
	was := e.cluster
	e.cluster = &c
	if !c.Found {
		e.streamDown, e.lastOpen, e.reopening = time.Time{}, time.Time{}, reopening{}
		return
	}
	var failures, requests uint64
	if was != nil && was.Found && c.ConnectFailures >= was.ConnectFailures && c.Requests >= was.Requests {
		failures, requests = c.ConnectFailures-was.ConnectFailures, c.Requests-was.Requests
	}
	e.followReopening(c, requests, grace)
	if c.ActiveRequests > 0 {
		if again := !e.lastOpen.IsZero() && c.At.Sub(e.lastOpen) <= grace; e.streamDown.IsZero() || again || requests == 0 {
			e.streamDown, e.lastRise = time.Time{}, ReasonNone
		}
		e.lastOpen = c.At
		return
	}
	if e.streamDown.IsZero() {
		e.streamDown, e.lastOpen, e.lastRise = c.At, time.Time{}, ReasonUndetermined
	}
	switch {
	case failures > 0 && (requests == 0 || c.ActiveConnections == 0):
		e.lastRise = ReasonCannotConnect
	case requests > 0:
		e.lastRise = ReasonClosedByServer
	case was == nil && c.ConnectFailures > 0 && c.Requests == 0:
		e.lastRise = ReasonCannotConnect // never was a stream in this life
	}
}

// followReopening counts requests that were opened anew while others, or they
// themselves, are open: with none open the stream is down, which is another
// problem.
func (e *envoyRecord) followReopening(c SDSCluster, requests uint64, quiet time.Duration) {
	r := &e.reopening
	if c.ActiveRequests == 0 {
		r.none++
		return
	}
	if c.ActiveRequests < e.subscriptions() {
		quiet = max(quiet, maxBackoff) // the next try may be that far away
	}
	if requests == 0 && (r.since.IsZero() || c.At.Sub(r.last) >= quiet) {
		*r = reopening{}
		return
	}
	if requests > 0 {
		if r.since.IsZero() {
			r.since = c.At
		}
		r.last = c.At
		r.requests += requests
		r.rises++
	}
	r.looks++
	if c.ActiveRequests < e.subscriptions() {
		r.short++
	}
}

// subscriptions is how many requests Envoy should have open: one for each
// provider of a secret.
func (e *envoyRecord) subscriptions() uint64 {
	if e.secrets == nil {
		return 0
	}
	n := len(e.secrets.Identity) + e.identityWarming + len(e.secrets.Bundle) + e.bundleWarming
	return uint64(n) //nolint:gosec // a sum of lengths
}

// streamReason says what keeps the SDS stream from bringing anything;
// ReasonNone while it is open, ReasonUndetermined while it was not seen.
func (e *envoyRecord) streamReason() Reason {
	switch {
	case e.cluster == nil || !e.cluster.Found:
		return ReasonUndetermined
	case !e.streamDown.IsZero() && e.lastRise == ReasonClosedByServer:
		return ReasonClosedByServer
	case !e.streamDown.IsZero():
		return ReasonStreamDown
	case e.reopening.rises > 1 && e.cluster.ActiveRequests < e.subscriptions():
		return ReasonClosedByServer
	default:
		return ReasonNone
	}
}

// showsResends tells whether this Envoy would show an update that changes
// nothing: up to 1.36 by last_updated, later only by the statistics.
func (e *envoyRecord) showsResends() bool { return e.stats != nil || MovesLastUpdated(e.version) }

// MovesLastUpdated tells whether an update that changes nothing moves
// last_updated on this version of Envoy: it does up to 1.36 (measured).
func MovesLastUpdated(version string) bool {
	parts := strings.SplitN(version, ".", 3)
	if len(parts) < 2 {
		return false
	}
	major, err1 := strconv.Atoi(parts[0])
	minor, err2 := strconv.Atoi(parts[1])
	return err1 == nil && err2 == nil && (major < 1 || major == 1 && minor <= 36)
}

// updatedInVain is the last_updated of a leaf that was issued at a time in this
// life of Envoy, so that Envoy was sent it then; a later update changed nothing.
// Zero if that cannot be told.
func (e *envoyRecord) updatedInVain(leaf Certificate, issued time.Time) time.Time {
	if !MovesLastUpdated(e.version) || e.started.Earliest.IsZero() || !e.started.Earliest.Before(issued.Add(restartTolerance)) || e.secrets == nil {
		return time.Time{}
	}
	for _, i := range e.secrets.Identity {
		if i.Leaf.Same(leaf) {
			return i.LastUpdated.Round(0)
		}
	}
	return time.Time{}
}
