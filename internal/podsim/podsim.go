// Package podsim plays the evidence of a pod over time, for tests of the
// judgement: an issuer that renews, an Envoy that takes what it is sent, and
// their known faults. It has no clock and does no I/O; whoever drives it says
// what time it is, which may be that of a testing/synctest bubble.
//
// What the simulated Envoy shows for each event is the table of the
// measurements on real Envoys: up to 1.36 an identical secret moves
// last_updated, from 1.37 on it moves nothing; a rejected secret stands in
// the dump while last_updated stays.
package podsim

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"time"

	"svid-watchdog/internal/rotation"
)

// Issuer is whose habits the identity provider has.
type Issuer string

// The issuers.
const (
	// Tbot issues an SVID for each stream, renews on a timer of the stream,
	// back-dates by a minute and writes its send time as version.
	Tbot Issuer = "tbot"
	// SPIRE shares one SVID, renews at half of its lifetime, back-dates by
	// ten seconds and counts versions.
	SPIRE Issuer = "spire"
)

// Config describes a pod.
type Config struct {
	Issuer Issuer
	// Modern is Envoy 1.37 and newer, else 1.36 and older.
	Modern bool
	// Stats is whether Envoy shows the sds. statistics.
	Stats bool
	// TTL is an SVID's lifetime from its issuance; Renewal the distance of
	// two, 0 for the issuer's habit.
	TTL, Renewal time.Duration
	// Skew is by how much the issuer's clock is ahead of the pod's.
	Skew time.Duration
	// Elsewhere gives the issuer a clock of its own, which is not set along
	// with the pod's.
	Elsewhere bool
	// Rand, if set, makes renewals as unsteady as the real ones: see gap.
	Rand *rand.Rand
	// Streams is how many providers Envoy has of the identity, 1 if zero.
	Streams int
}

// Pod is a simulated pod. Set the fault fields at any time.
type Pod struct {
	cfg   Config
	start time.Time

	// Resend makes the SDS side re-send the SVID that it has at each renewal,
	// under a new version: tbot before 18.6.4.
	Resend bool
	// SDSSilent makes the SDS side send nothing more; SDSDown cuts its streams
	// and refuses new ones by connection, SDSClosed by closing each at once.
	SDSSilent, SDSDown, SDSClosed bool
	// SDSFlapping makes the SDS side answer each stream and close it soon
	// after; NotEntitled makes it close the streams of the identity alone.
	SDSFlapping, NotEntitled bool
	// BundleStuck makes the SDS side send no new trust bundle.
	BundleStuck bool
	// SecondWarms adds a provider of the identity that is never answered.
	SecondWarms bool
	// ListenerDown makes handshakes fail, ServedStuck shows in them what was
	// shown when it was set.
	ListenerDown, ServedStuck bool
	// APISilent makes the Workload API bring nothing more; APIState, if set,
	// is what it answers instead.
	APISilent bool
	APIState  *rotation.WorkloadAPI
	// Starved makes the SDS side re-send it twice as often, as tbot does when a
	// federated bundle changes and the renewal timer starts anew each time.
	Starved bool
	// Expired makes the SDS side hand out what has expired.
	Expired bool
	// BadKey makes Envoy refuse what the SDS side sends.
	BadKey bool
	// ContextsStuck keeps Envoy's contexts on what they hold, StuckHalf one
	// of the two.
	ContextsStuck, StuckHalf bool
	// AdminDown makes Envoy's admin interface silent.
	AdminDown bool
	// Withhold makes the SDS side not answer for the identity.
	Withhold bool
	// ForeignCA and OtherID change what the SDS side hands out.
	ForeignCA, OtherID bool
	// Files are the credential files that exist.
	Files []rotation.CredentialFile

	issued  uint64
	ca      byte   // grows with each change of the CA
	cas     []byte // the authorities of the trust bundle
	held    []byte // those that Envoy was delivered
	shown   *rotation.Certificate
	api     svid
	shared  svid
	stream  int
	sent    *rotation.Issuance
	apiDue  time.Time
	streams []*sdsStream

	envoyStart        time.Time
	bundleUpdated     time.Time
	success, rejected uint64
	connectFail       uint64
	requests          uint64
}

type svid struct {
	cert rotation.Certificate
	due  time.Time // of its renewal
}

// sdsStream is one provider of the identity in Envoy.
type sdsStream struct {
	held    svid // what the server sent last
	due     time.Time
	dump    rotation.Certificate
	updated time.Time
	version time.Time
	loaded  rotation.Certificate
	tried   time.Time
	active  bool
	up      bool
}

// ID is the SPIFFE ID of the simulated workload.
const ID = "spiffe://example.test/ns/shop/sa/front-end"

