package lab

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"svid-watchdog/internal/e2e/neighbour"
)

// eachRealEnvoy runs a test on all releases.
func eachRealEnvoy(t *testing.T, test func(t *testing.T, p *box, modern bool)) {
	for _, version := range []string{"1.36.4", "1.37.0", "1.38.3", "1.39.3", "1.40.0"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			path := neighbour.Envoy(t, version)
			// Nothing is renewed by itself: each test says when.
			pod, err := Start(t.Context(), Config{Issuer: Tbot, TTL: never, Renewal: never - 1, EnvoyPath: path})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := pod.Close(); err != nil {
					t.Error(err)
				}
			})
			if got := pod.Envoy().Version(); got != version {
				t.Errorf("version %s, want %s", got, version)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			t.Cleanup(cancel)
			client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
			test(t, &box{Pod: pod, t: t, ctx: ctx, client: client}, version != "1.36.4")
		})
	}
}

// box is a pod and what can be seen of its Envoy.
type box struct {
	*Pod
	t      *testing.T
	ctx    context.Context
	client *http.Client
}

func (b *box) get(ctx context.Context, path string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, b.Envoy().AdminAddress()+path, nil)
	if err != nil {
		return nil, err
	}
	response, err := b.client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	return io.ReadAll(response.Body)
}

// dump is what the configuration dump says of the identity secret.
type dump struct {
	version string
	updated time.Time
	serial  string
}

func (b *box) dump() (d dump) {
	b.t.Helper()
	body, err := b.get(b.ctx, "/config_dump?resource=dynamic_active_secrets&name_regex="+identitySecret)
	if err != nil {
		b.t.Fatal(err)
	}
	var answer struct {
		Configs []struct {
			Version string    `json:"version_info"`
			Updated time.Time `json:"last_updated"`
			Secret  struct {
				Certificate struct {
					Chain struct {
						Bytes []byte `json:"inline_bytes"`
					} `json:"certificate_chain"`
				} `json:"tls_certificate"`
			} `json:"secret"`
		} `json:"configs"`
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		b.t.Fatalf("%v: %s", err, body)
	}
	if len(answer.Configs) == 0 {
		return d
	}
	secret := answer.Configs[0]
	block, _ := pem.Decode(secret.Secret.Certificate.Chain.Bytes)
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		b.t.Fatal(err)
	}
	return dump{secret.Version, secret.Updated, leaf.SerialNumber.Text(16)}
}

// contexts counts the leaves in /certs by their serial number.
func (b *box) contexts() map[string]int {
	b.t.Helper()
	body, err := b.get(b.ctx, "/certs")
	if err != nil {
		b.t.Fatal(err)
	}
	var answer struct {
		Certificates []struct {
			Chain []struct {
				Serial string `json:"serial_number"`
			} `json:"cert_chain"`
		} `json:"certificates"`
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		b.t.Fatalf("%v: %s", err, body)
	}
	count := make(map[string]int)
	for _, c := range answer.Certificates {
		for _, leaf := range c.Chain {
			n, ok := new(big.Int).SetString(leaf.Serial, 16)
			if !ok {
				b.t.Fatalf("serial %q", leaf.Serial)
			}
			count[n.Text(16)]++
		}
	}
	return count
}

// served is the leaf that a peer is shown.
func (b *box) served() string {
	b.t.Helper()
	dialer := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}} //nolint:gosec // only looked at
	conn, err := dialer.DialContext(b.ctx, "tcp", b.Envoy().ListenerAddress())
	if err != nil {
		b.t.Fatal(err)
	}
	defer conn.Close()
	return conn.(*tls.Conn).ConnectionState().PeerCertificates[0].SerialNumber.Text(16)
}

// events is how many events there were so far.
func (b *box) events() uint64 {
	events, _ := b.Events()
	if len(events) == 0 {
		return 0
	}
	return events[len(events)-1].Seq
}

// sentAfter is the SVID that was sent to Envoy after a number of events and
// answered by it as said.
func (b *box) sentAfter(seq uint64, answered EventKind) Event {
	b.t.Helper()
	sent := awaitEvent(b.ctx, b.t, b.Events, func(e Event) bool {
		return e.Seq > seq && e.Kind == SVIDSent && e.Service == SDS
	})
	awaitEvent(b.ctx, b.t, b.Events, func(e Event) bool {
		return e.Seq > sent.Seq && e.Stream == sent.Stream && e.Kind == answered
	})
	return sent
}

// inUse checks that Envoy holds the leaf, uses it in every context, and shows
// it to peers. Envoy updates its contexts before it acknowledges, but a
// listener opens only when all secrets have come.
func (b *box) inUse(sent Event) {
	b.t.Helper()
	if d := b.dump(); d.serial != sent.Serial || d.version != sent.Version {
		b.t.Errorf("dump %+v, want %+v", d, sent)
	}
	for {
		body, err := b.get(b.ctx, "/ready")
		if err != nil {
			b.t.Fatal(err)
		}
		if strings.TrimSpace(string(body)) == "LIVE" {
			break
		}
		select {
		case <-b.ctx.Done():
			b.t.Fatalf("not live: %s", body)
		case <-time.After(50 * time.Millisecond):
		}
	}
	// One listener and two clusters.
	if c := b.contexts(); len(c) != 1 || c[sent.Serial] != 3 {
		b.t.Errorf("contexts %v, want 3 with %s", c, sent.Serial)
	}
	if serial := b.served(); serial != sent.Serial {
		b.t.Errorf("a peer is shown %s, want %s", serial, sent.Serial)
	}
}

