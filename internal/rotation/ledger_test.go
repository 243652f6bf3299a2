package rotation_test

import (
	"slices"
	"testing"
	"time"

	"svid-watchdog/internal/lab"
	"svid-watchdog/internal/podsim"
	"svid-watchdog/internal/rotation"
)

// hour is the timeline of the deployment behind the project: lifetime 1 h,
// renewal every 20 min, the contract's default grace and poll.
const (
	ttl     = time.Hour
	renewal = 20 * time.Minute
	grace   = 90 * time.Second
	poll    = 15 * time.Second
)

// life drives a ledger with a simulated pod.
type life struct {
	t      *testing.T
	pod    *podsim.Pod
	ledger *rotation.Ledger
	now    time.Time
	start  time.Time
	raised map[rotation.ProblemName]time.Duration // when first raised
	// handshake makes handshakes, one at each poll.
	handshake bool
}

func begin(t *testing.T, cfg podsim.Config) *life {
	t.Helper()
	start := time.Date(2025, 12, 18, 3, 10, 56, 0, time.UTC)
	l := &life{
		t: t, start: start, now: start, pod: podsim.New(cfg, start),
		raised: make(map[rotation.ProblemName]time.Duration),
	}
	l.newLedger()
	return l
}

func (l *life) newLedger() {
	l.ledger = rotation.NewLedger(rotation.Config{Grace: grace, Verify: podsim.Verify, Handshake: l.handshake})
}

// run plays d and returns the last verdict. Each second the pod moves on; each
// poll Envoy is looked at. The verdict is taken at each poll, and each second
// for the first minutes, in which faults are named.
func (l *life) run(d time.Duration) rotation.Verdict {
	l.t.Helper()
	var v rotation.Verdict
	begin, end := l.now, l.now.Add(d)
	for ; l.now.Before(end); l.now = l.now.Add(time.Second) {
		l.pod.Advance(l.now)
		if i := l.pod.Issuance(); i != nil {
			l.ledger.RecordIssuance(*i)
		}
		if l.now.Sub(begin) > 4*time.Minute && l.now.Sub(l.start)%poll != 0 && l.now.Add(time.Second).Before(end) {
			continue
		}
		l.ledger.RecordWorkloadAPI(l.pod.WorkloadAPI(l.now))
		l.ledger.RecordFiles(l.pod.CredentialFiles(l.now))
		if l.now.Sub(l.start)%poll == 0 {
			if l.handshake {
				l.ledger.RecordHandshake(l.pod.Handshake(l.now))
			}
			l.ledger.RecordEnvoy(l.pod.Envoy(l.now))
		}
		v = l.ledger.Judge(l.now)
		for _, p := range v.Problems {
			if _, known := l.raised[p.Name]; !known {
				l.raised[p.Name] = l.now.Sub(l.start)
			}
		}
	}
	return v
}

func (l *life) quiet() {
	l.t.Helper()
	if len(l.raised) > 0 {
		l.t.Fatalf("raised %v, want nothing", l.raised)
	}
}

func names(v rotation.Verdict) []rotation.ProblemName {
	var out []rotation.ProblemName
	for _, p := range v.Problems {
		out = append(out, p.Name)
	}
	return out
}

// everyPod calls f for each issuer, generation of Envoy, and statistics.
func everyPod(t *testing.T, f func(*testing.T, podsim.Config)) {
	for _, issuer := range []podsim.Issuer{podsim.Tbot, podsim.SPIRE} {
		for _, modern := range []bool{false, true} {
			for _, stats := range []bool{false, true} {
				name := string(issuer) + map[bool]string{false: "/envoy1.36", true: "/envoy1.37"}[modern] +
					map[bool]string{false: "/hidden", true: "/stats"}[stats]
				t.Run(name, func(t *testing.T) {
					t.Parallel()
					f(t, podsim.Config{Issuer: issuer, Modern: modern, Stats: stats, TTL: ttl})
				})
			}
		}
	}
}

func TestHealthyDay(t *testing.T) {
	everyPod(t, func(t *testing.T, cfg podsim.Config) {
		l := begin(t, cfg)
		v := l.run(24 * time.Hour)
		l.quiet()
		if v.State != rotation.Healthy {
			t.Errorf("state %s, want healthy", v.State)
		}
		if v.VerifiedRotations < 45 {
			t.Errorf("%d verified rotations in a day, want at least 45", v.VerifiedRotations)
		}
		for _, s := range []rotation.Stage{rotation.Issued, rotation.Delivered, rotation.Loaded} {
			if n := v.Stage(s).Rotations; n < 45 {
				t.Errorf("%d rotations at %s, want at least 45", n, s)
			}
		}
		if v.HollowUpdates != 0 || v.RejectedUpdates != 0 {
			t.Errorf("%d hollow and %d rejected updates, want none", v.HollowUpdates, v.RejectedUpdates)
		}
		if v.IntervalSource != rotation.IntervalLearned {
			t.Errorf("interval %s, want it learned", v.IntervalSource)
		}
		serials := v.Stage(rotation.Issued).Certificate.Serial == v.Stage(rotation.Delivered).Certificate.Serial
		if want := cfg.Issuer == podsim.SPIRE; serials != want {
			t.Errorf("issued and delivered serial equal: %t, want %t", serials, want)
		}
	})
}