// New returns a pod whose life begins at start.
func New(cfg Config, start time.Time) *Pod {
	if cfg.Renewal == 0 {
		if cfg.Renewal = cfg.TTL / 3; cfg.Issuer == SPIRE {
			// At half life by the node's clock, which the server's is ahead of.
			cfg.Renewal = (cfg.TTL+backdate(SPIRE))/2 - backdate(SPIRE) + cfg.Skew
		}
	}
	if cfg.Streams == 0 {
		cfg.Streams = 1
	}
	p := &Pod{cfg: cfg, start: start, cas: []byte{0}}
	p.RestartEnvoy(start)
	return p
}

func backdate(i Issuer) time.Duration {
	if i == SPIRE {
		return 10 * time.Second
	}
	return time.Minute
}

// issue makes a new SVID.
func (p *Pod) issue(now time.Time) svid {
	p.issued++
	wall := now.Round(0)
	if p.cfg.Elsewhere {
		wall = p.start.Round(0).Add(now.Sub(p.start))
	}
	wall = wall.UTC().Truncate(time.Second).Add(p.cfg.Skew)
	c := rotation.Certificate{
		SPIFFEID: ID, Serial: fmt.Sprintf("%x", p.issued), Issuer: "CN=example.test",
		NotBefore: wall.Add(-backdate(p.cfg.Issuer)), NotAfter: wall.Add(p.cfg.TTL),
	}
	binary.BigEndian.PutUint64(c.SHA256[:], p.issued)
	c.Chain = [][]byte{[]byte("good")}
	return svid{c, now.Add(p.gap())}
}

// spireSync is how often SPIRE's agent looks for SVIDs to renew, by default.
const spireSync = 5 * time.Second

// gap is the distance to the next renewal. tbot's timer is steady, and each
// issuance takes its time. SPIRE draws a lot at each of its looks, whether the
// life left is less than half of the lifetime, give or take a tenth of it
// (spire: pkg/common/rotationutil), so that it renews early and unsteadily.
func (p *Pod) gap() time.Duration {
	r := p.cfg.Rand
	if r == nil {
		return p.cfg.Renewal
	}
	if p.cfg.Issuer == Tbot {
		return p.cfg.Renewal + time.Duration(r.Float64()*r.Float64()*float64(5*time.Second))
	}
	half := (p.cfg.TTL + backdate(SPIRE)) / 2
	for left := half * 11 / 10; ; left -= spireSync {
		if drawn := half*9/10 + time.Duration(r.Int64N(int64(half/5))); left <= drawn {
			return max(spireSync, p.cfg.TTL-left)
		}
	}
}

// fresh is what the issuer hands to a stream now.
func (p *Pod) fresh(now time.Time) svid {
	if p.cfg.Issuer == Tbot {
		return p.issue(now)
	}
	if p.shared.due.IsZero() || !now.Before(p.shared.due) {
		p.shared = p.issue(now)
	}
	return p.shared
}

// RestartEnvoy begins a new life of Envoy.
func (p *Pod) RestartEnvoy(now time.Time) {
	p.envoyStart = now
	p.success, p.rejected, p.connectFail, p.requests = 0, 0, 0, 0
	p.streams, p.held, p.shown = nil, nil, nil
	for range p.cfg.Streams {
		p.streams = append(p.streams, &sdsStream{})
	}
	p.bundleUpdated = now
}

// RestartIssuer cuts all streams, as a restart of tbot does; they come back
// at once.
func (p *Pod) RestartIssuer(now time.Time) {
	p.apiDue = time.Time{}
	if p.cfg.Issuer == SPIRE {
		p.shared = svid{}
	}
	for _, s := range p.streams {
		s.up = false
	}
}

// RestartWorkloadAPI begins a new stream of the Workload API alone, as a
// restart of the watchdog does.
func (p *Pod) RestartWorkloadAPI() { p.apiDue = time.Time{} }

// Advance lets happen what is due. Call it at least once a second.
func (p *Pod) Advance(now time.Time) {
	if p.APIState != nil {
		p.apiDue = time.Time{}
	} else if p.apiDue.IsZero() || !p.APISilent && !now.Before(p.apiDue) {
		if p.apiDue.IsZero() {
			p.stream++
		}
		p.api = p.fresh(now)
		p.apiDue = p.api.due
		p.sent = &rotation.Issuance{
			At: now, Stream: p.stream, Leaf: p.api.cert, SPIFFEIDs: []string{ID},
			Bundle: p.bundle(p.cas),
		}
	}
	if !p.SDSDown && !p.SDSClosed && !p.SDSSilent && (!p.BundleStuck || p.held == nil) {
		p.held = p.cas
	}
	for _, s := range p.streams {
		p.advanceStream(s, now)
	}
}

