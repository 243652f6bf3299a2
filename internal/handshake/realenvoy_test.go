package handshake

import (
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"svid-watchdog/internal/e2e/neighbour"
	"svid-watchdog/internal/lab"
	"svid-watchdog/internal/rotation"
)

// TestRealEnvoy: each release shows its certificate in TLS 1.2 and 1.3 to a
// peer without one, and the new one after a renewal; without a listener the
// connection is refused. What a handshake leaves behind in Envoy is what the
// document says.
func TestRealEnvoy(t *testing.T) {
	for _, version := range []string{"1.36.4", "1.37.0", "1.38.3", "1.39.3", "1.40.0"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			pod, err := lab.Start(t.Context(), lab.Config{Issuer: lab.Tbot, TTL: time.Minute, Renewal: 3 * time.Second, EnvoyPath: neighbour.Envoy(t, version), AllStats: true})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { pod.Close() })
			for _, max := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
				p, err := New(Config{Address: pod.Envoy().ListenerAddress(), maxVersion: max})
				if err != nil {
					t.Fatal(err)
				}
				first := await(t, p, "a certificate", func(h rotation.Handshake) bool { return h.Leaf != nil })
				if first.Leaf.SPIFFEID != lab.SPIFFEID {
					t.Errorf("%+v", first)
				}
				await(t, p, "the renewed certificate", func(h rotation.Handshake) bool {
					return h.Leaf != nil && h.Leaf.Serial != first.Leaf.Serial && h.Leaf.NotAfter.After(first.Leaf.NotAfter)
				})

				const n = 20
				// The worker counts an aborted handshake when it gets to it.
				var before map[string]int
				waitFor(t, "Envoy to have counted the handshakes so far", func() bool {
					before = counters(t, pod.Envoy().AdminAddress())
					return before["downstream_cx_active"] == 0
				})
				for range n {
					if h := p.Look(t.Context()); h.Leaf == nil {
						t.Fatalf("%+v", h)
					}
				}
				moved := make(map[string]int)
				waitFor(t, "Envoy to count", func() bool {
					for name, value := range counters(t, pod.Envoy().AdminAddress()) {
						moved[name] = value - before[name]
					}
					return moved["ssl.connection_error"] >= n
				})
				for name, by := range moved {
					if by != 0 {
						t.Logf("%s: %s +%d", tls.VersionName(max), name, by)
					}
				}
				want := map[string]int{"downstream_cx_total": n, "ssl.connection_error": n, "ssl.handshake": 0, "ssl.fail_verify_no_cert": 0}
				for name, by := range want {
					if moved[name] != by {
						t.Errorf("%s: %s moved by %d, want %d", tls.VersionName(max), name, moved[name], by)
					}
				}
			}
			if err := pod.Envoy().Stop(); err != nil {
				t.Fatal(err)
			}
			p, err := New(Config{Address: pod.Envoy().ListenerAddress()})
			if err != nil {
				t.Fatal(err)
			}
			if h := p.Look(t.Context()); h.Failure != rotation.HandshakeRefused {
				t.Errorf("%+v", h)
			}
		})
	}
}

// TestPermissive: under PERMISSIVE mutual TLS it is the protocols on offer that
// lead to the certificate; the TLS of other peers goes to the application.
func TestPermissive(t *testing.T) {
	for _, version := range []string{"1.36.4", "1.40.0"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			pod, err := lab.Start(t.Context(), lab.Config{Issuer: lab.Tbot, EnvoyPath: neighbour.Envoy(t, version), Permissive: true})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { pod.Close() })
			with, err := New(Config{Address: pod.Envoy().ListenerAddress()})
			if err != nil {
				t.Fatal(err)
			}
			await(t, with, "a certificate", func(h rotation.Handshake) bool { return h.Leaf != nil })
			without, err := New(Config{Address: pod.Envoy().ListenerAddress(), noProtocols: true})
			if err != nil {
				t.Fatal(err)
			}
			if h := without.Look(t.Context()); h.Leaf != nil || h.Failure != rotation.HandshakeClosed {
				t.Errorf("without Istio's protocols: %+v", h)
			}
		})
	}
}

func waitFor(t *testing.T, what string, satisfied func() bool) {
	t.Helper()
	deadline := time.NewTimer(15 * time.Second)
	defer deadline.Stop()
	again := time.NewTicker(100 * time.Millisecond)
	defer again.Stop()
	for !satisfied() {
		select {
		case <-again.C:
		case <-deadline.C:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func await(t *testing.T, p *Prober, what string, satisfied func(rotation.Handshake) bool) (h rotation.Handshake) {
	t.Helper()
	waitFor(t, what, func() bool {
		h = p.Look(t.Context())
		return satisfied(h)
	})
	return h
}

var counter = regexp.MustCompile(`^listener\.(?:127\.0\.0\.1_\d+)\.([a-z_.]+): (\d+)$`)

// counters are those of the inbound listener.
func counters(t *testing.T, admin string) map[string]int {
	t.Helper()
	response, err := http.Get(admin + "/stats?filter=" + `^listener\.127`)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[string]int)
	for line := range strings.Lines(string(text)) {
		if m := counter.FindStringSubmatch(strings.TrimSpace(line)); m != nil {
			var value int
			if _, err := fmt.Sscan(m[2], &value); err != nil {
				t.Fatal(err)
			}
			out[m[1]] = value
		}
	}
	return out
}
