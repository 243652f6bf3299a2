package rotation_test

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"svid-watchdog/internal/podsim"
	"svid-watchdog/internal/rotation"
)

// lookOnce judges a pod by one look, as somebody does who never saw it before.
func lookOnce(pod *podsim.Pod, now time.Time, interval time.Duration) rotation.Verdict {
	l := rotation.NewLedger(rotation.Config{Grace: grace, Interval: interval, Verify: podsim.Verify, OneLook: true})
	pod.RestartWorkloadAPI()
	pod.Advance(now)
	l.RecordFiles(pod.CredentialFiles(now))
	l.RecordWorkloadAPI(pod.WorkloadAPI(now))
	if i := pod.Issuance(); i != nil {
		l.RecordIssuance(*i)
	}
	l.RecordEnvoy(pod.Envoy(now))
	return l.Judge(now)
}

// TestOneLookAtAHealthyPod: at no moment of a healthy life does one look find
// anything wrong.
func TestOneLookAtAHealthyPod(t *testing.T) {
	seed := rand.Uint64()
	everyPod(t, func(t *testing.T, cfg podsim.Config) {
		r := rand.New(rand.NewPCG(seed, 0))
		for _, ttl := range []time.Duration{5 * time.Minute, 10 * time.Minute, time.Hour, 24 * time.Hour} {
			cfg.TTL, cfg.Renewal, cfg.Rand = ttl, 0, r
			now := time.Now()
			pod := podsim.New(cfg, now)
			step := ttl / 200
			for range 1000 {
				now = now.Add(step)
				pod.Advance(now)
				if r.IntN(4) > 0 {
					continue
				}
				if v := lookOnce(pod, now, 0); v.State != rotation.Healthy {
					t.Fatalf("TTL %s: %s %+v (seed %d)", ttl, v.State, v.Problems, seed)
				}
			}
		}
	})
}

// TestOneLookAtTheIncident: at real-life durations one look names the incident
// before the certificate expires: as soon as the leaf is older than any issuer
// lets it get, which is half of its life, or, where the interval is given, than that. Up to Envoy 1.36 it
// tells, from the second re-send on, that the server re-sends.
func TestOneLookAtTheIncident(t *testing.T) {
	for _, modern := range []bool{false, true} {
		for _, interval := range []time.Duration{0, 20 * time.Minute} {
			now := time.Now()
			pod := podsim.New(podsim.Config{Issuer: podsim.Tbot, Modern: modern, TTL: time.Hour}, now)
			pod.Resend = true
			begin := now
			var named, hollow time.Duration
			for ; now.Sub(begin) < 59*time.Minute; now = now.Add(30 * time.Second) {
				pod.Advance(now)
				v := lookOnce(pod, now, interval)
				at := now.Sub(begin)
				if p, ok := v.Find(rotation.DeliveryOverdue); ok {
					if named == 0 {
						named = at
					}
					allowed := []rotation.Reason{rotation.ReasonServerSilentOrResends}
					if !modern {
						allowed = append(allowed, rotation.ReasonServerResends)
					}
					if !slices.Contains(allowed, p.Reason) {
						t.Errorf("modern %t, after %s: %s", modern, at, p.Reason)
					}
				}
				if v.Has(rotation.HollowUpdate) && hollow == 0 {
					hollow = at
				}
			}
			latest := 33 * time.Minute
			if interval > 0 {
				latest = 22 * time.Minute
			}
			if named == 0 || named > latest {
				t.Errorf("modern %t, interval %s: named after %s, want %s", modern, interval, named, latest)
			}
			if seen := hollow > 0 && hollow <= 42*time.Minute; seen == modern {
				t.Errorf("modern %t, interval %s: hollow after %s", modern, interval, hollow)
			}
		}
	}
}

// TestOneLookByAWrongClock: on a node whose clock is hours ahead one look finds
// that certificates have expired, the one just issued too; it blames neither the
// issuer nor Envoy. What is older than what is issued by more than an interval is
// late by any clock.
func TestOneLookByAWrongClock(t *testing.T) {
	everyPod(t, func(t *testing.T, cfg podsim.Config) {
		cfg.TTL, cfg.Renewal, cfg.Skew = time.Hour, 20*time.Minute, -5*time.Hour
		now := time.Now()
		pod := podsim.New(cfg, now)
		for range 90 {
			now = now.Add(time.Minute)
			pod.Advance(now)
			v := lookOnce(pod, now, 0)
			if p, ok := v.Find(rotation.CertificateExpired); !ok || len(v.Problems) != 1 || !strings.Contains(p.Advice, "clock") {
				t.Fatalf("%+v", v.Problems)
			}
		}
		pod.Resend = true
		now = now.Add(45 * time.Minute)
		pod.Advance(now)
		if v := lookOnce(pod, now, 0); !v.Has(rotation.DeliveryOverdue) || v.Has(rotation.IssuanceOverdue) {
			t.Errorf("after 45 minutes in which the old SVID was re-sent: %+v", v.Problems)
		}
	})
}

