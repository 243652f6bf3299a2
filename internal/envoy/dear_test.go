package envoy

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"svid-watchdog/internal/rotation"
)

// prices are what a real Envoy was measured to spend on each question
// (docs/footprint.md).
type prices struct {
	version  string
	clusters int
	cost     map[question]time.Duration
}

func measuredPrices() []prices {
	row := func(version string, clusters int, secrets, contexts, cluster, stats float64) prices {
		ms := func(n float64) time.Duration { return time.Duration(n * float64(time.Millisecond)) }
		return prices{version, clusters, map[question]time.Duration{
			askServerInfo: ms(2), askSecrets: ms(secrets), askWarming: ms(secrets), askContexts: ms(contexts), askClusters: ms(cluster), askStats: ms(stats),
		}}
	}
	return []prices{
		row("1.36.4", 10, 0.5, 2, 0.5, 0.5), row("1.36.4", 1000, 4, 36, 38, 4), row("1.36.4", 10_000, 38, 350, 290, 54),
		row("1.40.0", 10, 0.5, 2, 0.5, 0.5), row("1.40.0", 1000, 2, 18, 0.5, 2), row("1.40.0", 10_000, 28, 248, 6, 52),
	}
}

// dearEnvoy takes time for each answer and holds certificates that rotate.
type dearEnvoy struct {
	t *testing.T
	prices
	born time.Time

	mu        sync.Mutex
	spent     time.Duration
	asked     map[question]int
	leaf      []byte // PEM
	cert      *x509.Certificate
	delivered time.Time
	ca        []byte
}

func (e *dearEnvoy) rotate() {
	leaf, ca := chain(e.t, testID)
	cert, err := x509.ParseCertificate(leaf)
	if err != nil {
		e.t.Fatal(err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.leaf, e.cert, e.delivered, e.ca = pemOf(leaf), cert, time.Now(), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca})
}

func (e *dearEnvoy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q := classify(r)
	time.Sleep(e.cost[q]) // of the bubble: Envoy's main thread is busy
	e.mu.Lock()
	defer e.mu.Unlock()
	e.spent += e.cost[q]
	e.asked[q]++
	switch q {
	case askServerInfo:
		fmt.Fprintf(w, `{"version":"x/%s/y","state":"LIVE","uptime_current_epoch":"%ds"}`, e.version, int(time.Since(e.born).Seconds()))
	case askStats: // hidden
	case askSecrets:
		fmt.Fprint(w, dumpOf(identityJSON("default", "1", e.delivered.UTC().Format("2006-01-02T15:04:05.000Z07:00"), e.leaf), plainBundleJSON(e.ca)))
	case askWarming:
		fmt.Fprint(w, `{}`)
	case askContexts:
		fmt.Fprintf(w, `{"certificates":[{"cert_chain":[{"serial_number":"%x","subject_alt_names":[{"uri":%q}],"valid_from":%q,"expiration_time":%q}]}]}`,
			e.cert.SerialNumber, testID, e.cert.NotBefore.Format(time.RFC3339), e.cert.NotAfter.Format(time.RFC3339))
	case askClusters:
		fmt.Fprint(w, `{"cluster_statuses":[`+clusterJSON+`]}`)
	default:
		e.t.Errorf("asked %s %s", r.Method, r.URL)
	}
}

