package lab_test

import (
	"fmt"
	"testing"
	"time"

	"svid-watchdog/internal/lab"
	"svid-watchdog/internal/rotation"
)

// TestIncident plays the incident at the lab's own pace: lifetime 60 s,
// renewal 20 s, and from 30 s on renewals re-send the old SVID. On each Envoy,
// with and without the sds. statistics, it is named with its reason long before
// the certificate expires, the certificate does expire, and a restart of the
// server heals it without touching Envoy.
func TestIncident(t *testing.T) {
	t.Parallel()
	for _, e := range envoys(t) {
		for _, stats := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/stats=%t", e.name, stats), func(t *testing.T) {
				t.Parallel()
				e.need(t)
				r := start(t, lab.Config{
					Issuer: lab.Tbot, TTL: time.Minute, Renewal: 20 * time.Second,
					EnvoyPath: e.path, StandIn: e.standIn, SDSStats: stats,
				})
				begin := time.Now()
				r.healthy(25 * time.Second)
				if raised := raisedAfter(r.watchdog.Verdict(), 0); len(raised) > 0 {
					t.Fatalf("raised %v in a healthy pod\n%s", raised, r.story())
				}
				life := r.watchdog.Verdict().Envoy.Started
				inject := time.NewTimer(30*time.Second - time.Since(begin))
				defer inject.Stop()
				<-inject.C
				if err := r.pod.Inject(t.Context(), "tbot-resend"); err != nil {
					t.Fatal(err)
				}
				v, took, ok := r.await(40*time.Second, func(v rotation.Verdict) bool { return v.Has(rotation.DeliveryOverdue) })
				if !ok {
					t.Fatalf("not named: %s\n%s", describe(v), r.story())
				}
				r.incident(e.modern, stats)
				left := *r.watchdog.Verdict().Stage(rotation.Loaded).RemainingSeconds
				t.Logf("named %s after the fault, %.0f s before the expiry", took.Round(time.Second), left)
				if left < 30 {
					t.Errorf("only %.0f s of 60 were left: in real life less than half an hour of an hour", left)
				}
				v, _, ok = r.await(time.Minute, func(v rotation.Verdict) bool { return v.Has(rotation.CertificateExpired) })
				if served := v.Stage(rotation.Served); !ok || *served.RemainingSeconds > 0 || v.Stage(rotation.Issued).Rotations < 3 {
					t.Fatalf("want the served certificate expired, and new ones issued: %s\n%s", describe(v), r.story())
				}
				verified := v.VerifiedRotations
				if err := r.pod.Heal(t.Context(), "tbot-resend"); err != nil {
					t.Fatal(err)
				}
				if v, _, ok := r.await(reconnect+slack, func(v rotation.Verdict) bool { return v.State == rotation.Healthy }); !ok {
					t.Fatalf("not healed by a restart of the server: %s\n%s", describe(v), r.story())
				}
				if v, _, ok := r.await(slack, func(v rotation.Verdict) bool { return v.VerifiedRotations > verified }); !ok {
					t.Errorf("the healing rotation was not verified: %s\n%s", describe(v), r.story())
				}
				if now := r.watchdog.Verdict().Envoy.Started; now.Sub(*life).Abs() > 2*time.Second {
					t.Errorf("Envoy was restarted: %s, %s", life, now)
				}
			})
		}
	}
}

// TestSeenLate: Envoy refused a secret, and then was sent the identical one
// again, before the watchdog began to look. Up to Envoy 1.36 that second
// update looks accepted, so that only the TLS contexts tell; from 1.37 on the
// version is ahead of last_updated for ever.
func TestSeenLate(t *testing.T) {
	t.Parallel()
	for _, e := range envoys(t) {
		t.Run(e.name, func(t *testing.T) {
			t.Parallel()
			e.need(t)
			r := start(t, lab.Config{
				Issuer: lab.Tbot, TTL: time.Minute, Renewal: renewal, EnvoyPath: e.path, StandIn: e.standIn,
			})
			r.healthy(3*renewal + slack)
			r.quiet()
			if err := r.pod.Inject(t.Context(), "bad-key"); err != nil {
				t.Fatal(err)
			}
			if v, _, ok := r.await(grace+poll+slack, func(v rotation.Verdict) bool { return v.Has(rotation.UpdateRejected) }); !ok {
				t.Fatalf("not refused: %s\n%s", describe(v), r.story())
			}
			if err := r.pod.Inject(t.Context(), "tbot-resend"); err != nil {
				t.Fatal(err)
			}
			// Up to 1.36 a hollow update tells that the re-send has come.
			resent := func(v rotation.Verdict) bool { return v.HollowUpdates > 0 }
			if e.modern {
				events, _ := r.pod.Events()
				seen := len(events)
				resent = func(rotation.Verdict) bool {
					events, _ := r.pod.Events()
					for _, event := range events[seen:] {
						if event.Kind == lab.Acknowledged && event.Service == lab.SDS && event.Message == "Envoy accepted an update of [default]." {
							return true
						}
					}
					return false
				}
			}
			if v, _, ok := r.await(2*renewal+slack, resent); !ok {
				t.Fatalf("not sent again: %s\n%s", describe(v), r.story())
			}
			late := &run{t: t, pod: r.pod, watchdog: watch(t, r.pod)}
			want, reason := rotation.ContextStale, rotation.ReasonNone
			if e.modern {
				want, reason = rotation.UpdateRejected, rotation.ReasonVersionAhead
			}
			v, _, ok := late.await(grace+2*poll+slack, func(v rotation.Verdict) bool { return v.Has(want) })
			if p, _ := v.Find(want); !ok || p.Reason != reason {
				t.Errorf("want %s (%s): %s\n%s", want, reason, describe(v), late.story())
			}
			if v.VerifiedRotations != 0 {
				t.Errorf("%d rotations verified on no evidence", v.VerifiedRotations)
			}
		})
	}
}
