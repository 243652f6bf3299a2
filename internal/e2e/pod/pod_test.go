package pod

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"svid-watchdog/internal/e2e/netns"
	"svid-watchdog/internal/e2e/prom"
	"svid-watchdog/internal/e2e/sidecar"
	"svid-watchdog/internal/e2e/spire"
	"svid-watchdog/internal/rotation"
)

func TestMain(m *testing.M) { os.Exit(sidecar.Main(m)) }

const (
	// In this pod an hour takes a minute: that is how long a certificate lives,
	// and the rules run sixty times as fast.
	factor = 60
	ttl    = time.Hour / factor
	grace  = 3 * time.Second
	// renewal is SPIRE's: half of the lifetime and the ten seconds by which it
	// is back-dated, less these.
	renewal = (ttl+10*time.Second)/2 - 10*time.Second
	// slack is for a machine with more to do.
	slack = 45 * time.Second
	// memoryLimit is the one of the template.
	memoryLimit = 32 << 20
)

// TestRealPod: the pod of the shipped template runs and rotates, within its
// limits and behind STRICT mutual TLS; and when the identity provider dies, the
// alert arrives, istio-proxy must not be restarted, as the watchdog said, and
// heals with the provider.
func TestRealPod(t *testing.T) {
	identities := spire.Start(t,
		spire.Workload{ID: workloadID, User: 1337, TTL: ttl}, // Envoy and, for its handshake, the watchdog
		spire.Workload{ID: clientID, User: os.Getuid(), TTL: ttl})
	r := run(t, identities, map[string]string{
		"SVID_WATCHDOG_ROTATION_GRACE": grace.String(), "SVID_WATCHDOG_ENVOY_POLL_INTERVAL": "1s", "SVID_WATCHDOG_ENVOY_BUDGET": "50",
	})
	v := r.until(ttl+slack, "health, a first certificate at every stage, and Envoy's statistics", func(v rotation.Verdict) bool {
		return v.State == rotation.Healthy && v.Stage(rotation.Served).Certificate != nil && v.Envoy.StatsVisible
	})
	for _, stage := range rotation.Stages() {
		if c := v.Stage(stage).Certificate; c == nil || c.SPIFFEID != workloadID {
			t.Errorf("%s: %+v", stage, c)
		}
	}
	if v.Envoy.Version != "1.40.0" || v.IdentityMode != rotation.ModeExternalSDS || v.NextStart != rotation.StartLeavesSocket {
		t.Errorf("%+v, %s, %s", v.Envoy, v.IdentityMode, v.NextStart)
	}
	memory := r.cgroup("svid-watchdog")
	if limit := memory.bytes(memory.limit); limit != memoryLimit {
		t.Errorf("the kernel holds the watchdog to %d bytes", limit)
	}

	strict(t, r, identities)
	handshakes(t, r)

	mailbox := prom.NewMailbox(t)
	manager := prom.StartAlertmanager(t, factor, mailbox)
	prometheus := scrape(t, r, manager)

	healthy := v.Events[len(v.Events)-1].Seq
	v = r.until(2*renewal+slack, "two verified rotations", func(v rotation.Verdict) bool { return v.VerifiedRotations >= 2 })
	for _, event := range v.Events {
		if event.Type == rotation.EventProblemRaised && event.Seq > healthy {
			t.Errorf("a problem was raised in a healthy pod: %+v", event)
		}
	}
	until(t, prometheus, slack, `svid_watchdog_verified_rotations_total{namespace="shop", workload="front-end"} >= 2`)
	if n := len(mailbox.Received()); n > 0 {
		t.Errorf("%d notifications of a healthy pod: %+v", n, mailbox.Received())
	}

	providerDies(t, r, identities, mailbox)

	out := r.podman.Must("inspect", "--format", "{{.State.Status}} {{.State.OOMKilled}} {{.RestartCount}}", r.container("svid-watchdog"))
	if kills := memory.kills(); out != "running false 0" || kills != "0" {
		t.Errorf("the watchdog: %s, killed for its memory %s times", out, kills)
	}
	if out := r.podman.Must("inspect", "--format", "{{.State.Status}} {{.RestartCount}}", r.container("istio-init")); out != "exited 0" {
		t.Errorf("istio-init, which is to run once: %s", out)
	}
	t.Logf("the watchdog took at most %.1f MiB of %d MiB", float64(memory.bytes(memory.max))/(1<<20), memoryLimit>>20)
}