// TestADearEnvoy: whatever the mesh and the release, Envoy spends no more than
// its budget on us; a delivery and its use are seen within two seconds all the
// same, and the secrets are looked at in the distance that was configured.
// Only what is dear and not urgent becomes older.
func TestADearEnvoy(t *testing.T) {
	const (
		interval = 20 * time.Minute
		length   = 4 * time.Hour
		rest     = 15 * time.Second
	)
	for _, p := range measuredPrices() {
		// Envoy's stream renews before ours, or after.
		for _, offset := range []time.Duration{-8 * time.Minute, -7 * time.Second, 11 * time.Second} {
			t.Run(fmt.Sprintf("%s/%d/%s", p.version, p.clusters, offset), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					begin := time.Now()
					e := &dearEnvoy{t: t, prices: p, born: begin.Add(-time.Minute), asked: make(map[question]int)}
					e.rotate()
					e.delivered = begin.Add(min(offset, 0)) // Envoy is older than we are
					pipe := newPipe()
					server := &http.Server{Handler: e}
					go func() { _ = server.Serve(pipe) }() // ends with Close

					var maxGap, maxContexts, maxClusters, late time.Duration
					var looked, contexts, clusters time.Time
					var perMinute, perMinuteMax int
					var minute time.Time
					seen, rotations := begin, 0
					cfg := config("http://127.0.0.1:15000")
					cfg.Observe = func(o rotation.Envoy) {
						if o.Err+o.Incomplete != "" {
							t.Error(o.Err + o.Incomplete)
							return
						}
						now := time.Now()
						older := func(last *time.Time, longest *time.Duration) {
							if !last.IsZero() {
								*longest = max(*longest, now.Sub(*last))
							}
							*last = now
						}
						older(&looked, &maxGap)
						if o.SDSCluster != nil {
							older(&clusters, &maxClusters)
						}
						if now.Sub(minute) >= time.Minute {
							minute, perMinute = now, 0
						}
						perMinute++
						perMinuteMax = max(perMinuteMax, perMinute)
						if o.Contexts == nil {
							return
						}
						older(&contexts, &maxContexts)
						e.mu.Lock()
						delivered, notAfter := e.delivered, e.cert.NotAfter
						e.mu.Unlock()
						if o.Contexts.Leaves[0].Leaf.NotAfter.Equal(notAfter) && delivered.After(seen) {
							seen = delivered
							// The first comes before anything could be learned.
							if rotations++; rotations > 1 {
								late = max(late, now.Sub(delivered))
							}
						}
					}
					c, err := New(cfg)
					if err != nil {
						t.Fatal(err)
					}
					c.admin.client.Transport.(*http.Transport).DialContext = pipe.dial
					ctx, cancel := context.WithCancel(t.Context())
					ended := make(chan error, 1)
					go func() { ended <- c.Run(ctx) }()

					drift := time.Duration(0)
					for at := interval; at < length; at += interval {
						// A timer that is set after each renewal is later each time.
						drift += 300 * time.Millisecond
						ours, envoys := begin.Add(at+drift), begin.Add(at+drift+offset)
						do := []struct {
							at time.Time
							f  func()
						}{{ours, c.Nudge}, {envoys, e.rotate}}
						if envoys.Before(ours) {
							do[0], do[1] = do[1], do[0]
						}
						for _, d := range do {
							time.Sleep(time.Until(d.at))
							d.f()
						}
					}
					time.Sleep(time.Until(begin.Add(length)))
					cancel()
					if err := <-ended; err != nil {
						t.Error(err)
					}
					time.Sleep(time.Second) // an answer that was under way ends
					server.Close()
					synctest.Wait()

					t.Logf("Envoy %s with %d clusters: %.3f%% of its time, asked %v, at most %d looks a minute; oldest secrets %s, contexts %s, clusters %s; a rotation is seen after %s at the latest",
						p.version, p.clusters, 100*e.spent.Seconds()/length.Seconds(), e.asked, perMinuteMax, maxGap, maxContexts, maxClusters, late)
					if limit := length/200 + c.budget.burst; e.spent > limit {
						t.Errorf("Envoy spent %s on us, the budget is %s", e.spent, limit)
					}
					if want := int(length/interval) - 1; rotations != want {
						t.Errorf("%d rotations were seen, want %d", rotations, want)
					}
					if late > 2*time.Second {
						t.Errorf("a rotation was seen %s after it happened", late)
					}
					if maxGap > rest+time.Second {
						t.Errorf("the secrets were not looked at for %s", maxGap)
					}
					// At rest four looks a minute: what is quick is rare.
					if looks, most := e.asked[askSecrets], int(length/rest)+20*int(length/interval); looks > most {
						t.Errorf("%d looks, want at most %d", looks, most)
					}
					if limit := 15 * time.Minute; maxContexts > limit || maxClusters > limit {
						t.Errorf("contexts were as old as %s, clusters as %s", maxContexts, maxClusters)
					}
				})
			})
		}
	}
}
