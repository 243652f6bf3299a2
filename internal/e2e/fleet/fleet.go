// Package fleet runs pods of several workloads and nodes, each a real Envoy with
// the shipped watchdog beside it, in front of a Prometheus that scrapes them and
// evaluates the shipped rules, and an Alertmanager with the shipped configuration.
//
// An hour takes a minute here: see package prom.
package fleet

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"svid-watchdog/internal/e2e/neighbour"
	"svid-watchdog/internal/e2e/prom"
	"svid-watchdog/internal/e2e/sidecar"
	"svid-watchdog/internal/lab"
	"svid-watchdog/internal/rotation"
)

// Factor is by how much faster time passes.
const Factor = 60

// Renewal is how often tbot renews, Grace what the watchdogs allow it, and Slack
// what a test should allow a machine with more to do.
const (
	Renewal = 20 * time.Minute / Factor
	Grace   = 3 * time.Second
	Slack   = 30 * time.Second
)

// Namespace is where all pods are.
const Namespace = "shop"

// Pod describes a pod.
type Pod struct {
	Name, Workload, Node string
	// Envoy is the version of the real Envoy in it.
	Envoy string
	// TTL is how long its certificates live.
	TTL time.Duration
}

// Pods are the pods of a fleet that tests share: three of two workloads on
// node-1, whose certificates live for two hours, and one on node-2, with one hour.
func Pods() []Pod {
	return []Pod{
		{Name: "front-end-1", Workload: "front-end", Node: "node-1", Envoy: "1.36.4", TTL: 2 * time.Hour / Factor},
		{Name: "front-end-2", Workload: "front-end", Node: "node-1", Envoy: "1.40.0", TTL: 2 * time.Hour / Factor},
		{Name: "carts-1", Workload: "carts", Node: "node-1", Envoy: "1.40.0", TTL: 2 * time.Hour / Factor},
		{Name: "carts-2", Workload: "carts", Node: "node-2", Envoy: "1.36.4", TTL: time.Hour / Factor},
	}
}

// Member is a running pod with its watchdog.
type Member struct {
	*lab.Pod

	About    Pod
	Watchdog *sidecar.Sidecar
}

// Fleet is all that runs.
type Fleet struct {
	Members      []*Member
	Prometheus   *prom.Prometheus
	Alertmanager *prom.Alertmanager
	Mailbox      *prom.Mailbox

	t testing.TB
}

// Start starts a fleet, and returns when all of it is healthy and Prometheus
// knows. It ends with the test.
func Start(t testing.TB, pods ...Pod) *Fleet {
	t.Helper()
	// First what may be lacking.
	neighbour.Installed(t, "prometheus", "prometheus")
	neighbour.Installed(t, "prometheus-alertmanager", "prometheus-alertmanager")
	for _, p := range pods {
		neighbour.Need(t, "envoy", p.Envoy, "envoy")
	}
	f := &Fleet{t: t}
	var targets []prom.Target
	for _, p := range pods {
		m := start(t, p)
		f.Members = append(f.Members, m)
		targets = append(targets, prom.Target{Address: m.Watchdog.Address, Labels: map[string]string{
			"namespace": Namespace, "pod": p.Name, "workload": p.Workload, "node": p.Node,
		}})
	}
	f.Mailbox = prom.NewMailbox(t)
	f.Alertmanager = prom.StartAlertmanager(t, Factor, f.Mailbox)
	f.Prometheus = prom.Start(t, prom.Config{
		Jobs: map[string][]prom.Target{
			"svid-watchdog":      targets,
			"kube-state-metrics": {{Address: stateMetrics(t, pods)}},
		},
		Rules: prom.ShippedRules(t), Factor: Factor, Alertmanager: f.Alertmanager,
	})
	f.Calm()
	f.Until(Slack, "all pods to be healthy in Prometheus", func() bool {
		return len(f.Prometheus.MustQuery(fmt.Sprintf(
			`namespace:svid_watchdog_healthy:ratio{namespace=%q} == 1 and on () count(svid_watchdog_build_info) == %d`, Namespace, len(pods)))) == 1
	})
	return f
}

