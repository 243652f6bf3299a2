package rotation

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// clockTolerance is by how much the two clocks may drift apart before we speak
// of a jump. An NTP daemon that slews the wall clock slews both.
const clockTolerance = 5 * time.Second

// judgement is one run of Judge.
type judgement struct {
	*Ledger
	now     time.Time
	recheck time.Time
	found   map[ProblemName]Problem
	// holding are the conditions seen in this run that wait for the grace.
	holding map[ProblemName]bool
}

// Judge says what the evidence means at the time now, which must not be
// earlier than that of the evidence. Between two pieces of evidence a verdict
// changes only by the passing of time; [Verdict.Recheck] says when.
func (l *Ledger) Judge(now time.Time) Verdict {
	l.watchClock(now)
	j := &judgement{Ledger: l, now: now, found: make(map[ProblemName]Problem), holding: make(map[ProblemName]bool)}
	j.credentialFiles()
	j.workloadAPI()
	j.expiry()
	if !j.envoyReachability() {
		j.rejection()
		j.missingSecrets()
		j.sdsStream()
		j.delivery()
		j.contexts()
		j.provenance()
		j.trustBundle()
	}
	j.served()
	for name := range l.held {
		if !j.holding[name] {
			delete(l.held, name)
		}
	}
	j.transitions()
	return j.verdict()
}

// watchClock notices a step of the wall clock, or a suspended node; also one
// made of small steps.
func (l *Ledger) watchClock(now time.Time) {
	l.judgedAt = now
	if l.clockAt.IsZero() {
		l.clockAt = now
	}
	jump := now.Round(0).Sub(l.clockAt.Round(0)) - now.Sub(l.clockAt)
	if jump.Abs() < clockTolerance {
		return
	}
	l.clockAt = now
	l.epoch++
	l.renewal.forgetClock()
	l.event(Event{At: now, Type: EventClockJumped,
		Message: fmt.Sprintf("The wall clock moved by %s against the monotonic clock.", round(jump))})
}

// reached tells whether t has come, and else remembers it for the recheck.
func (j *judgement) reached(t time.Time) bool {
	if !j.now.Before(t) {
		return true
	}
	if j.recheck.IsZero() || t.Before(j.recheck) {
		j.recheck = t
	}
	return false
}

// lasts tells whether a condition has held since the given time for longer
// than the grace.
func (j *judgement) lasts(since time.Time) bool { return j.reached(since.Add(j.cfg.patience())) }

// holds tells whether a condition was seen without a break for longer than the
// grace, the last time by evidence of the time at. It is not enough that the
// grace has passed since: where looks are rare, what was seen once may have
// healed unseen.
func (j *judgement) holds(name ProblemName, at time.Time) bool {
	j.holding[name] = true
	if _, ok := j.held[name]; !ok {
		j.held[name] = at
	}
	return at.Sub(j.held[name]) >= j.cfg.patience()
}

// raise notes a problem with the catalogue's severity.
func (j *judgement) raise(name ProblemName, stage Stage, reason Reason, detail string) {
	j.raiseAs(definitions[name].Severity, name, stage, reason, detail)
}

func (j *judgement) raiseAs(severity Severity, name ProblemName, stage Stage, reason Reason, detail string) {
	d := definitions[name]
	cause, advice := d.Explain(reason)
	j.found[name] = Problem{
		Name: name, Severity: severity, Stage: stage, Reason: reason,
		Summary: d.Summary, Cause: cause, Advice: advice, Detail: detail, Since: j.now,
	}
}

func (j *judgement) has(name ProblemName) bool {
	_, ok := j.found[name]
	return ok
}