// tries is how far apart Envoy's tries are on average, once its backoff has
// grown to 30 s (envoy: grpc_stream.h).
const tries = 15 * time.Second

// farFuture is the end of every simulated authority.
var farFuture = time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)

func (p *Pod) bundle(cas []byte) rotation.TrustBundle {
	b := rotation.TrustBundle{TrustDomain: "example.test"}
	for _, ca := range cas {
		b.Authorities = append(b.Authorities, rotation.Authority{SHA256: rotation.Fingerprint{1, ca}, NotAfter: farFuture})
	}
	return b
}

func (p *Pod) advanceStream(s *sdsStream, now time.Time) {
	switch {
	case p.SDSDown:
		s.up = false
		p.connectFail++
		return
	case p.SDSClosed:
		s.up = false
		p.requests++
		return
	case p.NotEntitled:
		if s.up = false; now.Sub(s.tried) >= tries {
			s.tried = now
			p.requests++
		}
		return
	case p.SDSFlapping && s.up && now.Unix()%4 == 0:
		s.up = false // closed; it is opened again a second later
		return
	case p.Withhold:
		s.up = true
		return
	case !s.up:
		s.up = true
		p.requests += 2
		s.held = p.fresh(now)
	case p.SDSSilent || now.Before(s.due):
		return
	case !p.Resend && !p.Starved:
		s.held = p.fresh(now)
	}
	s.due = s.held.due
	switch {
	case p.Starved:
		s.due = now.Add(p.cfg.Renewal / 2)
	case p.Resend:
		s.due = now.Add(p.cfg.Renewal)
	}
	p.deliver(s, now)
}

// RenewNow renews on all streams out of turn, as a change of the local CA
// makes tbot do.
func (p *Pod) RenewNow(now time.Time) {
	p.ca++
	p.cas = []byte{p.ca}
	p.renew(now)
}

// AddAuthority puts a new authority beside the old one, RetireAuthority drops
// the old one: a rotation of the bundle with overlap. Either renews all SVIDs.
func (p *Pod) AddAuthority(now time.Time) {
	p.ca++
	p.cas = []byte{p.ca - 1, p.ca}
	p.renew(now)
}

// RetireAuthority drops the old authority, see AddAuthority.
func (p *Pod) RetireAuthority(now time.Time) {
	p.cas = []byte{p.ca}
	p.renew(now)
}

func (p *Pod) renew(now time.Time) {
	p.shared = svid{}
	p.apiDue = now
	for _, s := range p.streams {
		s.due = now
	}
}

// Resent makes the SDS side send once what it had sent before, as SPIRE does
// when anything of the workload changes, and tbot with a federated bundle.
func (p *Pod) Resent(now time.Time) {
	for _, s := range p.streams {
		p.deliver(s, now)
	}
}

// Push makes the SDS side send something at once.
func (p *Pod) Push(now time.Time) {
	for _, s := range p.streams {
		if !p.Resend && !p.Starved {
			s.held = p.issue(now)
			s.due = now.Add(p.cfg.Renewal)
		}
		p.deliver(s, now)
	}
}

// deliver is what Envoy does with a secret.
func (p *Pod) deliver(s *sdsStream, now time.Time) {
	cert := s.held.cert
	if p.ForeignCA {
		cert.Chain, cert.Issuer = [][]byte{[]byte("foreign")}, "O=cluster.local"
		cert.SHA256[31] = 1
	}
	if p.Expired {
		cert.NotAfter = now.Round(0).Add(-time.Second)
		cert.SHA256[29] = 1
	}
	if p.OtherID {
		cert.SPIFFEID = "spiffe://example.test/ns/shop/sa/other"
		cert.SHA256[30] = 1
	}
	changed := !s.active || cert.SHA256 != s.dump.SHA256
	s.active = true
	switch {
	case changed && p.BadKey:
		s.dump = cert
		p.rejected++
		if p.cfg.Modern {
			s.version = now
		}
	case changed:
		s.dump, s.updated, s.version = cert, now, now
		p.success++
		if !p.ContextsStuck {
			s.loaded = cert
		}
	default:
		p.success++
		if !p.cfg.Modern {
			s.updated, s.version = now, now
		}
	}
	if !p.cfg.Modern {
		p.bundleUpdated = now
	}
}

// NextDue is when the identity provider renews next on any stream.
func (p *Pod) NextDue() time.Time {
	due := p.apiDue
	for _, s := range p.streams {
		if due.IsZero() || s.due.Before(due) {
			due = s.due
		}
	}
	return due
}

// Issuance is the message that the Workload API has brought since the last
// call, nil if there is none.
func (p *Pod) Issuance() *rotation.Issuance {
	i := p.sent
	p.sent = nil
	return i
}

