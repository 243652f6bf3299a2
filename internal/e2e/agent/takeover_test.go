package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"svid-watchdog/internal/check"
	"svid-watchdog/internal/e2e/neighbour"
	"svid-watchdog/internal/e2e/netns"
	"svid-watchdog/internal/e2e/spire"
	"svid-watchdog/internal/mesh"
	"svid-watchdog/internal/rotation"
)

const (
	workloadID = "spiffe://" + spire.TrustDomain + "/ns/shop/sa/front-end"
	podIP      = "192.0.2.10"
)

// TestIstiodTakesOver: a provider that is away when istio-proxy starts loses
// the pod to istiod's CA where the socket's directory can be written to. The
// provider's return does not bring it back, the watchdog names it, and a start
// with the provider there does.
func TestIstiodTakesOver(t *testing.T) {
	t.Parallel()
	identities, p := provided(t, true)
	plane := istiod(t, p)

	identities.Agent.Kill()
	if v := p.look("socket").Verdict; v.IdentityMode != rotation.ModeIstiodCA || v.NextStart != rotation.StartTakesSocket {
		t.Errorf("foretold %s, %s", v.IdentityMode, v.NextStart)
	}
	a := p.join(t, plane)
	neighbour.Until(t, 30*time.Second, "the agent to take the socket's place", func() bool {
		return listener(t, identities.Socket()) == "pilot-agent"
	}, a)
	var r check.Report
	neighbour.Until(t, 60*time.Second, "Envoy to have a certificate of istiod's", func() bool {
		r = a.look(t)
		return r.Verdict.Stage(rotation.Loaded).Certificate != nil
	}, a, report{&r})

	identities.StartAgent()
	neighbour.Until(t, 60*time.Second, "the watchdog to name it", func() bool {
		r = a.look(t)
		return listener(t, identities.Socket()) == "spire-agent" && r.Verdict.Has(rotation.UntrustedIssuer)
	}, a, report{&r})
	issued, delivered := r.Verdict.Stage(rotation.Issued).Certificate, r.Verdict.Stage(rotation.Delivered).Certificate
	if issued.SPIFFEID != workloadID || delivered.SPIFFEID != workloadID || issued.Issuer == delivered.Issuer {
		t.Errorf("issued %+v, delivered %+v", issued, delivered)
	}
	if problem, _ := r.Verdict.Find(rotation.UntrustedIssuer); r.Verdict.State != rotation.Broken || !strings.Contains(problem.Cause, "istiod's CA") {
		t.Errorf("%s: %+v", r.Verdict.State, problem)
	}
	// Envoy's stream to Istio's agent outlives the socket's name: nothing leads
	// it back.
	if n := r.Verdict.Envoy.SDSStreams; n == nil || *n == 0 {
		t.Errorf("Envoy has no stream: %+v", r.Verdict.Envoy)
	}

	a.Kill()
	a = p.join(t, plane)
	neighbour.Until(t, 60*time.Second, "the pod to be the provider's again", func() bool {
		r = a.look(t)
		return r.Verdict.State == rotation.Healthy
	}, a, report{&r})
	if issued, delivered := r.Verdict.Stage(rotation.Issued).Certificate, r.Verdict.Stage(rotation.Loaded).Certificate; issued.Serial != delivered.Serial {
		t.Errorf("issued %+v, loaded %+v", issued, delivered)
	}
}

// TestEnvoyWaits: a provider that is away when istio-proxy starts, and has taken
// its socket along, loses nothing where the directory is mounted read-only:
// Envoy is served when it is back.
func TestEnvoyWaits(t *testing.T) {
	t.Parallel()
	identities, p := provided(t, false)
	plane := istiod(t, p)

	if err := identities.Agent.Cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	neighbour.Until(t, 30*time.Second, "the socket to go", func() bool {
		_, err := os.Stat(identities.Socket())
		return errors.Is(err, fs.ErrNotExist)
	}, identities.Agent)
	if v := p.look("socket").Verdict; v.IdentityMode != rotation.ModeExternalSDS || v.NextStart != rotation.StartWaits {
		t.Errorf("foretold %s, %s", v.IdentityMode, v.NextStart)
	}
	a := p.join(t, plane)
	neighbour.Until(t, 60*time.Second, "Envoy to lack its certificate", func() bool {
		return a.says("failed to set up UDS") && a.look(t).Verdict.Has(rotation.SecretMissing)
	}, a)

	identities.StartAgent()
	var r check.Report
	neighbour.Until(t, 60*time.Second, "Envoy to be served by the provider", func() bool {
		r = a.look(t)
		return r.Verdict.State == rotation.Healthy
	}, a, report{&r})
	if loaded := r.Verdict.Stage(rotation.Loaded).Certificate; loaded.SPIFFEID != workloadID || a.exited() {
		t.Errorf("loaded %+v; the agent has exited: %t", loaded, a.exited())
	}
}

