package rotation

import (
	"fmt"
	"slices"
	"time"
)

// Config is what the judgement depends on besides the evidence.
type Config struct {
	// Interval is the renewal interval, 0 to learn it from the Workload API
	// stream.
	Interval time.Duration
	// Grace is how long a condition may last that usually heals itself.
	Grace time.Duration
	// Margin is how much life a certificate must have left, 0 for a sixth of
	// its lifetime.
	Margin time.Duration
	// Verify reports whether a leaf chains to an authority of the bundle; nil
	// leaves untrusted_issuer unjudged. It is a function, as this package
	// parses no certificates.
	Verify func(leaf Certificate, bundle TrustBundle, now time.Time) error
	// Handshake tells that the stage served is observed too.
	Handshake bool
	// NoWorkloadAPI tells that the Workload API is not asked for SVIDs, so
	// that the stage issued is not observed.
	NoWorkloadAPI bool
	// OneLook judges by what one look finds: nobody has watched before, so that
	// what holds is taken to last, and each leaf is dated by itself.
	OneLook bool
}

// patience is how long a condition must last that usually heals itself. Grace
// is also what a renewal may be late by, with one look too.
func (c Config) patience() time.Duration {
	if c.OneLook {
		return 0
	}
	return c.Grace
}

// Ledger remembers what each stage showed, and judges it. It is not safe for
// concurrent use.
type Ledger struct {
	cfg    Config
	stages map[Stage]*stageRecord

	files     *CredentialFiles
	filesGood time.Time // when the directory was last read

	api struct {
		WorkloadAPI
		seen     bool
		badSince time.Time // of the present run of failures
		lastGood time.Time
	}
	issuedIDs    []string
	issuedBundle TrustBundle
	issuedAt     time.Time
	bundleSince  time.Time // since when the issued bundle is what it is
	renewal      renewal

	envoy envoyRecord

	handshake struct {
		Handshake
		seen     bool
		badSince time.Time // of the present run of failures
		lastGood time.Time
	}

	problems map[ProblemName]Problem
	mode     IdentityMode
	next     NextStart
	state    State
	// held is since when a condition holds without a break, for those that
	// become a problem after the grace.
	held map[ProblemName]time.Time

	verified, hollow, rejected uint64

	events []Event
	seq    uint64

	judgedAt time.Time
	clockAt  time.Time // since when the two clocks have gone together
	epoch    int       // grows with each step of the wall clock

	verifiedLeaf struct {
		leaf, bundle Fingerprint
		err          error
		known        bool
	}
}

// maxEvents is how many events are kept.
const maxEvents = 100

// NewLedger returns an empty ledger.
func NewLedger(cfg Config) *Ledger {
	l := &Ledger{
		cfg:      cfg,
		stages:   make(map[Stage]*stageRecord),
		problems: make(map[ProblemName]Problem),
		held:     make(map[ProblemName]time.Time),
		mode:     ModeUnknown,
		next:     StartUnknown,
		state:    Unknown,
	}
	for _, s := range Stages() {
		l.stages[s] = &stageRecord{}
	}
	l.envoy.reset()
	return l
}

// Rotations counts the new leaves that a stage showed after its first.
func (l *Ledger) Rotations(s Stage) uint64 { return l.stages[s].rotations }

func (l *Ledger) event(e Event) {
	l.seq++
	e.Seq = l.seq
	l.events = append(l.events, e)
	if n := len(l.events) - maxEvents; n > 0 {
		l.events = slices.Clone(l.events[n:])
	}
}

// RecordFiles takes a look at the credentials directory.
func (l *Ledger) RecordFiles(f CredentialFiles) {
	was, known := l.files, l.files != nil
	l.files = &f
	if f.Err == "" {
		l.filesGood = f.At
	}
	l.sourceEvent(f.At, SourceCredentialFiles, known, known && was.Err == "", f.Err)
}

// RecordWorkloadAPI takes a state of the Workload API stream.
func (l *Ledger) RecordWorkloadAPI(w WorkloadAPI) {
	was, seen := l.api.State == WorkloadAPIServing, l.api.seen
	if w.SocketAnswers == nil {
		w.SocketAnswers = l.api.SocketAnswers // not known anew
	}
	if w.Socket == nil {
		w.Socket = l.api.Socket
	}
	l.api.WorkloadAPI = w
	if w.State == WorkloadAPINotAsked {
		l.api.badSince = time.Time{}
		return
	}
	if w.State == WorkloadAPIServing {
		l.api.seen = true
		l.api.badSince = time.Time{}
		l.api.lastGood = w.At
		l.sourceEvent(w.At, SourceWorkloadAPI, seen, was, "")
		return
	}
	if l.api.badSince.IsZero() {
		l.api.badSince = w.At
	}
	if w.State != WorkloadAPIConnecting {
		l.api.seen = true
		l.sourceEvent(w.At, SourceWorkloadAPI, seen, was, w.problem())
	}
}