// WorkloadAPI is the state of the Workload API stream.
func (p *Pod) WorkloadAPI(now time.Time) rotation.WorkloadAPI {
	answers := true
	if p.APIState != nil {
		state := *p.APIState
		state.At = now
		return state
	}
	return rotation.WorkloadAPI{At: now, State: rotation.WorkloadAPIServing, SocketAnswers: &answers}
}

// CredentialFiles is a look at the credentials directory.
func (p *Pod) CredentialFiles(now time.Time) rotation.CredentialFiles {
	f := rotation.CredentialFiles{At: now, DirExists: true, Present: make(map[rotation.CredentialFile]bool)}
	for _, name := range p.Files {
		f.Present[name] = true
	}
	return f
}

// Envoy is a look at Envoy.
func (p *Pod) Envoy(now time.Time) rotation.Envoy {
	if p.AdminDown {
		return rotation.Envoy{At: now, Err: "no answer within 5s"}
	}
	o := rotation.Envoy{
		At: now, Started: rotation.Start{Earliest: p.envoyStart.Round(0)}, Version: "1.36.4", State: "LIVE", Spent: 3 * time.Millisecond,
		Secrets:    &rotation.Secrets{At: now, WarmingKnown: true},
		Contexts:   &rotation.Contexts{At: now},
		SDSCluster: &rotation.SDSCluster{At: now, Found: true, ConnectFailures: p.connectFail, Requests: p.requests},
	}
	if p.cfg.Modern {
		o.Version = "1.40.0"
	}
	if p.cfg.Stats {
		o.Stats = &rotation.SDSStats{At: now, UpdateSuccess: p.success, UpdateRejected: p.rejected}
	}
	if p.SecondWarms {
		o.Secrets.IdentityWarming++
		o.SDSCluster.ActiveRequests++
	}
	for i, s := range p.streams {
		if s.up {
			o.SDSCluster.ActiveConnections = 1
			o.SDSCluster.ActiveRequests += 2
		}
		if p.NotEntitled { // the bundle's stream stays
			o.SDSCluster.ActiveConnections = 1
			o.SDSCluster.ActiveRequests++
		}
		if !s.active {
			o.Secrets.IdentityWarming++
			continue
		}
		meta := rotation.SecretMeta{LastUpdated: s.updated.Round(0), Version: s.version.UTC().Format(time.RFC3339Nano), Content: s.dump.SHA256}
		if p.cfg.Issuer == Tbot {
			meta.SentAt = s.version.Round(0)
		}
		o.Secrets.Identity = append(o.Secrets.Identity, rotation.DeliveredIdentity{SecretMeta: meta, Leaf: s.dump})
		if p.StuckHalf && i == 0 && s.loaded.Serial != "" {
			old := s.loaded
			old.Serial = "0ld"
			o.Contexts.Leaves = append(o.Contexts.Leaves, context(old))
		}
		if s.loaded.Serial != "" {
			o.Contexts.Leaves = append(o.Contexts.Leaves, context(s.loaded))
		}
	}
	if p.held != nil {
		for range p.streams {
			o.Secrets.Bundle = append(o.Secrets.Bundle, rotation.DeliveredBundle{
				SecretMeta: rotation.SecretMeta{LastUpdated: p.bundleUpdated.Round(0)}, Bundles: []rotation.TrustBundle{p.bundle(p.held)},
			})
		}
	} else {
		o.Secrets.BundleWarming = len(p.streams)
	}
	return o
}

// Handshake is a TLS handshake with Envoy's listener.
func (p *Pod) Handshake(now time.Time) rotation.Handshake {
	leaf := p.streams[0].loaded
	switch {
	case p.ListenerDown || p.AdminDown:
		return rotation.Handshake{At: now, Failure: rotation.HandshakeRefused}
	case leaf.Serial == "":
		return rotation.Handshake{At: now, Failure: rotation.HandshakeClosed}
	case !p.ServedStuck || p.shown == nil:
		p.shown = &leaf
	}
	shown := *p.shown
	return rotation.Handshake{At: now, Leaf: &shown}
}

// context is a leaf as /certs shows it: without issuer and digest.
func context(c rotation.Certificate) rotation.LoadedLeaf {
	return rotation.LoadedLeaf{Contexts: 1, Leaf: rotation.Certificate{
		SPIFFEID: c.SPIFFEID, Serial: c.Serial, NotBefore: c.NotBefore, NotAfter: c.NotAfter,
	}}
}

// Verify is a rotation.Config.Verify for simulated certificates.
func Verify(leaf rotation.Certificate, _ rotation.TrustBundle, _ time.Time) error {
	if string(leaf.Chain[0]) != "good" {
		return fmt.Errorf("certificate signed by unknown authority")
	}
	return nil
}
