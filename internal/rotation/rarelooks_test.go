package rotation_test

import (
	"testing"
	"time"

	"svid-watchdog/internal/podsim"
	"svid-watchdog/internal/rotation"
)

// looks plays looks at Envoy alone at the given times, and says what was
// raised at any of them or between them.
func (l *life) looks(at []time.Duration, before func(time.Duration)) []rotation.ProblemName {
	var raised []rotation.ProblemName
	judge := func() {
		for _, p := range l.ledger.Judge(l.now).Problems {
			raised = append(raised, p.Name)
		}
	}
	begin := l.now
	for _, d := range at {
		for ; l.now.Sub(begin) < d; l.now = l.now.Add(time.Second) {
			before(l.now.Sub(begin))
			l.pod.Advance(l.now)
			if i := l.pod.Issuance(); i != nil {
				l.ledger.RecordIssuance(*i)
			}
			l.ledger.RecordWorkloadAPI(l.pod.WorkloadAPI(l.now))
			judge()
		}
		l.ledger.RecordEnvoy(l.pod.Envoy(l.now))
		judge()
	}
	return raised
}

// TestRareLooks: where looks are far apart, what was seen once and healed
// before the grace was over is no problem.
func TestRareLooks(t *testing.T) {
	for name, turn := range map[string]func(*podsim.Pod, bool){
		"stream down":  func(p *podsim.Pod, on bool) { p.SDSDown = on },
		"admin silent": func(p *podsim.Pod, on bool) { p.AdminDown = on },
		"mixed":        func(p *podsim.Pod, on bool) { p.StuckHalf = on },
	} {
		t.Run(name, func(t *testing.T) {
			everyPod(t, func(t *testing.T, cfg podsim.Config) {
				l := begin(t, cfg)
				l.run(2*time.Hour + 3*time.Minute)
				minutes := []time.Duration{0, 1 * time.Minute, 4 * time.Minute, 7 * time.Minute, 10 * time.Minute}
				raised := l.looks(minutes, func(at time.Duration) { turn(l.pod, at > 30*time.Second && at < 80*time.Second) })
				if len(raised) > 0 {
					t.Errorf("raised %v", raised)
				}
			})
		})
	}
}

// TestDatedBack: a leaf that was there before the watchdog is dated back once
// the issuer's lead is known; its assumed interval is then that of its whole
// life, not of what was left when it was first seen.
func TestDatedBack(t *testing.T) {
	for _, joined := range []time.Duration{5 * time.Minute, 12 * time.Minute, 20 * time.Minute, 27 * time.Minute} {
		l := begin(t, podsim.Config{Issuer: podsim.Tbot, TTL: ttl, Renewal: ttl / 2})
		l.run(joined)
		l.newLedger()
		l.pod.RestartWorkloadAPI()
		l.run(3 * time.Hour)
		l.quiet()
	}
}

// TestServedVerifies: with handshakes a rotation is verified when one shows
// the new leaf, in the same life of Envoy.
func TestServedVerifies(t *testing.T) {
	everyPod(t, func(t *testing.T, cfg podsim.Config) {
		l := begin(t, cfg)
		l.handshake = true
		l.newLedger()
		before := l.run(5 * time.Hour).VerifiedRotations
		if before < 8 {
			t.Errorf("%d verified rotations in five hours", before)
		}
		l.pod.ServedStuck = true
		if n := l.run(time.Hour).VerifiedRotations; n != before {
			t.Errorf("%d rotations verified that nobody was shown", n-before)
		}
		l.pod.ServedStuck = false
		if n := l.run(2 * poll).VerifiedRotations; n != before+1 {
			t.Errorf("%d rotations verified by one handshake", n-before)
		}
	})
}

// TestServedByAnotherLife: Envoy is restarted between the handshake and the
// next look, and holds the same leaf, as with SPIRE it does.
func TestServedByAnotherLife(t *testing.T) {
	l := begin(t, podsim.Config{Issuer: podsim.SPIRE, TTL: ttl})
	l.handshake = true
	l.newLedger()
	before := l.run(5 * time.Hour).VerifiedRotations
	l.pod.Push(l.now)
	l.ledger.RecordEnvoy(l.pod.Envoy(l.now)) // delivered and loaded, not served yet
	l.now = l.now.Add(time.Second)
	l.ledger.RecordHandshake(l.pod.Handshake(l.now))
	again := l.pod.Envoy(l.now)
	l.now = l.now.Add(5 * time.Second)
	again.At, again.Started.Earliest = l.now, l.now.Add(-time.Second).Round(0)
	l.ledger.RecordEnvoy(again)
	if n := l.ledger.Judge(l.now).VerifiedRotations; n != before {
		t.Errorf("%d rotations verified over a restart of Envoy", n-before)
	}
}

// TestUnsteadyIssuer: SPIRE draws by lot when it renews, so that the longest of
// a few distances is soon exceeded.
func TestUnsteadyIssuer(t *testing.T) {
	l := begin(t, podsim.Config{Issuer: podsim.SPIRE, TTL: 24 * time.Hour})
	gaps := []time.Duration{650, 652, 651, 655, 653, 668, 660, 651, 672}
	i := rotation.Issuance{Stream: 1, SPIFFEIDs: []string{podsim.ID}}
	for n, gap := range gaps {
		i.At = l.now
		i.Leaf = rotation.Certificate{
			SPIFFEID: podsim.ID, Serial: string(rune('a' + n)), SHA256: rotation.Fingerprint{1, byte(n)},
			NotBefore: l.now.Add(-10 * time.Second), NotAfter: l.now.Add(24 * time.Hour),
		}
		l.ledger.RecordIssuance(i)
		l.ledger.RecordWorkloadAPI(l.pod.WorkloadAPI(l.now))
		l.now = l.now.Add(gap * time.Minute)
		if v := l.ledger.Judge(l.now.Add(-time.Second)); v.Has(rotation.IssuanceOverdue) {
			t.Errorf("renewal %d after %d minutes: %v", n, gap, names(v))
		}
	}
	if v := l.ledger.Judge(l.now.Add(90 * time.Minute)); !v.Has(rotation.IssuanceOverdue) {
		t.Errorf("a tenth and the grace later: %v", names(v))
	}
}

// TestRefusedInPart: an update that one context took before a callback failed
// is counted as refused once, and shows as mixed contexts, also where the
// version of the refused secret stays ahead of last_updated.
func TestRefusedInPart(t *testing.T) {
	for _, modern := range []bool{false, true} {
		l := begin(t, podsim.Config{Issuer: podsim.Tbot, Modern: modern, TTL: ttl})
		l.run(2*time.Hour + 3*time.Minute)
		old := l.pod.Envoy(l.now).Contexts.Leaves[0]
		l.pod.BadKey = true
		l.pod.Push(l.now)
		for range 20 {
			l.now = l.now.Add(poll)
			o := l.pod.Envoy(l.now)
			taken := o.Secrets.Identity[0].Leaf
			taken.SHA256 = rotation.Fingerprint{}
			o.Contexts.Leaves = []rotation.LoadedLeaf{old, {Leaf: taken, Contexts: 1}}
			l.ledger.RecordEnvoy(o)
			l.ledger.RecordWorkloadAPI(l.pod.WorkloadAPI(l.now))
			l.ledger.Judge(l.now)
		}
		v := l.ledger.Judge(l.now)
		if !v.Has(rotation.ContextMixed) || v.RejectedUpdates != 1 {
			t.Errorf("modern %t: %v, %d rejected updates", modern, names(v), v.RejectedUpdates)
		}
	}
}