// TestIncident plays the night behind the project: the SDS side of tbot
// re-sends one SVID every 20 minutes under a new version, while its Workload
// API side renews.
func TestIncident(t *testing.T) {
	for _, modern := range []bool{false, true} {
		for _, stats := range []bool{false, true} {
			t.Run(map[bool]string{false: "1.36", true: "1.37"}[modern]+map[bool]string{false: "/hidden", true: "/stats"}[stats], func(t *testing.T) {
				l := begin(t, podsim.Config{Issuer: podsim.Tbot, Modern: modern, Stats: stats, TTL: ttl})
				l.pod.Resend = true
				l.run(10 * time.Hour)
				at, named := l.raised[rotation.DeliveryOverdue]
				if !named || at > ttl-30*time.Minute {
					t.Fatalf("delivery_overdue at %s, want at least 30 min before the expiry at %s", at, ttl)
				}
				v := l.ledger.Judge(l.now)
				p, _ := v.Find(rotation.DeliveryOverdue)
				want := rotation.ReasonServerResends
				if modern && !stats {
					want = rotation.ReasonServerSilentOrResends
				}
				if p.Reason != want {
					t.Errorf("reason %s, want %s", p.Reason, want)
				}
				if visible := !modern || stats; v.Has(rotation.HollowUpdate) != visible {
					t.Errorf("hollow_update %t, want %t", v.Has(rotation.HollowUpdate), visible)
				} else if visible && l.raised[rotation.HollowUpdate] > ttl-30*time.Minute {
					t.Errorf("hollow_update at %s, want at least 30 min before the expiry", l.raised[rotation.HollowUpdate])
				}
				if v.Has(rotation.IssuanceOverdue) || v.Stage(rotation.Issued).Rotations < 25 {
					t.Errorf("issued is not healthy: %v", names(v))
				}
				if v.VerifiedRotations != 0 {
					t.Errorf("%d verified rotations, want none", v.VerifiedRotations)
				}
				if v.State != rotation.Broken || !v.Has(rotation.CertificateExpired) {
					t.Errorf("after ten hours: %s %v", v.State, names(v))
				}
				// Restarting tbot on the node heals it.
				l.pod.Resend = false
				l.pod.RestartIssuer(l.now)
				if v := l.run(time.Minute); v.State != rotation.Healthy {
					t.Errorf("a minute after the restart: %s %v", v.State, names(v))
				}
			})
		}
	}
}

// TestIncidentSeenLate: a watchdog that starts in the middle of the night
// dates the delivered leaf by its not-before and by what it learned of the
// issuer's back-dating, and need not wait for a whole interval.
func TestIncidentSeenLate(t *testing.T) {
	l := begin(t, podsim.Config{Issuer: podsim.Tbot, Modern: true, TTL: ttl})
	l.pod.Resend = true
	l.run(40 * time.Minute)
	l.newLedger()
	l.pod.RestartWorkloadAPI()
	clear(l.raised)
	l.run(2 * poll)
	if _, named := l.raised[rotation.DeliveryOverdue]; !named {
		t.Fatalf("raised %v, want delivery_overdue at the first looks", l.raised)
	}
}

// TestJoinedLate: a watchdog that starts at any time in a healthy pod's life
// takes nothing for overdue.
func TestJoinedLate(t *testing.T) {
	everyPod(t, func(t *testing.T, cfg podsim.Config) {
		for _, after := range []time.Duration{time.Minute, 13 * time.Minute, 29 * time.Minute, 43 * time.Minute} {
			l := begin(t, cfg)
			l.run(after)
			l.newLedger()
			l.pod.RestartWorkloadAPI()
			if v := l.run(2 * time.Hour); v.State != rotation.Healthy {
				t.Errorf("joined after %s: %s %v", after, v.State, names(v))
			}
			l.quiet()
		}
	})
}

