package watchdog

import (
	"bytes"
	"context"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"svid-watchdog/internal/podsim"
	"svid-watchdog/internal/rotation"
)

// buffer collects the log.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// watch runs the real loop of the watchdog on a simulated pod, in the time of
// a synctest bubble, and returns the monitor and its log.
func watch(t *testing.T, pod *podsim.Pod) (*monitor, *buffer) {
	t.Helper()
	log := &buffer{}
	m := newMonitor(rotation.Config{Grace: DefaultConfig().Grace, Verify: podsim.Verify}, slog.New(slog.NewTextHandler(log, nil)))
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := m.judge(ctx); err != nil {
			t.Error(err)
		}
	})
	wg.Go(func() { // the pod lives; what it brings comes at once, Envoy is looked at each poll
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		var looked time.Time
		for {
			now := time.Now()
			pod.Advance(now)
			if i := pod.Issuance(); i != nil {
				m.record(func(l *rotation.Ledger) {
					l.RecordWorkloadAPI(pod.WorkloadAPI(now))
					l.RecordIssuance(*i)
				})
			}
			if looked.IsZero() || now.Sub(looked) >= DefaultConfig().PollInterval {
				looked = now
				m.record(func(l *rotation.Ledger) {
					l.RecordFiles(pod.CredentialFiles(now))
					l.RecordEnvoy(pod.Envoy(now))
				})
			}
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	})
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	return m, log
}

// raised lists the problems that were ever raised, with the time since start.
func raised(m *monitor, start time.Time) map[rotation.ProblemName]time.Duration {
	out := make(map[rotation.ProblemName]time.Duration)
	for _, e := range m.Verdict().Events {
		if _, known := out[e.Problem]; e.Type == rotation.EventProblemRaised && !known {
			out[e.Problem] = e.At.Sub(start)
		}
	}
	return out
}

func TestHealthyHour(t *testing.T) {
	for _, issuer := range []podsim.Issuer{podsim.Tbot, podsim.SPIRE} {
		for _, modern := range []bool{false, true} {
			t.Run(string(issuer)+map[bool]string{false: "/1.36", true: "/1.37"}[modern], func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					start := time.Now()
					m, log := watch(t, podsim.New(podsim.Config{Issuer: issuer, Modern: modern, TTL: time.Hour}, start))
					time.Sleep(time.Hour + time.Minute)
					if r := raised(m, start); len(r) > 0 {
						t.Errorf("raised %v\n%s", r, log)
					}
					if v := m.Verdict(); v.State != rotation.Healthy || v.VerifiedRotations < 2 {
						t.Errorf("%s with %d verified rotations\n%s", v.State, v.VerifiedRotations, log)
					}
				})
			})
		}
	}
}

// TestIncidentByTheClock plays ten hours of the incident on the running loop:
// lifetime an hour, renewal each 20 minutes, the SDS side re-sends one SVID.
func TestIncidentByTheClock(t *testing.T) {
	for _, modern := range []bool{false, true} {
		t.Run(map[bool]string{false: "1.36", true: "1.37"}[modern], func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				pod := podsim.New(podsim.Config{Issuer: podsim.Tbot, Modern: modern, TTL: time.Hour}, start)
				pod.Resend = true
				m, log := watch(t, pod)
				time.Sleep(29 * time.Minute)
				named := raised(m, start)
				if _, ok := named[rotation.DeliveryOverdue]; !ok {
					t.Fatalf("not named half an hour before the first expiry: %v\n%s", named, log)
				}
				if _, ok := named[rotation.HollowUpdate]; ok == modern {
					t.Errorf("hollow_update named: %t\n%s", ok, log)
				}
				if !bytes.Contains([]byte(log.String()), []byte("18.6.4")) {
					t.Errorf("the log does not name the tbot version that mends it\n%s", log)
				}
				time.Sleep(10*time.Hour - 29*time.Minute)
				v := m.Verdict()
				if v.State != rotation.Broken || !v.Has(rotation.CertificateExpired) || v.Has(rotation.IssuanceOverdue) {
					t.Errorf("after ten hours: %s %v\n%s", v.State, v.Problems, log)
				}
			})
		})
	}
}

// TestJudgesByTimeAlone: a certificate expires without new evidence, and that
// is logged when it happens, not when somebody asks.
func TestJudgesByTimeAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &buffer{}
		m := newMonitor(rotation.Config{Grace: time.Second}, slog.New(slog.NewTextHandler(log, nil)))
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- m.judge(ctx) }()
		now := time.Now()
		leaf := rotation.Certificate{SPIFFEID: podsim.ID, Serial: "1", NotBefore: now, NotAfter: now.Add(time.Hour)}
		m.record(func(l *rotation.Ledger) { l.RecordIssuance(rotation.Issuance{At: now, Stream: 1, Leaf: leaf}) })
		time.Sleep(time.Hour + 10*time.Millisecond)
		synctest.Wait()
		if !bytes.Contains([]byte(log.String()), []byte("problem=certificate_expired")) {
			t.Errorf("log:\n%s", log)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}