func start(t testing.TB, p Pod) *Member {
	t.Helper()
	pod, err := lab.Start(t.Context(), lab.Config{
		Issuer: lab.Tbot, TTL: p.TTL, Renewal: Renewal, Lead: time.Minute / Factor, Reconnect: 30 * time.Second / Factor,
		EnvoyPath: neighbour.Need(t, "envoy", p.Envoy, "envoy"),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := pod.Close(); err != nil {
			t.Error(err)
		}
	})
	return &Member{Pod: pod, About: p, Watchdog: sidecar.Start(t,
		"--workload-api.address="+pod.SocketAddress(), "--credentials.dir="+pod.CredentialsDir(),
		"--envoy.admin-address="+pod.Envoy().AdminAddress(), "--handshake.address="+pod.Envoy().ListenerAddress(),
		"--envoy.poll-interval=500ms", "--envoy.budget=50", "--rotation.interval="+Renewal.String(), "--rotation.grace="+Grace.String(),
	)}
}

// stateMetrics serves what kube-state-metrics would say of the pods, as far as
// the rules ask: there is no Kubernetes here. It returns its address.
func stateMetrics(t testing.TB, pods []Pod) string {
	t.Helper()
	var page strings.Builder
	for _, p := range pods {
		fmt.Fprintf(&page, "kube_pod_init_container_info{namespace=%q,pod=%q,container=\"svid-watchdog\"} 1\n", Namespace, p.Name)
		fmt.Fprintf(&page, "kube_pod_container_info{namespace=%q,pod=%q,container=\"istio-proxy\"} 1\n", Namespace, p.Name)
		for _, phase := range []string{"Pending", "Running", "Succeeded", "Failed", "Unknown"} {
			value := 0
			if phase == "Running" {
				value = 1
			}
			fmt.Fprintf(&page, "kube_pod_status_phase{namespace=%q,pod=%q,phase=%q} %d\n", Namespace, p.Name, phase, value)
		}
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, page.String())
	}))
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}

// Calm waits until every watchdog has verified a rotation and is healthy.
func (f *Fleet) Calm() {
	f.t.Helper()
	for _, m := range f.Members {
		m.Watchdog.Until(2*Renewal+Slack, m.About.Name+" to be healthy, with a verified rotation", func(v rotation.Verdict) bool {
			return v.State == rotation.Healthy && v.VerifiedRotations > 0
		})
	}
}

// Inject injects a fault into pods.
func (f *Fleet) Inject(fault string, members ...*Member) {
	f.t.Helper()
	f.turn((*lab.Pod).Inject, fault, members)
}

// Heal heals pods of a fault.
func (f *Fleet) Heal(fault string, members ...*Member) {
	f.t.Helper()
	f.turn((*lab.Pod).Heal, fault, members)
}

func (f *Fleet) turn(act func(*lab.Pod, context.Context, string) error, fault string, members []*Member) {
	f.t.Helper()
	for _, m := range members {
		if err := act(m.Pod, f.t.Context(), fault); err != nil {
			f.t.Fatal(err)
		}
	}
}

// Until waits for a condition, and in vain says what there was to know.
func (f *Fleet) Until(bound time.Duration, what string, satisfied func() bool) {
	f.t.Helper()
	neighbour.Until(f.t, bound, what, satisfied, f)
}

// String is all that was notified, what fires, and what the watchdogs say.
func (f *Fleet) String() string {
	var b strings.Builder
	for _, n := range f.Mailbox.Received() {
		fmt.Fprintf(&b, "%s %s\n", n.At.Format("15:04:05.0"), n)
	}
	for _, a := range f.Prometheus.Alerts() {
		fmt.Fprintf(&b, "%s now: %v\n", a.State, a.Labels)
	}
	for _, m := range f.Members {
		v := m.Watchdog.Verdict()
		fmt.Fprintf(&b, "%s: %s: %s\n", m.About.Name, v.State, v.Summary)
	}
	return b.String()
}