// TestRestartOfEnvoy: a new life of Envoy brings new leaves, but they verify
// no rotation.
func TestRestartOfEnvoy(t *testing.T) {
	everyPod(t, func(t *testing.T, cfg podsim.Config) {
		l := begin(t, cfg)
		l.run(time.Minute)
		for range 20 {
			l.pod.RestartEnvoy(l.now)
			l.run(5 * time.Minute)
		}
		l.quiet()
		v := l.ledger.Judge(l.now)
		// tbot issues anew to each life, so that no renewal falls into one; of
		// SPIRE's few renewals each falls into the life of some Envoy.
		if n := v.VerifiedRotations; cfg.Issuer == podsim.Tbot && n != 0 || n > 5 {
			t.Errorf("%d verified rotations, delivered %d", n, v.Stage(rotation.Delivered).Rotations)
		}
	})
}

// TestTwoProviders: one name under two providers gives, with tbot, two leaves
// that are both current.
func TestTwoProviders(t *testing.T) {
	everyPod(t, func(t *testing.T, cfg podsim.Config) {
		cfg.Streams = 2
		l := begin(t, cfg)
		v := l.run(6 * time.Hour)
		l.quiet()
		if v.State != rotation.Healthy {
			t.Errorf("state %s", v.State)
		}
		if want := map[podsim.Issuer]int{podsim.Tbot: 2, podsim.SPIRE: 2}[cfg.Issuer]; v.Stage(rotation.Delivered).Leaves != want {
			t.Errorf("%d leaves delivered, want %d", v.Stage(rotation.Delivered).Leaves, want)
		}
	})
}

// TestRefusedRightAfterAccepted: the dump shows the refused leaf with the
// last_updated of the accepted one, both new since the last look. Only the
// statistics, or a version well ahead, tell it from contexts that are stale.
func TestRefusedRightAfterAccepted(t *testing.T) {
	everyPod(t, func(t *testing.T, cfg podsim.Config) {
		want, counted := rotation.ContextStale, uint64(0)
		if cfg.Stats {
			want, counted = rotation.UpdateRejected, 1
		}
		l := begin(t, cfg)
		l.run(2 * time.Hour)
		l.pod.Push(l.now)
		l.pod.BadKey = true
		l.pod.Push(l.now)
		v := l.run(grace + 2*poll)
		if !slices.Equal(names(v), []rotation.ProblemName{want}) || len(l.raised) != 1 {
			t.Fatalf("%v, raised %v, want %s", names(v), l.raised, want)
		}
		if v.RejectedUpdates != counted {
			t.Errorf("%d rejected updates, want %d", v.RejectedUpdates, counted)
		}
		l.pod.BadKey = false
		l.pod.Push(l.now)
		if v = l.run(2 * poll); v.State != rotation.Healthy {
			t.Errorf("after a good one: %s %v", v.State, names(v))
		}
	})
}

// TestRejectedThenResent: an identical re-send of a rejected secret is
// accepted by Envoy as no change; it heals nothing.
func TestRejectedThenResent(t *testing.T) {
	everyPod(t, func(t *testing.T, cfg podsim.Config) {
		l := begin(t, cfg)
		l.run(2 * time.Hour)
		l.pod.BadKey = true
		l.pod.Push(l.now)
		l.run(time.Minute)
		l.pod.Resend = true
		for range 3 {
			l.pod.Push(l.now)
			if v := l.run(time.Minute); !v.Has(rotation.UpdateRejected) {
				t.Fatalf("after the re-send: %s %v", v.State, names(v))
			}
		}
		v := l.ledger.Judge(l.now)
		if v.RejectedUpdates != 1 {
			t.Errorf("%d rejected updates, want 1", v.RejectedUpdates)
		}
		if v.Has(rotation.ContextStale) || v.Has(rotation.DeliveryOverdue) {
			t.Errorf("a consequence has a name of its own: %v", names(v))
		}
	})
}

// TestWithinTheGrace: what heals itself within the grace is no problem.
func TestWithinTheGrace(t *testing.T) {
	no := false
	for name, turn := range map[string]func(*podsim.Pod, bool){
		"workload API": func(p *podsim.Pod, on bool) {
			if p.APIState = nil; on {
				p.APIState = &rotation.WorkloadAPI{State: rotation.WorkloadAPIUnreachable, Reason: rotation.ReasonNoSocket, SocketAnswers: &no}
			}
		},
		"denied": func(p *podsim.Pod, on bool) {
			if p.APIState = nil; on {
				p.APIState = &rotation.WorkloadAPI{State: rotation.WorkloadAPIDenied}
			}
		},
		"sds":       func(p *podsim.Pod, on bool) { p.SDSDown = on },
		"admin":     func(p *podsim.Pod, on bool) { p.AdminDown = on },
		"contexts":  func(p *podsim.Pod, on bool) { p.StuckHalf = on },
		"all of it": func(p *podsim.Pod, on bool) { p.SDSClosed, p.AdminDown = on, on },
	} {
		t.Run(name, func(t *testing.T) {
			everyPod(t, func(t *testing.T, cfg podsim.Config) {
				l := begin(t, cfg)
				l.run(2*time.Hour + 3*time.Minute)
				for range 5 {
					turn(l.pod, true)
					l.run(grace - poll)
					turn(l.pod, false)
					l.run(5 * time.Minute)
				}
				l.quiet()
				if v := l.ledger.Judge(l.now); v.State != rotation.Healthy {
					t.Errorf("state %s", v.State)
				}
			})
		})
	}
}