// TestRealEnvoy: a renewal is used, and a restart and a hang are survived.
func TestRealEnvoy(t *testing.T) {
	eachRealEnvoy(t, func(t *testing.T, b *box, _ bool) {
		first := b.sentAfter(0, Acknowledged)
		b.inUse(first)

		seq := b.events()
		if err := b.pushSDS(); err != nil {
			t.Fatal(err)
		}
		renewed := b.sentAfter(seq, Acknowledged)
		if renewed.Serial == first.Serial {
			t.Error("renewed with the same leaf")
		}
		b.inUse(renewed)

		admin, listener := b.Envoy().AdminAddress(), b.Envoy().ListenerAddress()
		seq = b.events()
		if err := b.Envoy().Stop(); err != nil {
			t.Fatal(err)
		}
		if _, err := b.get(b.ctx, "/ready"); err == nil {
			t.Error("Envoy answers although it was stopped")
		}
		if err := b.Envoy().Start(b.ctx); err != nil {
			t.Fatal(err)
		}
		if b.Envoy().AdminAddress() != admin || b.Envoy().ListenerAddress() != listener {
			t.Error("the addresses have changed")
		}
		b.inUse(b.sentAfter(seq, Acknowledged))

		if err := b.Envoy().Hang(); err != nil {
			t.Fatal(err)
		}
		// The signal takes a moment; from then on the answer never comes.
		for {
			short, cancel := context.WithTimeout(b.ctx, 300*time.Millisecond)
			_, err := b.get(short, "/ready")
			cancel()
			if err != nil {
				break
			}
		}
		if err := b.Envoy().Resume(); err != nil {
			t.Fatal(err)
		}
		if _, err := b.get(b.ctx, "/ready"); err != nil {
			t.Error(err)
		}
	})
}

// TestRealEnvoyIncident: the lab's incident looks as the measured one does. An
// identical secret under a new version moves version_info and last_updated up
// to Envoy 1.36 and nothing from 1.37 on, and never the leaf.
func TestRealEnvoyIncident(t *testing.T) {
	eachRealEnvoy(t, func(t *testing.T, b *box, modern bool) {
		b.inUse(b.sentAfter(0, Acknowledged))
		before := b.dump()
		if err := b.Inject(b.ctx, "tbot-resend"); err != nil {
			t.Fatal(err)
		}
		seq := b.events()
		b.server.push(SDS) // a renewal, now
		sent := b.sentAfter(seq, Acknowledged)
		after := b.dump()
		switch {
		case sent.Serial != before.serial || sent.Version == before.version:
			t.Errorf("sent %+v after %+v", sent, before)
		case after.serial != before.serial:
			t.Errorf("the leaf has changed: %+v", after)
		case modern && after != before:
			t.Errorf("was %+v, is %+v: want no change", before, after)
		case !modern && (after.version != sent.Version || !after.updated.After(before.updated)):
			t.Errorf("was %+v, is %+v: want the new version and time", before, after)
		}

		seq = b.events()
		if err := b.Heal(b.ctx, "tbot-resend"); err != nil {
			t.Fatal(err)
		}
		healed := b.sentAfter(seq, Acknowledged)
		if healed.Serial == before.serial {
			t.Error("a new stream brought the old leaf")
		}
		b.inUse(healed)
	})
}

// TestRealEnvoyRefuses: a key that does not match is refused; the dump shows
// the refused leaf all the same, with the old time, and the contexts keep the
// one before.
func TestRealEnvoyRefuses(t *testing.T) {
	eachRealEnvoy(t, func(t *testing.T, b *box, modern bool) {
		good := b.sentAfter(0, Acknowledged)
		b.inUse(good)
		before := b.dump()
		seq := b.events()
		if err := b.Inject(b.ctx, "bad-key"); err != nil {
			t.Fatal(err)
		}
		bad := b.sentAfter(seq, Refused)
		after := b.dump()
		if after.serial != bad.Serial || !after.updated.Equal(before.updated) || (after.version == bad.Version) != modern {
			t.Errorf("was %+v, sent %+v, is %+v", before, bad, after)
		}
		if c := b.contexts(); len(c) != 1 || c[good.Serial] != 3 {
			t.Errorf("contexts %v, want 3 with %s", c, good.Serial)
		}
		seq = b.events()
		if err := b.Heal(b.ctx, "bad-key"); err != nil {
			t.Fatal(err)
		}
		b.inUse(b.sentAfter(seq, Acknowledged))
	})
}

// TestRealEnvoyThatDoesNotStart: the error has Envoy's own words.
func TestRealEnvoyThatDoesNotStart(t *testing.T) {
	dir := t.TempDir()
	fake := filepath.Join(dir, "envoy")
	script := "#!/bin/sh\ncase $1 in --version) echo 'envoy  version: abc/1.99.0/Clean/RELEASE/BoringSSL';; *) echo 'no such luck'; exit 1;; esac\n"
	if err := os.WriteFile(fake, []byte(script), 0o700); err != nil { //nolint:gosec // a program
		t.Fatal(err)
	}
	pod, err := Start(t.Context(), Config{EnvoyPath: fake})
	if err == nil {
		t.Fatal(fmt.Errorf("it has started"), pod.Close())
	}
	if !strings.Contains(err.Error(), "no such luck") {
		t.Error(err)
	}
}