// NotAskedDetail is the detail of the source workload_api in a check that asks
// for no SVID.
const NotAskedDetail = "not asked for an SVID"

// problem says what is wrong, in words.
func (w WorkloadAPI) problem() string {
	switch {
	case w.State == WorkloadAPIServing || w.State == WorkloadAPIConnecting:
		return ""
	case w.State == WorkloadAPINotAsked:
		return NotAskedDetail
	case w.Detail != "":
		return w.Detail
	case w.Reason != ReasonNone:
		return string(w.Reason)
	default:
		return string(w.State)
	}
}

// RecordIssuance takes a message of the Workload API stream.
func (l *Ledger) RecordIssuance(i Issuance) {
	fresh := l.stages[Issued].observe(i.At, l.epoch, []Certificate{i.Leaf})
	if l.bundleSince.IsZero() || l.issuedBundle.fingerprint() != i.Bundle.fingerprint() {
		l.bundleSince = i.At
	}
	l.issuedIDs, l.issuedBundle, l.issuedAt = i.SPIFFEIDs, i.Bundle, i.At
	if len(fresh) == 0 {
		return
	}
	_, before := l.renewal.learned()
	l.renewal.learn(i)
	l.rotated(i.At, Issued, fresh)
	if learned, now := l.renewal.learned(); now && !before && l.cfg.Interval == 0 {
		l.event(Event{At: i.At, Type: EventIntervalLearned, Source: SourceWorkloadAPI,
			Message: fmt.Sprintf("The identity provider renews every %s.", round(learned))})
	}
}

// RecordHandshake takes a TLS handshake with Envoy's listener.
func (l *Ledger) RecordHandshake(h Handshake) {
	r := &l.handshake
	was, seen := r.badSince.IsZero(), r.seen
	r.Handshake, r.seen = h, true
	if h.Leaf == nil {
		l.sourceEvent(h.At, SourceHandshake, seen, was, h.problem())
		if r.badSince.IsZero() {
			r.badSince = h.At
		}
		return
	}
	l.sourceEvent(h.At, SourceHandshake, seen, was, "")
	r.badSince, r.lastGood = time.Time{}, h.At
	l.rotated(h.At, Served, l.stages[Served].observe(h.At, l.epoch, []Certificate{*h.Leaf}))
}

// problem says what is wrong, in words.
func (h Handshake) problem() string {
	switch {
	case h.Leaf != nil:
		return ""
	case h.Err != "":
		return h.Err
	case h.Failure != HandshakeOK:
		return string(h.Failure)
	default:
		return string(HandshakeFailed)
	}
}

// rotated writes down the leaves that a stage shows for the first time.
func (l *Ledger) rotated(at time.Time, stage Stage, fresh []*seenLeaf) {
	for _, f := range fresh {
		what := "New certificate"
		if f.initial {
			what = "First certificate"
		}
		l.event(Event{At: at, Type: EventRotation, Stage: stage,
			Message: fmt.Sprintf("%s %s, good until %s.", what, stage, f.NotAfter.UTC().Format(time.RFC3339))})
	}
}

// sourceEvent writes down that a source began or ceased to answer.
func (l *Ledger) sourceEvent(at time.Time, source Source, known, was bool, problem string) {
	up := problem == ""
	switch {
	case known && was == up:
	case up:
		l.event(Event{At: at, Type: EventSourceUp, Source: source, Message: sourceTitle(source) + " answers."})
	default:
		l.event(Event{At: at, Type: EventSourceDown, Source: source, Message: sourceTitle(source) + " does not answer: " + problem})
	}
}

func sourceTitle(s Source) string {
	switch s {
	case SourceCredentialFiles:
		return "The credentials directory"
	case SourceWorkloadAPI:
		return "The Workload API"
	case SourceEnvoyAdmin:
		return "Envoy's admin interface"
	case SourceHandshake:
		return "The TLS handshake"
	}
	return string(s)
}

// round shortens a duration for people.
func round(d time.Duration) time.Duration {
	if d.Abs() < 10*time.Second {
		return d.Round(100 * time.Millisecond)
	}
	return d.Round(time.Second)
}