// TestRenewalsOutOfTurn: a CA rotation makes short distances between two
// SVIDs, which must not make later ones look overdue.
func TestRenewalsOutOfTurn(t *testing.T) {
	everyPod(t, func(t *testing.T, cfg podsim.Config) {
		for _, settled := range []time.Duration{5 * time.Minute, 3*time.Hour + 5*time.Minute} {
			l := begin(t, cfg)
			l.run(settled)
			for range 3 {
				l.pod.RenewNow(l.now)
				l.run(4 * time.Minute)
			}
			l.run(2 * time.Hour)
			l.quiet()
		}
	})
}

// TestEarlyResend: an unchanged SVID that is sent again before its rotation
// point means nothing, also when renewal stops for another reason later.
func TestEarlyResend(t *testing.T) {
	everyPod(t, func(t *testing.T, cfg podsim.Config) {
		l := begin(t, cfg)
		l.run(3*time.Hour + 3*time.Minute)
		l.pod.Resent(l.now)
		l.run(time.Minute)
		l.quiet()
		l.pod.SDSSilent = true
		v := l.run(ttl/2 + grace + poll)
		if !v.Has(rotation.DeliveryOverdue) || v.Has(rotation.HollowUpdate) {
			t.Errorf("want delivery_overdue and no hollow_update: %v", names(v))
		}
		if visible := !cfg.Modern || cfg.Stats; (v.HollowUpdates == 1) != visible {
			t.Errorf("%d hollow updates counted", v.HollowUpdates)
		}
	})
}

// TestUnknownIsNotHealthy: nothing seen, or not everything, is unknown.
func TestUnknownIsNotHealthy(t *testing.T) {
	l := begin(t, podsim.Config{Issuer: podsim.Tbot, TTL: ttl})
	v := l.ledger.Judge(l.now)
	if v.State != rotation.Unknown || v.IdentityMode != rotation.ModeUnknown {
		t.Errorf("nothing seen: %s, %s", v.State, v.IdentityMode)
	}
	for _, s := range v.Sources {
		if s.Up {
			t.Errorf("source %s is up before it was asked", s.Source)
		}
	}
	l.pod.Advance(l.now)
	l.ledger.RecordIssuance(*l.pod.Issuance())
	l.ledger.RecordWorkloadAPI(l.pod.WorkloadAPI(l.now))
	l.ledger.RecordFiles(l.pod.CredentialFiles(l.now))
	if v := l.ledger.Judge(l.now); v.State != rotation.Unknown {
		t.Errorf("Envoy not seen: %s", v.State)
	}
	l.ledger.RecordEnvoy(l.pod.Envoy(l.now))
	if v := l.ledger.Judge(l.now); v.State != rotation.Healthy {
		t.Errorf("everything seen: %s %v", v.State, names(v))
	}
}

// TestExpiryIsSeenBlind: what was last seen expires also while its source is
// down.
func TestExpiryIsSeenBlind(t *testing.T) {
	l := begin(t, podsim.Config{Issuer: podsim.Tbot, TTL: ttl})
	l.run(2*time.Hour + time.Minute)
	l.pod.AdminDown = true
	l.run(52 * time.Minute)
	v := l.ledger.Judge(l.now)
	if p, ok := v.Find(rotation.CertificateExpiring); !ok || p.Severity != rotation.Critical {
		t.Errorf("inside the margin: %v", names(v))
	}
	if v.Has(rotation.DeliveryOverdue) {
		t.Errorf("delivery is judged without being seen: %v", names(v))
	}
	l.run(20 * time.Minute)
	if v := l.ledger.Judge(l.now); !v.Has(rotation.CertificateExpired) {
		t.Errorf("after not-after: %v", names(v))
	}
}

