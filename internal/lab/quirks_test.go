package lab_test

import (
	"fmt"
	"testing"
	"time"

	"svid-watchdog/internal/lab"
	"svid-watchdog/internal/rotation"
)

// eachPod runs a test with both issuers on each Envoy.
func eachPod(t *testing.T, test func(t *testing.T, issuer lab.Issuer, e envoy)) {
	for _, issuer := range lab.Issuers() {
		for _, e := range envoys(t) {
			t.Run(fmt.Sprintf("%s/%s", issuer, e.name), func(t *testing.T) {
				t.Parallel()
				e.need(t)
				test(t, issuer, e)
			})
		}
	}
}

// TestTwoProviders: Envoy keeps the providers of one name apart by their
// configuration source. Both leaves are current, and with tbot they differ;
// when one of them is never answered, that has a name.
func TestTwoProviders(t *testing.T) {
	t.Parallel()
	eachPod(t, func(t *testing.T, issuer lab.Issuer, e envoy) {
		if e.path == "" {
			return // real Envoys can show it
		}
		r := start(t, lab.Config{Issuer: issuer, TTL: ttl, Renewal: renewal, EnvoyPath: e.path, SecondProvider: true})
		r.healthy(3*renewal + slack)
		r.healthy(3*renewal + slack)
		v := r.watchdog.Verdict()
		if raised := raisedAfter(v, 0); len(raised) > 0 {
			t.Fatalf("raised %v with two providers\n%s", raised, r.story())
		}
		if n := v.Stage(rotation.Delivered).Leaves; n != 2 {
			t.Errorf("%d leaves delivered, want one for each provider", n)
		}
		if n := v.Envoy.SDSStreams; n == nil || *n != 4 {
			t.Errorf("SDS streams %v, want 4", n)
		}
		const fault = "second-provider"
		if err := r.pod.Inject(t.Context(), fault); err != nil {
			t.Fatal(err)
		}
		v, took, ok := r.await(grace+2*poll+slack, func(v rotation.Verdict) bool { return v.Has(rotation.SecretMissing) })
		if p, _ := v.Find(rotation.SecretMissing); !ok || p.Reason != rotation.ReasonSecondProvider {
			t.Fatalf("want secret_missing (second_provider): %s\n%s", describe(v), r.story())
		}
		t.Logf("named after %s", took.Round(100*time.Millisecond))
		if err := r.pod.Heal(t.Context(), fault); err != nil {
			t.Fatal(err)
		}
		r.healthy(reconnect + 3*renewal + slack)
	})
}

// TestHarmlessResend: both identity providers send unchanged secrets again in
// health; before a renewal is overdue that means nothing.
func TestHarmlessResend(t *testing.T) {
	t.Parallel()
	eachPod(t, func(t *testing.T, issuer lab.Issuer, e envoy) {
		r := start(t, lab.Config{Issuer: issuer, TTL: 2 * time.Minute, Renewal: time.Minute, EnvoyPath: e.path, StandIn: e.standIn})
		if v, _, ok := r.await(slack+5*time.Second, func(v rotation.Verdict) bool { return v.State == rotation.Healthy }); !ok {
			t.Fatalf("not healthy: %s", describe(v))
		}
		visible := !e.modern
		for n := range uint64(3) {
			events, _ := r.pod.Events()
			seen := len(events)
			r.pod.Resend()
			v, _, ok := r.await(2*poll+slack, func(v rotation.Verdict) bool {
				if visible {
					return v.HollowUpdates > n
				}
				events, _ := r.pod.Events()
				for _, event := range events[seen:] {
					if event.Kind == lab.Acknowledged && event.Service == lab.SDS {
						return true
					}
				}
				return false
			})
			if !ok {
				t.Fatalf("re-send %d was not seen: %s\n%s", n+1, describe(v), r.story())
			}
		}
		v := r.watchdog.Verdict()
		if raised := raisedAfter(v, 0); len(raised) > 0 || v.VerifiedRotations != 0 {
			t.Errorf("raised %v, %d verified rotations, want neither\n%s", raised, v.VerifiedRotations, r.story())
		}
	})
}

// TestNotVerified: neither a restart of Envoy, which brings a new leaf with
// tbot, nor one of the watchdog, which sees all leaves for the first time, is a
// verified rotation.
func TestNotVerified(t *testing.T) {
	t.Parallel()
	eachPod(t, func(t *testing.T, issuer lab.Issuer, e envoy) {
		r := start(t, lab.Config{Issuer: issuer, TTL: 2 * time.Minute, Renewal: time.Minute, EnvoyPath: e.path, StandIn: e.standIn})
		healthy := func(v rotation.Verdict) bool { return v.State == rotation.Healthy }
		if v, _, ok := r.await(slack+5*time.Second, healthy); !ok {
			t.Fatalf("not healthy: %s", describe(v))
		}
		for range 3 {
			before := r.watchdog.Verdict().Envoy.Started
			// Envoy dates its life to the second, as /server_info does.
			if v, _, ok := r.await(slack, func(v rotation.Verdict) bool { return v.At.Sub(*before) > 3*time.Second }); !ok {
				t.Fatalf("%s", describe(v))
			}
			if err := r.pod.Envoy().Stop(); err != nil {
				t.Fatal(err)
			}
			if err := r.pod.Envoy().Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			v, _, ok := r.await(2*poll+slack+5*time.Second, func(v rotation.Verdict) bool {
				return healthy(v) && v.Envoy.Started.Sub(*before) > 2*time.Second && v.Stage(rotation.Served).SeenAt.After(*v.Envoy.Started)
			})
			if !ok {
				t.Fatalf("the restart was not seen: %s\n%s", describe(v), r.story())
			}
		}
		late := &run{t: t, pod: r.pod, watchdog: watch(t, r.pod)}
		if v, _, ok := late.await(slack+5*time.Second, healthy); !ok {
			t.Fatalf("not healthy: %s", describe(v))
		}
		for _, w := range []*run{r, late} {
			if v := w.watchdog.Verdict(); v.VerifiedRotations != 0 {
				t.Errorf("%d rotations verified, and none took place\n%s", v.VerifiedRotations, w.story())
			}
		}
	})
}