// strict: the application's port demands a client certificate, and the
// watchdog's is read without.
func strict(t *testing.T, r *running, identities *spire.SPIRE) {
	t.Helper()
	if page, err := r.get(metricsPort, "/metrics"); err != nil || !strings.Contains(page, `svid_watchdog_rotation_state{state="healthy"} 1`) {
		t.Errorf("the metrics from outside: %v\n%s", err, page)
	}
	if answer, err := r.get(appPort, "/"); err == nil {
		t.Errorf("the application answers plain text: %q", answer)
	}

	conn, err := r.outside.Dial(t.Context(), "tcp", net.JoinHostPort(podIP, appPort))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	var shown *x509.Certificate
	client := tls.Client(conn, &tls.Config{
		InsecureSkipVerify: true, //nolint:gosec // it only looks at what is shown
		MinVersion:         tls.VersionTLS12,
		NextProtos:         []string{"istio"},
		VerifyConnection: func(state tls.ConnectionState) error {
			shown = state.PeerCertificates[0]
			return nil
		},
	})
	// In TLS 1.3 a client learns of the refusal when it reads.
	if err = client.HandshakeContext(t.Context()); err == nil {
		_, err = client.Read(make([]byte, 1))
	}
	if err == nil || !strings.Contains(err.Error(), "certificate required") && !strings.Contains(err.Error(), "handshake failure") {
		t.Errorf("without a client certificate: %v", err)
	}
	if shown == nil || len(shown.URIs) != 1 || shown.URIs[0].String() != workloadID {
		t.Errorf("a peer is shown %v", shown)
	}

	ctx, cancel := context.WithTimeout(t.Context(), slack)
	defer cancel()
	source, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(workloadapi.WithAddr("unix://"+identities.Socket())))
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	peer := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DialContext: r.outside.Dial, DisableKeepAlives: true,
		TLSClientConfig: tlsconfig.MTLSClientConfig(source, source, tlsconfig.AuthorizeID(spiffeid.RequireFromString(workloadID))),
	}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+net.JoinHostPort(podIP, appPort), nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := peer.Do(request)
	if err != nil {
		t.Errorf("with a client certificate: %v", err)
		return
	}
	response.Body.Close()
	if response.StatusCode != http.StatusOK {
		t.Errorf("with a client certificate: %s", response.Status)
	}
}

// handshakes: in the pod only Envoy's own user reaches Envoy by the pod's
// address, as the document of the handshake says.
func handshakes(t *testing.T, r *running) {
	t.Helper()
	proxy := r.handshakeAs("1337").Verdict
	if c := proxy.Stage(rotation.Served).Certificate; c == nil || c.SPIFFEID != workloadID || proxy.Has(rotation.ServedUnreachable) {
		t.Errorf("user 1337 is shown %+v, %+v", c, proxy.Problems)
	}
	other := r.handshakeAs("65532").Verdict
	if p, _ := other.Find(rotation.ServedUnreachable); p.Reason != rotation.ReasonNotTLS || !strings.Contains(p.Advice, "1337") {
		t.Errorf("another user reaches the application, which speaks no TLS: %+v", other.Problems)
	}
}

// scrape starts a Prometheus outside of the pod, which scrapes it through the
// redirected network.
func scrape(t *testing.T, r *running, manager *prom.Alertmanager) *prom.Prometheus {
	t.Helper()
	const listen = "127.0.0.1:9090"
	netns.Forward(t, r.outside, manager.Address, nil, manager.Address)
	return prom.Start(t, prom.Config{
		Jobs: map[string][]prom.Target{"svid-watchdog": {{
			Address: net.JoinHostPort(podIP, metricsPort),
			Labels:  map[string]string{"namespace": namespace, "pod": r.name, "workload": workload, "node": "node-1"},
		}}},
		Rules: prom.ShippedRules(t), Factor: factor, Alertmanager: manager,
		Elsewhere: &prom.Elsewhere{
			Command: r.outside.Command(), Listen: listen, Reach: netns.Forward(t, nil, "127.0.0.1:0", r.outside, listen),
		},
	})
}