// TestRecheck: between two pieces of evidence a verdict changes only when
// Recheck says so.
func TestRecheck(t *testing.T) {
	l := begin(t, podsim.Config{Issuer: podsim.Tbot, TTL: ttl})
	l.run(2 * time.Hour)
	v := l.ledger.Judge(l.now)
	for range 40 {
		if v.Recheck.IsZero() {
			break
		}
		before := names(v)
		if early := names(l.ledger.Judge(v.Recheck.Add(-time.Nanosecond))); !slices.Equal(before, early) {
			t.Fatalf("%v became %v before the recheck", before, early)
		}
		v = l.ledger.Judge(v.Recheck)
	}
	if !v.Has(rotation.CertificateExpired) || !v.Has(rotation.IssuanceOverdue) {
		t.Errorf("nothing more was recorded, and the rechecks end with %v", names(v))
	}
}

// TestEveryTransitionIsAnEvent: problems come and go in pairs of events.
func TestEveryTransitionIsAnEvent(t *testing.T) {
	l := begin(t, podsim.Config{Issuer: podsim.Tbot, TTL: ttl})
	l.run(time.Minute)
	l.pod.Files = rotation.CredentialFileNames()
	l.run(time.Second)
	l.pod.Files = nil
	v := l.run(time.Second)
	var seen []rotation.EventType
	for _, e := range v.Events {
		if e.Problem == rotation.CredentialFilesComplete {
			seen = append(seen, e.Type)
		}
	}
	if want := []rotation.EventType{rotation.EventProblemRaised, rotation.EventProblemCleared}; !slices.Equal(seen, want) {
		t.Errorf("events %v, want %v", seen, want)
	}
	for i, e := range v.Events {
		if e.Seq != v.Events[0].Seq+uint64(i) || e.Message == "" {
			t.Errorf("event %d: %+v", i, e)
		}
	}
}

// TestCatalogueIsComplete: each problem has words, each reason is used once.
func TestCatalogueIsComplete(t *testing.T) {
	if n := len(rotation.Catalogue()); n != 21 {
		t.Errorf("%d problems, the contract has 21", n)
	}
	for _, d := range rotation.Catalogue() {
		if d.Summary == "" || d.Cause == "" || d.Advice == "" || d.Severity == "" {
			t.Errorf("%s lacks words", d.Name)
		}
		seen := make(map[rotation.Reason]bool)
		for _, r := range d.Reasons {
			if r.Cause == "" || seen[r.Reason] {
				t.Errorf("%s: reason %q", d.Name, r.Reason)
			}
			seen[r.Reason] = true
		}
	}
}