// provided is a pod whose socket is a real SPIRE agent's.
func provided(t *testing.T, writable bool) (*spire.SPIRE, *pod) {
	t.Helper()
	neighbour.Need(t, "bin", "pilot-agent")
	identities := spire.Start(t, spire.Workload{ID: workloadID, User: proxyUser, TTL: time.Hour})
	neighbour.Until(t, 30*time.Second, "the SPIRE agent", func() bool { return listener(t, identities.Socket()) == "spire-agent" }, identities.Agent)
	return identities, newPod(t, identities.SocketDir(), writable)
}

// report is one that is known only when it is printed.
type report struct{ of *check.Report }

func (r report) String() string { return fmt.Sprintf("%+v", r.of.Verdict) }

// istiod starts a control plane that knows the pod.
func istiod(t *testing.T, p *pod) *mesh.ControlPlane {
	t.Helper()
	file := filepath.Join(t.TempDir(), "operator.yaml")
	if err := os.WriteFile(file, []byte("apiVersion: install.istio.io/v1alpha1\nkind: IstioOperator\nspec:\n  meshConfig: {trustDomain: "+spire.TrustDomain+"}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := mesh.Config{Neighbours: filepath.Join(neighbour.Root(t), ".neighbours"), Istio: true, Operators: []string{file}}
	if err := mesh.Missing(cfg); err != nil {
		neighbour.Lacking(t, err.Error())
	}
	plane, err := mesh.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := plane.Close(); err != nil {
			t.Error(err)
		}
	})
	kubectl := func(stdin string, args ...string) string {
		out, err := plane.Kubectl(t.Context(), stdin, args...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	if err := plane.CreateNamespace(t.Context(), "shop", false); err != nil {
		t.Fatal(err)
	}
	kubectl(`apiVersion: v1
kind: ServiceAccount
metadata: {name: front-end, namespace: shop}
---
apiVersion: v1
kind: Pod
metadata: {name: front-end, namespace: shop, labels: {app: front-end}}
spec: {serviceAccountName: front-end, containers: [{name: web, image: web}]}
`, "apply", "-f", "-")
	if _, err := plane.SayReady(t.Context(), "shop"); err != nil {
		t.Fatal(err)
	}
	p.write("var/run/secrets/tokens/istio-token", []byte(kubectl("", "create", "token", "front-end", "-n", "shop", "--audience", "istio-ca")))
	p.write("var/run/secrets/istio/root-cert.pem", []byte(kubectl("", "get", "configmap", "istio-ca-root-cert", "-n", "shop", "-o", `jsonpath={.data.root-cert\.pem}`)))
	p.own(p.dir)
	return plane
}

// join starts the agent and lets it reach istiod from its own network.
func (p *pod) join(t *testing.T, plane *mesh.ControlPlane) *proxy {
	t.Helper()
	a := p.start("localhost:15012", nil, "INSTANCE_IP="+podIP, "TRUST_DOMAIN="+spire.TrustDomain)
	neighbour.Until(t, 10*time.Second, "the agent's network", func() bool { return a.child() != "" && a.says("Effective config") }, a)
	_, port, err := net.SplitHostPort(plane.IstiodAddress())
	if err != nil {
		t.Fatal(err)
	}
	netns.Forward(t, netns.Of(t, a.child()), "127.0.0.1:15012", nil, "127.0.0.1:"+port)
	return a
}

// look is what `watchdog check` says beside the running agent.
func (a *proxy) look(t *testing.T) check.Report {
	t.Helper()
	var r check.Report
	if err := json.Unmarshal([]byte(a.check("--workload-api.address=unix://"+filepath.Join(a.pod.node, "socket"), "--credentials.dir="+a.pod.path(certsDir))), &r); err != nil {
		t.Fatal(err)
	}
	return r
}