// TestOneLookAtSilence: up to Envoy 1.36 a leaf that nothing came after tells
// of a silent server; on newer ones it may also be one that re-sends.
func TestOneLookAtSilence(t *testing.T) {
	for modern, want := range map[bool]rotation.Reason{false: rotation.ReasonServerSilent, true: rotation.ReasonServerSilentOrResends} {
		now := time.Now()
		pod := podsim.New(podsim.Config{Issuer: podsim.Tbot, Modern: modern, TTL: time.Hour}, now)
		pod.Advance(now)
		now = now.Add(time.Minute)
		pod.Advance(now)
		pod.SDSSilent = true
		for range 40 {
			now = now.Add(time.Minute)
			pod.Advance(now)
		}
		if p, ok := lookOnce(pod, now, 0).Find(rotation.DeliveryOverdue); !ok || p.Reason != want {
			t.Errorf("modern %t: %t %s, want %s", modern, ok, p.Reason, want)
		}
	}
}

// TestNoWorkloadAPI: a check that asks for no SVID is healthy without the stage
// issued, and says when the socket does not answer.
func TestNoWorkloadAPI(t *testing.T) {
	now := time.Now()
	pod := podsim.New(podsim.Config{Issuer: podsim.Tbot, Modern: true, TTL: time.Hour}, now)
	pod.Advance(now)
	pod.Advance(now.Add(time.Second))
	now = now.Add(2 * time.Second)
	yes, no := true, false
	judge := func(api rotation.WorkloadAPI) rotation.Verdict {
		l := rotation.NewLedger(rotation.Config{Grace: grace, OneLook: true, NoWorkloadAPI: true})
		l.RecordFiles(pod.CredentialFiles(now))
		api.At = now
		l.RecordWorkloadAPI(api)
		l.RecordEnvoy(pod.Envoy(now))
		return l.Judge(now)
	}
	v := judge(rotation.WorkloadAPI{State: rotation.WorkloadAPINotAsked, SocketAnswers: &yes})
	if v.State != rotation.Healthy || v.IdentityMode != rotation.ModeExternalSDS {
		t.Errorf("%s %s %+v", v.State, v.IdentityMode, v.Problems)
	}
	v = judge(rotation.WorkloadAPI{State: rotation.WorkloadAPIUnreachable, Reason: rotation.ReasonRefused, SocketAnswers: &no})
	if p, _ := v.Find(rotation.WorkloadUnreachable); p.Reason != rotation.ReasonRefused || v.IdentityMode != rotation.ModeIstiodCA {
		t.Errorf("%+v %s", v.Problems, v.IdentityMode)
	}
}

// TestOneLookAtASharedLeaf: with SPIRE the leaf that is issued is the one that
// is delivered. Its age does not make the issuer one that back-dates by as much.
func TestOneLookAtASharedLeaf(t *testing.T) {
	now := time.Now()
	for age, overdue := range map[time.Duration]bool{25 * time.Minute: false, 40 * time.Minute: true} {
		leaf := rotation.Certificate{
			SPIFFEID: podsim.ID, Serial: "1", SHA256: rotation.Fingerprint{1},
			NotBefore: now.Add(-age - 10*time.Second), NotAfter: now.Add(time.Hour - age),
		}
		l := rotation.NewLedger(rotation.Config{Grace: grace, OneLook: true})
		l.RecordWorkloadAPI(rotation.WorkloadAPI{At: now, State: rotation.WorkloadAPIServing})
		l.RecordIssuance(rotation.Issuance{At: now, Stream: 1, Leaf: leaf, SPIFFEIDs: []string{podsim.ID}})
		l.RecordEnvoy(rotation.Envoy{
			At: now, Started: rotation.Start{Earliest: now.Add(-2 * time.Hour)}, Version: "1.40.0",
			Secrets: &rotation.Secrets{At: now, Identity: []rotation.DeliveredIdentity{{Leaf: leaf}}},
		})
		v := l.Judge(now)
		if v.Has(rotation.DeliveryOverdue) != overdue || v.Has(rotation.IssuanceOverdue) != overdue {
			t.Errorf("at an age of %s: %+v", age, v.Problems)
		}
	}
}