// TestFaults injects each fault of the lab into a healthy pod at the durations
// of real life, and wants its problem, no other that does not follow from it,
// within the bound, gone after healing.
func TestFaults(t *testing.T) {
	overdue := renewal + grace + poll + 2*time.Second
	spireOverdue := ttl/2 + grace + poll + 2*time.Second
	yes, no := true, false
	unreachable := func(r rotation.Reason, answers *bool) *rotation.WorkloadAPI {
		return &rotation.WorkloadAPI{State: rotation.WorkloadAPIUnreachable, Reason: r, Detail: string(r), SocketAnswers: answers}
	}
	type faultTest struct {
		name   string
		inject func(*podsim.Pod, time.Time)
		heal   func(*podsim.Pod, time.Time)
		want   rotation.ProblemName
		reason rotation.Reason
		bound  time.Duration
		heals  time.Duration // what healing takes beyond two polls
		spire  time.Duration // bound with SPIRE, 0 if the same
		allow  []rotation.ProblemName
		mode   rotation.IdentityMode
		served bool // with handshakes
		tbot   bool // with tbot alone
		// blind is the reason where Envoy shows no updates that change nothing.
		blind rotation.Reason
	}
	tests := []faultTest{
		{
			name:   "files-partial",
			inject: func(p *podsim.Pod, _ time.Time) { p.Files = rotation.CredentialFileNames()[:2] },
			heal:   func(p *podsim.Pod, _ time.Time) { p.Files = nil },
			want:   rotation.CredentialFilesPartial, bound: time.Second, mode: rotation.ModeExternalSDS,
		}, {
			name:   "socket-refused",
			inject: func(p *podsim.Pod, _ time.Time) { p.APIState = unreachable(rotation.ReasonRefused, &no) },
			heal:   func(p *podsim.Pod, _ time.Time) { p.APIState = nil },
			want:   rotation.WorkloadUnreachable, reason: rotation.ReasonRefused, bound: grace + poll,
		}, {
			name:   "directory-orphaned",
			inject: func(p *podsim.Pod, _ time.Time) { p.APIState = unreachable(rotation.ReasonDirectoryOrphaned, &no) },
			heal:   func(p *podsim.Pod, _ time.Time) { p.APIState = nil },
			want:   rotation.WorkloadUnreachable, reason: rotation.ReasonDirectoryOrphaned, bound: grace + poll,
		}, {
			name:   "workload-api-silent",
			inject: func(p *podsim.Pod, _ time.Time) { p.APIState = unreachable(rotation.ReasonSilent, nil) },
			heal:   func(p *podsim.Pod, _ time.Time) { p.APIState = nil },
			want:   rotation.WorkloadUnreachable, reason: rotation.ReasonSilent, bound: grace + poll,
		}, {
			name:   "workload-api-error",
			inject: func(p *podsim.Pod, _ time.Time) { p.APIState = unreachable(rotation.ReasonServerError, &yes) },
			heal:   func(p *podsim.Pod, _ time.Time) { p.APIState = nil },
			want:   rotation.WorkloadUnreachable, reason: rotation.ReasonServerError, bound: grace + poll,
		}, {
			name:   "renewal-stopped",
			inject: func(p *podsim.Pod, _ time.Time) { p.APISilent, p.SDSSilent = true, true },
			heal:   func(p *podsim.Pod, _ time.Time) { p.APISilent, p.SDSSilent = false, false },
			want:   rotation.CertificateExpiring, bound: ttl - ttl/6 + poll,
			allow: []rotation.ProblemName{rotation.IssuanceOverdue, rotation.DeliveryOverdue},
		}, {
			name:   "server-hung",
			inject: func(p *podsim.Pod, _ time.Time) { p.APISilent, p.SDSSilent = true, true },
			heal:   func(p *podsim.Pod, _ time.Time) { p.APISilent, p.SDSSilent = false, false },
			want:   rotation.DeliveryOverdue, reason: rotation.ReasonServerSilent, blind: rotation.ReasonServerSilentOrResends,
			bound: overdue, spire: spireOverdue, allow: []rotation.ProblemName{rotation.IssuanceOverdue},
		}, {
			name:   "tbot-resend",
			inject: func(p *podsim.Pod, _ time.Time) { p.Resend = true },
			heal:   func(p *podsim.Pod, now time.Time) { p.Resend = false; p.RestartIssuer(now) },
			want:   rotation.DeliveryOverdue, reason: rotation.ReasonServerResends, blind: rotation.ReasonServerSilentOrResends,
			bound: overdue, spire: spireOverdue, allow: []rotation.ProblemName{rotation.HollowUpdate},
		}, {
			name:   "federated-resend",
			inject: func(p *podsim.Pod, now time.Time) { p.Starved = true; p.Push(now) },
			heal:   func(p *podsim.Pod, now time.Time) { p.Starved = false; p.RestartIssuer(now) },
			want:   rotation.DeliveryOverdue, reason: rotation.ReasonServerResends, blind: rotation.ReasonServerSilentOrResends,
			bound: overdue, tbot: true, allow: []rotation.ProblemName{rotation.HollowUpdate},
		}, {
			name:   "expired-svid",
			inject: func(p *podsim.Pod, now time.Time) { p.Expired = true; p.Push(now) },
			heal:   func(p *podsim.Pod, now time.Time) { p.Expired = false; p.Push(now) },
			want:   rotation.CertificateExpired, bound: poll + time.Second,
		}, {
			name:   "envoy-hung",
			inject: func(p *podsim.Pod, _ time.Time) { p.AdminDown = true },
			heal:   func(p *podsim.Pod, _ time.Time) { p.AdminDown = false },
			want:   rotation.EnvoyUnreachable, bound: grace + poll,
		}, {
			name:   "files-complete",
			inject: func(p *podsim.Pod, _ time.Time) { p.Files = rotation.CredentialFileNames() },
			heal:   func(p *podsim.Pod, _ time.Time) { p.Files = nil },
			want:   rotation.CredentialFilesComplete, bound: time.Second, mode: rotation.ModeExternalSDSWithFiles,
		}, {
			name:   "socket-gone",
			inject: func(p *podsim.Pod, _ time.Time) { p.APIState = unreachable(rotation.ReasonNoSocket, &no) },
			heal:   func(p *podsim.Pod, _ time.Time) { p.APIState = nil },
			want:   rotation.WorkloadUnreachable, reason: rotation.ReasonNoSocket, bound: grace + poll, mode: rotation.ModeIstiodCA,
		}, {
			name: "socket gone and files",
			inject: func(p *podsim.Pod, _ time.Time) {
				p.APIState = unreachable(rotation.ReasonNoSocket, &no)
				p.Files = rotation.CredentialFileNames()
			},
			heal: func(p *podsim.Pod, _ time.Time) { p.APIState, p.Files = nil, nil },
			want: rotation.CredentialFilesComplete, bound: time.Second, mode: rotation.ModeFileMounted,
			allow: []rotation.ProblemName{rotation.WorkloadUnreachable},
		}, {
			name: "denied",
			inject: func(p *podsim.Pod, _ time.Time) {
				p.APIState = &rotation.WorkloadAPI{State: rotation.WorkloadAPIDenied, SocketAnswers: &yes}
			},
			heal: func(p *podsim.Pod, _ time.Time) { p.APIState = nil },
			want: rotation.WorkloadDenied, bound: grace + poll, mode: rotation.ModeExternalSDS,
		}, {
			name:   "issuance-stalled",
			inject: func(p *podsim.Pod, _ time.Time) { p.APISilent = true },
			heal:   func(p *podsim.Pod, _ time.Time) { p.APISilent = false },
			want:   rotation.IssuanceOverdue, bound: overdue, spire: spireOverdue,
		}, {
			name:   "sds-silent",
			inject: func(p *podsim.Pod, _ time.Time) { p.SDSSilent = true },
			heal:   func(p *podsim.Pod, _ time.Time) { p.SDSSilent = false },
			want:   rotation.DeliveryOverdue, bound: overdue, spire: spireOverdue,
		}, {
			name:   "sds stream cannot connect",
			inject: func(p *podsim.Pod, _ time.Time) { p.SDSDown = true },
			heal:   func(p *podsim.Pod, _ time.Time) { p.SDSDown = false },
			want:   rotation.SDSStreamDown, reason: rotation.ReasonCannotConnect, bound: grace + poll,
		}, {
			name:   "sds-closed",
			inject: func(p *podsim.Pod, _ time.Time) { p.SDSClosed = true },
			heal:   func(p *podsim.Pod, _ time.Time) { p.SDSClosed = false },
			want:   rotation.SDSStreamDown, reason: rotation.ReasonClosedByServer, bound: grace + poll,
		}, {
			name:   "bad-key",
			inject: func(p *podsim.Pod, now time.Time) { p.BadKey = true; p.Push(now) },
			heal:   func(p *podsim.Pod, now time.Time) { p.BadKey = false; p.Push(now) },
			want:   rotation.UpdateRejected, bound: poll + time.Second,
		}, {
			name:   "contexts-stuck",
			inject: func(p *podsim.Pod, now time.Time) { p.ContextsStuck = true; p.Push(now) },
			heal:   func(p *podsim.Pod, now time.Time) { p.ContextsStuck = false; p.Push(now) },
			want:   rotation.ContextStale, bound: grace + poll + time.Second,
		}, {
			name:   "contexts-mixed",
			inject: func(p *podsim.Pod, _ time.Time) { p.StuckHalf = true },
			heal:   func(p *podsim.Pod, _ time.Time) { p.StuckHalf = false },
			want:   rotation.ContextMixed, bound: grace + poll,
		}, {
			name:   "envoy-down",
			inject: func(p *podsim.Pod, _ time.Time) { p.AdminDown = true },
			heal:   func(p *podsim.Pod, _ time.Time) { p.AdminDown = false },
			want:   rotation.EnvoyUnreachable, bound: grace + poll,
		}, {
			name:   "secret-withheld",
			inject: func(p *podsim.Pod, now time.Time) { p.Withhold = true; p.RestartEnvoy(now) },
			heal:   func(p *podsim.Pod, now time.Time) { p.Withhold = false; p.RestartIssuer(now) },
			want:   rotation.SecretMissing, reason: rotation.ReasonServerSilent, bound: grace + poll + time.Second,
		}, {
			name:   "foreign-ca",
			inject: func(p *podsim.Pod, now time.Time) { p.ForeignCA = true; p.Push(now) },
			heal:   func(p *podsim.Pod, now time.Time) { p.ForeignCA = false; p.Push(now) },
			want:   rotation.UntrustedIssuer, bound: grace + poll + time.Second,
		}, {
			name:   "other-identity",
			inject: func(p *podsim.Pod, now time.Time) { p.OtherID = true; p.Push(now) },
			heal:   func(p *podsim.Pod, now time.Time) { p.OtherID = false; p.Push(now) },
			want:   rotation.IdentityMismatch, bound: grace + poll + time.Second,
		}, {
			name:   "sds-flapping",
			inject: func(p *podsim.Pod, _ time.Time) { p.SDSFlapping = true },
			heal:   func(p *podsim.Pod, _ time.Time) { p.SDSFlapping = false },
			want:   rotation.SDSStreamFlapping, reason: rotation.ReasonReconnecting,
			bound: grace + 3*poll + 2*time.Second, heals: grace + poll,
		}, {
			name: "not-entitled",
			inject: func(p *podsim.Pod, _ time.Time) {
				p.NotEntitled = true
				p.APIState = &rotation.WorkloadAPI{State: rotation.WorkloadAPIDenied, SocketAnswers: &yes}
			},
			heal: func(p *podsim.Pod, _ time.Time) { p.NotEntitled, p.APIState = false, nil },
			want: rotation.WorkloadDenied, bound: grace + poll, heals: grace + poll,
			allow: []rotation.ProblemName{rotation.SDSStreamFlapping},
		}, {
			name:   "identity refused on SDS alone",
			inject: func(p *podsim.Pod, _ time.Time) { p.NotEntitled = true },
			heal:   func(p *podsim.Pod, _ time.Time) { p.NotEntitled = false },
			want:   rotation.SDSStreamFlapping, reason: rotation.ReasonPartlyRefused, bound: 2 * grace, heals: grace + poll,
		}, {
			name:   "second-provider",
			inject: func(p *podsim.Pod, _ time.Time) { p.SecondWarms = true },
			heal:   func(p *podsim.Pod, now time.Time) { p.SecondWarms = false; p.RestartEnvoy(now) },
			want:   rotation.SecretMissing, reason: rotation.ReasonSecondProvider, bound: grace + poll + time.Second,
		}, {
			name:   "bundle-stuck",
			inject: func(p *podsim.Pod, now time.Time) { p.BundleStuck = true; p.AddAuthority(now) },
			heal:   func(p *podsim.Pod, _ time.Time) { p.BundleStuck = false },
			want:   rotation.TrustBundleStale, reason: rotation.ReasonServerSilentOrResends, bound: grace + poll + time.Second,
		}, {
			name:   "listener-drained",
			inject: func(p *podsim.Pod, _ time.Time) { p.ListenerDown = true },
			heal:   func(p *podsim.Pod, _ time.Time) { p.ListenerDown = false },
			want:   rotation.ServedUnreachable, reason: rotation.ReasonRefused, bound: grace + poll, served: true,
		}, {
			name:   "listener-stuck",
			inject: func(p *podsim.Pod, now time.Time) { p.ServedStuck = true; p.Push(now) },
			heal:   func(p *podsim.Pod, _ time.Time) { p.ServedStuck = false },
			want:   rotation.ServedStale, bound: grace + poll + time.Second, served: true,
		},
	}
	for _, f := range lab.Faults() {
		if !slices.ContainsFunc(tests, func(tt faultTest) bool { return tt.name == f.Name && tt.want == f.Shows }) {
			t.Errorf("the lab's fault %s is not played at the durations of real life", f.Name)
		}
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			everyPod(t, func(t *testing.T, cfg podsim.Config) {
				if tt.tbot && cfg.Issuer != podsim.Tbot {
					return
				}
				bound, reason := tt.bound, tt.reason
				if tt.blind != "" && cfg.Modern && !cfg.Stats {
					reason = tt.blind
				}
				if cfg.Issuer == podsim.SPIRE && tt.spire > 0 {
					bound = tt.spire
				}
				l := begin(t, cfg)
				l.handshake = tt.served
				l.newLedger()
				l.run(5*time.Hour + 7*time.Minute)
				l.quiet()
				tt.inject(l.pod, l.now)
				injected := l.now.Sub(l.start)
				v := l.run(bound + time.Second)
				p, ok := v.Find(tt.want)
				if !ok {
					t.Fatalf("%s was not raised within %s, but %v", tt.want, bound, names(v))
				}
				if reason != "" && p.Reason != reason {
					t.Errorf("reason %q, want %q", p.Reason, reason)
				}
				if p.Reason != "" && !hasReason(p) {
					t.Errorf("reason %q is not in the catalogue", p.Reason)
				}
				for name, at := range l.raised {
					if name != tt.want && !slices.Contains(tt.allow, name) {
						t.Errorf("%s was raised too, %s after the fault", name, at-injected)
					}
				}
				if tt.mode != "" && v.IdentityMode != tt.mode {
					t.Errorf("identity mode %s, want %s", v.IdentityMode, tt.mode)
				}
				tt.heal(l.pod, l.now)
				if v := l.run(2*poll + 2*time.Second + tt.heals); v.State != rotation.Healthy {
					t.Errorf("healed, yet %s %v", v.State, names(v))
				}
				verified := v.VerifiedRotations
				if v := l.run(2 * time.Hour); v.State != rotation.Healthy || v.VerifiedRotations <= verified {
					t.Errorf("two hours later %s %v, %d verified", v.State, names(v), v.VerifiedRotations-verified)
				}
			})
		})
	}
}

func hasReason(p rotation.Problem) bool {
	d, _ := rotation.Lookup(p.Name)
	return slices.ContainsFunc(d.Reasons, func(r rotation.ReasonText) bool { return r.Reason == p.Reason })
}