func (j *judgement) credentialFiles() {
	if j.files == nil || j.files.Err != "" {
		// Not seen now: what held, holds until it is seen to be gone.
		j.keep(CredentialFilesPartial, CredentialFilesComplete)
		return
	}
	var names []string
	for _, name := range CredentialFileNames() {
		if j.files.Present[name] {
			names = append(names, string(name))
		}
	}
	detail := strings.Join(names, ", ")
	if leaf := j.files.Leaf; leaf != nil {
		detail += fmt.Sprintf("; the certificate was issued by %q and is good until %s", leaf.Issuer, leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	switch len(names) {
	case 0:
	case len(CredentialFileNames()):
		j.raise(CredentialFilesComplete, "", ReasonNone, detail)
	default:
		j.raise(CredentialFilesPartial, "", ReasonNone, detail)
	}
}

// keep lets problems go on that held before.
func (j *judgement) keep(names ...ProblemName) {
	for _, name := range names {
		if p, ok := j.problems[name]; ok {
			j.found[name] = p
		}
	}
}

func (j *judgement) workloadAPI() {
	switch j.api.State {
	case WorkloadAPIUnreachable:
		if j.lasts(j.api.badSince) {
			j.unreachable(j.api.Reason)
		}
		return
	case WorkloadAPIDenied:
		if j.lasts(j.api.badSince) {
			j.raise(WorkloadDenied, Issued, ReasonNone, j.api.Detail)
		}
		return
	case WorkloadAPIConnecting:
		if !j.api.badSince.IsZero() && j.lasts(j.api.badSince) {
			j.unreachable(ReasonUndetermined)
		}
		return
	}
	leaf := j.stages[Issued].worst()
	if leaf == nil {
		return
	}
	if age, overdue := j.overdue(leaf, j.now); overdue {
		j.raise(IssuanceOverdue, Issued, ReasonNone, age)
	}
}

// unreachable raises workload_api_unreachable: worse, the less time is left.
func (j *judgement) unreachable(reason Reason) {
	severity := Warning
	if j.withinMargin() {
		severity = Critical
	}
	j.raiseAs(severity, WorkloadUnreachable, Issued, reason, j.api.Detail)
}

// overdue tells whether a leaf was older than the renewal interval and the
// grace when it was last seen, and says so.
func (j *judgement) overdue(leaf *seenLeaf, seen time.Time) (string, bool) {
	age := j.age(leaf, seen) // first, as it may date the leaf further back
	interval, source := j.interval(leaf)
	due := interval + j.cfg.Grace - age
	if source == IntervalLearned {
		due += j.renewal.allowance(j.cfg.Grace)
	}
	if due > 0 {
		if seen.Equal(j.now) {
			j.reached(j.now.Add(due))
		}
		return "", false
	}
	return fmt.Sprintf("the certificate is %s old; a new one comes every %s (%s)", round(age), round(interval), source), true
}

// margin is how much life a leaf must have left.
func (j *judgement) margin(leaf Certificate) time.Duration {
	if j.cfg.Margin > 0 {
		return j.cfg.Margin
	}
	return leaf.NotAfter.Sub(leaf.NotBefore) / 6
}

// withinMargin tells whether anything that was last seen is about to expire.
func (j *judgement) withinMargin() bool {
	for _, stage := range Stages() {
		if leaf := j.stages[stage].worst(); leaf != nil && j.reached(leaf.NotAfter.Add(-j.margin(leaf.Certificate))) {
			return true
		}
	}
	return false
}

// expiry judges what was last seen at each stage, also when its source is
// down: a certificate expires unseen.
func (j *judgement) expiry() {
	var expired, expiring []string
	var expiredStage, expiringStage Stage
	severity := Warning
	for _, stage := range Stages() { // the last one named is nearest to peers
		leaf := j.stages[stage].worst()
		if leaf == nil {
			continue
		}
		wall := j.now.Round(0)
		switch {
		case j.reached(leaf.NotAfter):
			expired = append(expired, fmt.Sprintf("%s: expired %s ago", stage, round(wall.Sub(leaf.NotAfter))))
			expiredStage = stage
		case j.reached(leaf.NotAfter.Add(-j.margin(leaf.Certificate))):
			expiring = append(expiring, fmt.Sprintf("%s: %s left", stage, round(leaf.NotAfter.Sub(wall))))
			expiringStage = stage
			if stage != Issued {
				severity = Critical
			}
		}
	}
	if len(expired) > 0 {
		j.raise(CertificateExpired, expiredStage, ReasonNone, strings.Join(expired, "; "))
	}
	if len(expiring) > 0 {
		j.raiseAs(severity, CertificateExpiring, expiringStage, ReasonNone, strings.Join(expiring, "; "))
	}
}

// envoyReachability tells whether what is known of Envoy is too old to judge
// it by. Within the grace the last look still stands.
func (j *judgement) envoyReachability() (unknown bool) {
	if j.envoy.downSince.IsZero() || j.envoy.downUntil.Sub(j.envoy.downSince) < j.cfg.patience() {
		return false
	}
	j.raise(EnvoyUnreachable, Delivered, ReasonNone, j.envoy.err)
	return true
}

func (j *judgement) rejection() {
	var first *refusal
	for _, r := range j.envoy.refused {
		if first == nil || r.since.Before(first.since) {
			first = &r
		}
	}
	switch {
	case first != nil:
		j.raise(UpdateRejected, Delivered, first.reason, refused(first.leaf))
	case j.envoy.counted != nil:
		j.raise(UpdateRejected, Delivered, ReasonCounted, "")
	}
}

func refused(leaf Certificate) string {
	return fmt.Sprintf("refused: serial %s, good until %s", leaf.Serial, leaf.NotAfter.UTC().Format(time.RFC3339))
}

func (j *judgement) missingSecrets() {
	e := &j.envoy
	if e.secrets == nil {
		return
	}
	var missing []string
	if len(e.secrets.Identity) == 0 || e.identityWarming > 0 {
		missing = append(missing, "the identity")
	}
	if len(e.secrets.Bundle) == 0 || e.bundleWarming > 0 {
		missing = append(missing, "the trust bundle")
	}
	if len(missing) == 0 || !j.holds(SecretMissing, e.secrets.At) {
		return
	}
	j.raise(SecretMissing, Delivered, e.missingReason(), strings.Join(missing, " and "))
}

// missingReason says why a secret is not active.
func (e *envoyRecord) missingReason() Reason {
	switch {
	case !e.warmingKnown:
		return ReasonUndetermined
	case e.identityWarming+e.bundleWarming == 0:
		return ReasonAbsent
	case len(e.secrets.Identity) > 0 && len(e.secrets.Bundle) > 0:
		return ReasonSecondProvider
	}
	switch reason := e.streamReason(); reason {
	case ReasonNone:
		return ReasonServerSilent
	case ReasonUndetermined:
		return ReasonWarming
	default:
		return reason
	}
}

func (j *judgement) sdsStream() {
	e := &j.envoy
	if !e.streamDown.IsZero() && e.cluster.ActiveRequests > 0 {
		// Open again, or for the blink of this look: the next one tells.
		j.keep(SDSStreamDown)
	} else if !e.streamDown.IsZero() && e.cluster.At.Sub(e.streamDown) >= j.cfg.patience() {
		j.raise(SDSStreamDown, Delivered, e.lastRise, fmt.Sprintf("connect failures %d, requests %d in this life of Envoy",
			e.cluster.ConnectFailures, e.cluster.Requests))
		return
	}
	// A restart of the server opens each request anew, perhaps more than once;
	// it takes several times that, spread over more than the grace.
	r := &e.reopening
	if r.requests < reopenings*max(1, e.subscriptions()) || r.last.Sub(r.since) <= j.cfg.Grace {
		return
	}
	reason := ReasonReconnecting
	// A request that is refused is open for a blink only. By chance one of two
	// may be open at many looks, yet not at nearly all.
	if r.none == 0 && 10*r.short >= 9*r.looks {
		reason = ReasonPartlyRefused
	}
	j.raise(SDSStreamFlapping, Delivered, reason, fmt.Sprintf("%d requests were opened within %s, %d are open",
		r.requests, round(r.last.Sub(r.since)), e.cluster.ActiveRequests))
}

// reopenings is how often each request must be opened anew to be called
// flapping.
const reopenings = 4

// delivery judges the age of what Envoy was delivered: timestamps are hints,
// certificates are the evidence.
func (j *judgement) delivery() {
	if j.has(UpdateRejected) {
		return // that is why nothing new was accepted
	}
	leaf := j.stages[Delivered].worst()
	if leaf == nil {
		return
	}
	age, overdue := j.overdue(leaf, j.envoy.secrets.At)
	if !overdue {
		return
	}
	last, hollow := j.resent(leaf)
	j.raise(DeliveryOverdue, Delivered, j.deliveryReason(leaf, hollow), age)
	if hollow {
		j.raise(HollowUpdate, Delivered, ReasonNone, fmt.Sprintf("%s; the last update that changed nothing came %s ago",
			age, round(j.now.Round(0).Sub(last.Round(0)))))
	}
}

// resent tells when an update that changed nothing last came, and whether a
// renewal was due then. Earlier ones mean nothing: SPIRE re-sends an unchanged
// SVID when anything else of the workload changes, tbot when a federated bundle
// does.
func (j *judgement) resent(leaf *seenLeaf) (last time.Time, hollow bool) {
	interval, _ := j.interval(leaf)
	late := max(interval/2, interval-j.cfg.Grace)
	if j.cfg.OneLook {
		issued := leaf.firstSeen.Round(0).Add(-leaf.earlier)
		last = j.envoy.updatedInVain(leaf.Certificate, issued)
		return last, !last.IsZero() && last.Sub(issued) >= late
	}
	last = j.envoy.lastHollow
	return last, !last.IsZero() && j.age(leaf, last) >= late
}

func (j *judgement) deliveryReason(leaf *seenLeaf, hollow bool) Reason {
	reason := j.envoy.streamReason()
	switch {
	case reason != ReasonNone && reason != ReasonUndetermined:
		return reason
	case hollow:
		return ReasonServerResends
	case reason == ReasonUndetermined:
		return ReasonUndetermined
	case j.showsSilence(leaf):
		return ReasonServerSilent
	default:
		return ReasonServerSilentOrResends
	}
}

// showsSilence tells whether a re-send would have been seen.
func (j *judgement) showsSilence(leaf *seenLeaf) bool {
	if !j.cfg.OneLook {
		return j.envoy.showsResends()
	}
	// Nothing came since the leaf did.
	issued := leaf.firstSeen.Round(0).Add(-leaf.earlier)
	last := j.envoy.updatedInVain(leaf.Certificate, issued)
	return !last.IsZero() && last.Sub(issued) < j.cfg.Grace
}

// contexts compares the leaves in use with all delivered ones: two providers
// of one name legitimately give two leaves.
func (j *judgement) contexts() {
	delivered, loaded := j.stages[Delivered], j.stages[Loaded]
	if j.envoy.contexts == nil || len(delivered.current) == 0 || len(loaded.current) == 0 {
		return
	}
	for _, leaf := range delivered.current {
		if j.envoy.contexts.At.Before(leaf.firstSeen) {
			return // the contexts were not asked since
		}
	}
	held, other := 0, 0
	for _, l := range j.envoy.contexts.Leaves {
		if delivered.holds(l.Leaf) {
			held += l.Contexts
		} else {
			other += l.Contexts
		}
	}
	switch {
	case held == 0:
		if j.holds(ContextStale, j.envoy.contexts.At) {
			if delivered.holds(j.envoy.doubted) {
				j.raise(UpdateRejected, Delivered, ReasonCounted, refused(j.envoy.doubted))
				return
			}
			j.raise(ContextStale, Loaded, ReasonNone, fmt.Sprintf("%d contexts, none with a delivered certificate", other))
		}
	case other > 0:
		if j.holds(ContextMixed, j.envoy.contexts.At) {
			j.raise(ContextMixed, Loaded, ReasonNone, fmt.Sprintf("%d contexts with a delivered certificate, %d with another", held, other))
		}
	}
}

// provenance judges who Envoy's certificate belongs to and who issued it. An
// SVID that was issued before Envoy's leaf came may be behind it, so it takes
// a newer one, or the grace, to say that the two differ.
func (j *judgement) provenance() {
	if j.issuedAt.IsZero() {
		return
	}
	for _, leaf := range j.stages[Delivered].current {
		if !slices.Contains(j.issuedIDs, leaf.SPIFFEID) && j.differs(IdentityMismatch, leaf) {
			j.raise(IdentityMismatch, Delivered, ReasonNone, fmt.Sprintf("Envoy has %s, issued is %s", leaf.SPIFFEID, strings.Join(j.issuedIDs, ", ")))
		}
		if err := j.verify(leaf.Certificate); err != nil && j.differs(UntrustedIssuer, leaf) {
			j.raise(UntrustedIssuer, Delivered, ReasonNone, fmt.Sprintf("issued by %q: %v", leaf.Issuer, err))
		}
	}
}

func (j *judgement) differs(name ProblemName, leaf *seenLeaf) bool {
	lasts := j.holds(name, j.envoy.secrets.At)
	return lasts || !j.issuedAt.Before(leaf.firstSeen)
}

// verify asks Config.Verify, once for each pair of leaf and bundle.
func (j *judgement) verify(leaf Certificate) error {
	if j.cfg.Verify == nil || len(leaf.Chain) == 0 || len(j.issuedBundle.Authorities) == 0 {
		return nil
	}
	bundle := j.issuedBundle.fingerprint()
	cache := &j.verifiedLeaf
	if !cache.known || cache.leaf != leaf.SHA256 || cache.bundle != bundle {
		cache.leaf, cache.bundle, cache.known = leaf.SHA256, bundle, true
		cache.err = j.cfg.Verify(leaf, j.issuedBundle, j.now)
	}
	return cache.err
}

// trustBundle compares each bundle in Envoy with the issued one. Envoy may
// have more: an authority that was retired, or other trust domains.
func (j *judgement) trustBundle() {
	e := &j.envoy
	if e.secrets == nil || len(j.issuedBundle.Authorities) == 0 || !j.cfg.OneLook && e.secrets.At.Before(j.bundleSince) {
		return
	}
	lacking := 0
	for _, b := range e.secrets.Bundle {
		if b.Err != "" {
			continue // not readable, the source says so
		}
		held := make(map[Fingerprint]bool)
		for _, d := range b.Bundles {
			if d.TrustDomain != "" && d.TrustDomain != j.issuedBundle.TrustDomain {
				continue
			}
			for _, a := range d.Authorities {
				held[a.SHA256] = true
			}
		}
		missing := 0
		for _, a := range j.issuedBundle.Authorities {
			if !held[a.SHA256] {
				missing++
			}
		}
		lacking = max(lacking, missing)
	}
	if lacking == 0 || !j.holds(TrustBundleStale, e.secrets.At) {
		return
	}
	reason := e.streamReason()
	if reason == ReasonNone {
		reason = ReasonServerSilentOrResends
	}
	j.raise(TrustBundleStale, Delivered, reason, fmt.Sprintf("%d of %d issued authorities are not in Envoy's bundle",
		lacking, len(j.issuedBundle.Authorities)))
}

// served judges what a peer is shown in a TLS handshake.
func (j *judgement) served() {
	h := &j.handshake
	if !j.cfg.Handshake || !h.seen {
		return
	}
	if h.Leaf == nil {
		if h.At.Sub(h.badSince) >= j.cfg.patience() {
			j.raise(ServedUnreachable, Served, handshakeReason(h.Failure), h.problem())
		}
		return
	}
	loaded := j.stages[Loaded]
	if loaded.holds(*h.Leaf) {
		return
	}
	for _, l := range loaded.current {
		if h.At.Before(l.firstSeen) || l.NotAfter.Before(h.Leaf.NotAfter) {
			return // one of the two looks is older than what the other saw
		}
	}
	if len(loaded.current) > 0 && j.holds(ServedStale, h.At) {
		j.raise(ServedStale, Served, ReasonNone, fmt.Sprintf("shown: serial %s, good until %s",
			h.Leaf.Serial, h.Leaf.NotAfter.UTC().Format(time.RFC3339)))
	}
}

func handshakeReason(f HandshakeFailure) Reason {
	switch f {
	case HandshakeRefused:
		return ReasonRefused
	case HandshakeSilent:
		return ReasonSilent
	case HandshakeClosed:
		return ReasonClosed
	case HandshakeNotTLS:
		return ReasonNotTLS
	default:
		return ReasonUndetermined
	}
}

// nextStart says what Istio's agent will do at its next start.
func (j *judgement) nextStart() (IdentityMode, NextStart) {
	if j.files == nil || j.files.Err != "" || j.api.SocketAnswers == nil {
		return ModeUnknown, StartUnknown
	}
	var socket Socket
	if j.api.Socket != nil {
		socket = *j.api.Socket
	}
	return foretell(j.files.Count() == len(CredentialFileNames()), *j.api.SocketAnswers, socket)
}

// transitions compares this judgement with the last and writes down what
// changed.
func (j *judgement) transitions() {
	for _, d := range catalogue {
		was, held := j.problems[d.Name]
		is, holds := j.found[d.Name]
		switch {
		case holds && !held:
			j.event(Event{At: j.now, Type: EventProblemRaised, Problem: d.Name, Stage: is.Stage, Message: sentence(is)})
		case held && !holds:
			j.event(Event{At: j.now, Type: EventProblemCleared, Problem: d.Name, Stage: was.Stage, Message: "No longer: " + was.Summary})
		case held && holds:
			is.Since = was.Since
			j.found[d.Name] = is
			if was.Reason != is.Reason || was.Severity != is.Severity {
				j.event(Event{At: j.now, Type: EventProblemChanged, Problem: d.Name, Stage: is.Stage, Message: sentence(is)})
			}
		}
	}
	j.problems = maps.Clone(j.found)
	if mode, next := j.nextStart(); mode != j.mode || next != j.next {
		j.mode, j.next = mode, next
		j.event(Event{At: j.now, Type: EventModeChanged, Message: next.Sentence()})
	}
	if state := j.overall(); state != j.state {
		j.state = state
		j.event(Event{At: j.now, Type: EventStateChanged, Message: "The state is " + string(state) + "."})
	}
}

func sentence(p Problem) string {
	if p.Detail == "" {
		return p.Summary
	}
	return strings.TrimSuffix(p.Summary, ".") + ": " + p.Detail
}

// overall is the verdict in one word.
func (j *judgement) overall() State {
	state := Healthy
	for _, p := range j.found {
		if p.Severity == Critical {
			return Broken
		}
		state = Degraded
	}
	if state != Healthy {
		return state
	}
	for _, stage := range j.observed() {
		if len(j.stages[stage].current) == 0 {
			return Unknown
		}
	}
	if j.files == nil || j.files.Err != "" {
		return Unknown
	}
	return Healthy
}

// observed are the stages that are looked at.
func (l *Ledger) observed() []Stage {
	var stages []Stage
	if !l.cfg.NoWorkloadAPI {
		stages = append(stages, Issued)
	}
	stages = append(stages, Delivered, Loaded)
	if l.cfg.Handshake {
		stages = append(stages, Served)
	}
	return stages
}

func (j *judgement) verdict() Verdict {
	v := Verdict{
		At: j.now, State: j.state, IdentityMode: j.mode, NextStart: j.next,
		Problems:          []Problem{},
		VerifiedRotations: j.verified, HollowUpdates: j.hollow, RejectedUpdates: j.rejected,
		BundleNotAfter: make(map[Stage]time.Time),
		Events:         append([]Event{}, j.events...), // [] rather than null
		Recheck:        j.recheck,
	}
	for _, d := range catalogue {
		if p, ok := j.found[d.Name]; ok {
			v.Problems = append(v.Problems, p)
		}
	}
	slices.SortStableFunc(v.Problems, func(a, b Problem) int {
		return cmp.Compare(rank(a.Severity), rank(b.Severity))
	})
	interval, source := j.interval(j.stages[Issued].worst())
	v.IntervalSeconds, v.IntervalSource = interval.Seconds(), source
	for _, s := range Stages() {
		v.Stages = append(v.Stages, j.stageView(s))
	}
	v.Sources = j.sourceViews()
	if t := j.issuedBundle.NotAfter(); !t.IsZero() {
		v.BundleNotAfter[Issued] = t
	}
	if e := &j.envoy; e.secrets != nil {
		for _, b := range e.secrets.Bundle {
			for _, td := range b.Bundles {
				t, known := v.BundleNotAfter[Delivered]
				if n := td.NotAfter(); !n.IsZero() && (!known || n.Before(t)) {
					v.BundleNotAfter[Delivered] = n
				}
			}
		}
	}
	v.Files = j.filesView()
	v.Envoy = j.envoyView()
	v.Summary = summary(v, j.observed())
	if j.cfg.OneLook && v.State == Healthy {
		v.Summary = "Nothing is wrong that one look can see."
	}
	return v
}

func rank(s Severity) int {
	if s == Critical {
		return 0
	}
	return 1
}

func summary(v Verdict, observed []Stage) string {
	if len(v.Problems) > 0 {
		text := v.Problems[0].Summary
		if n := len(v.Problems) - 1; n > 0 {
			text += fmt.Sprintf(" (%d more)", n)
		}
		return text
	}
	if v.State == Unknown {
		var missing []string
		for _, s := range v.Stages {
			if s.Certificate == nil && slices.Contains(observed, s.Stage) {
				missing = append(missing, string(s.Stage))
			}
		}
		if len(missing) == 0 {
			return "Not everything could be seen yet."
		}
		return "No certificate was seen yet at: " + strings.Join(missing, ", ") + "."
	}
	return fmt.Sprintf("Rotation works: %d verified so far.", v.VerifiedRotations)
}

func view(c Certificate) *CertificateView {
	return &CertificateView{
		SPIFFEID: c.SPIFFEID, Serial: c.Serial, Issuer: c.Issuer,
		NotBefore: c.NotBefore.UTC(), NotAfter: c.NotAfter.UTC(), SHA256: c.SHA256.String(),
	}
}

func (j *judgement) stageView(s Stage) StageView {
	record := j.stages[s]
	v := StageView{Stage: s, Leaves: len(record.current), Rotations: record.rotations}
	if !record.seenAt.IsZero() {
		v.SeenAt = &record.seenAt
	}
	if leaf := record.worst(); leaf != nil {
		v.Certificate = view(leaf.Certificate)
		if v.Certificate.Issuer == "" { // /certs does not tell it, the dump does
			if same := j.stages[Delivered].find(leaf.Certificate); same != nil {
				v.Certificate.Issuer, v.Certificate.SHA256 = same.Issuer, same.SHA256.String()
			}
		}
		firstSeen := leaf.firstSeen
		age, remaining := j.age(leaf, j.now).Seconds(), leaf.NotAfter.Sub(j.now.Round(0)).Seconds()
		v.FirstSeen, v.AgeSeconds, v.RemainingSeconds = &firstSeen, &age, &remaining
	}
	if v.SeenAt != nil {
		seenAt := *v.SeenAt
		v.SeenAt = &seenAt
	}
	return v
}

func (j *judgement) sourceViews() []SourceView {
	good := func(source Source, up bool, detail string, at time.Time) SourceView {
		s := SourceView{Source: source, Up: up, Detail: detail}
		if !at.IsZero() {
			s.LastSuccess = &at
		}
		return s
	}
	filesUp, filesErr := j.files != nil, ""
	if j.files != nil {
		filesUp, filesErr = j.files.Err == "", j.files.Err
	}
	views := []SourceView{
		good(SourceCredentialFiles, filesUp, filesErr, j.filesGood),
		good(SourceWorkloadAPI, j.api.State == WorkloadAPIServing, j.api.problem(), j.api.lastGood),
		good(SourceEnvoyAdmin, j.envoy.seen && j.envoy.err == "", j.envoy.err, j.envoy.lastGood),
	}
	if h := &j.handshake; j.cfg.Handshake {
		detail := ""
		if h.seen {
			detail = h.problem()
		}
		views = append(views, good(SourceHandshake, h.seen && h.Leaf != nil, detail, h.lastGood))
	}
	return views
}

func (j *judgement) filesView() FilesView {
	v := FilesView{Present: make(map[CredentialFile]bool)}
	if j.files == nil {
		return v
	}
	v.DirExists, v.Polling, v.PollingReason = j.files.DirExists, j.files.Polling, j.files.PollingReason
	if j.files.Err != "" {
		return v // what cannot be seen is not absent
	}
	for _, name := range CredentialFileNames() {
		v.Present[name] = j.files.Present[name]
	}
	if j.files.Leaf != nil {
		v.Leaf = view(*j.files.Leaf)
	}
	return v
}

func (j *judgement) envoyView() EnvoyView {
	e := &j.envoy
	v := EnvoyView{Version: e.version, State: e.state, AdminSeconds: e.spent.Seconds(), StatsVisible: e.stats != nil}
	if !e.started.Earliest.IsZero() {
		started := e.started.Earliest.UTC()
		v.Started = &started
	}
	if e.cluster != nil && e.cluster.Found {
		n := e.cluster.ActiveRequests
		v.SDSStreams = &n
	}
	if e.secrets != nil {
		for _, s := range e.secrets.Identity {
			v.IdentityUpdated = earliest(v.IdentityUpdated, s.LastUpdated)
		}
		for _, s := range e.secrets.Bundle {
			v.BundleUpdated = earliest(v.BundleUpdated, s.LastUpdated)
		}
	}
	return v
}

// earliest is the earlier of two times, of which either may be missing.
func earliest(a *time.Time, b time.Time) *time.Time {
	if b.IsZero() || a != nil && a.Before(b) {
		return a
	}
	return &b
}
