package alerts

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"svid-watchdog/internal/e2e/neighbour"
	"svid-watchdog/internal/e2e/prom"
	"svid-watchdog/internal/e2e/sidecar"
	"svid-watchdog/internal/lab"
	"svid-watchdog/internal/rotation"
)

func TestMain(m *testing.M) { os.Exit(sidecar.Main(m)) }

// In this fleet an hour takes a minute: certificates that live for two hours
// are renewed every 20 minutes, and the rules run sixty times as fast.
const (
	factor  = 60
	ttl     = 2 * time.Hour / factor
	renewal = 20 * time.Minute / factor
	grace   = 3 * time.Second
	// reconnect is how long Envoy waits at most before it opens a stream again.
	reconnect = 30 * time.Second / factor
	// slack is for a machine with more to do.
	slack = 30 * time.Second
)

// member is a pod of the fleet, with its watchdog.
type member struct {
	*lab.Pod

	name, workload, node string
	watchdog             *sidecar.Sidecar
}

// fleet is a Prometheus that scrapes pods, an Alertmanager, and a mailbox.
type fleet struct {
	t          *testing.T
	members    []*member
	prometheus *prom.Prometheus
	manager    *prom.Alertmanager
	mailbox    *prom.Mailbox
}

// startFleet starts three pods of two workloads on node-1, and one on node-2.
func startFleet(t *testing.T) *fleet {
	f := &fleet{t: t}
	old, current := neighbour.Need(t, "envoy", "1.36.4", "envoy"), neighbour.Need(t, "envoy", "1.40.0", "envoy")
	f.add("front-end-1", "front-end", "node-1", old)
	f.add("front-end-2", "front-end", "node-1", current)
	f.add("carts-1", "carts", "node-1", current)
	f.add("carts-2", "carts", "node-2", old)

	var targets []prom.Target
	for _, m := range f.members {
		targets = append(targets, prom.Target{Address: m.watchdog.Address, Labels: map[string]string{
			"namespace": "shop", "pod": m.name, "workload": m.workload, "node": m.node,
		}})
	}
	f.mailbox = prom.NewMailbox(t)
	f.manager = prom.StartAlertmanager(t, factor, f.mailbox)
	f.prometheus = prom.Start(t, prom.Config{
		Jobs:  map[string][]prom.Target{"svid-watchdog": targets},
		Rules: prom.ShippedRules(t), Factor: factor, Alertmanager: f.manager,
	})
	for _, m := range f.members {
		m.watchdog.Until(renewal+slack, "health and a verified rotation", func(v rotation.Verdict) bool {
			return v.State == rotation.Healthy && v.VerifiedRotations > 0
		})
	}
	f.until(10*time.Second, "all pods to be healthy in Prometheus", func() bool {
		samples := f.prometheus.MustQuery(`namespace:svid_watchdog_healthy:ratio{namespace="shop"} == 1 and on () count(svid_watchdog_build_info) == 4`)
		return len(samples) == 1
	})
	return f
}

func (f *fleet) add(name, workload, node, envoy string) {
	f.t.Helper()
	pod, err := lab.Start(f.t.Context(), lab.Config{
		Issuer: lab.Tbot, TTL: ttl, Renewal: renewal, Lead: time.Minute / factor, Reconnect: reconnect, EnvoyPath: envoy,
	})
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { pod.Close() })
	f.members = append(f.members, &member{
		Pod: pod, name: name, workload: workload, node: node,
		watchdog: sidecar.Start(f.t, "--workload-api.address="+pod.SocketAddress(), "--credentials.dir="+pod.CredentialsDir(),
			"--envoy.admin-address="+pod.Envoy().AdminAddress(), "--handshake.address="+pod.Envoy().ListenerAddress(),
			"--envoy.poll-interval=500ms", "--envoy.budget=50", "--rotation.interval="+renewal.String(), "--rotation.grace="+grace.String()),
	})
}

// turn injects a fault into pods, or heals it.
func (f *fleet) turn(act func(*lab.Pod, context.Context, string) error, fault string, members ...*member) {
	f.t.Helper()
	for _, m := range members {
		if err := act(m.Pod, f.t.Context(), fault); err != nil {
			f.t.Fatal(err)
		}
	}
}

func (f *fleet) until(bound time.Duration, what string, satisfied func() bool) {
	f.t.Helper()
	neighbour.Until(f.t, bound, what, satisfied, f)
}

// String is all that was notified, and what fires.
func (f *fleet) String() string {
	var b strings.Builder
	for _, n := range f.mailbox.Received() {
		fmt.Fprintf(&b, "%s %s\n", n.At.Format("15:04:05.0"), tell(n))
	}
	for _, a := range f.prometheus.Alerts() {
		fmt.Fprintf(&b, "%s now: %v\n", a.State, a.Labels)
	}
	for _, m := range f.members {
		v := m.watchdog.Verdict()
		fmt.Fprintf(&b, "%s: %s: %s\n", m.name, v.State, v.Summary)
	}
	return b.String()
}

// tell is a notification in one line: the receiver, the status, and each of its
// alerts by name, what it is about, and status.
func tell(n prom.Notification) string {
	var alerts []string
	for _, a := range n.Alerts {
		about := a.Labels["pod"]
		switch a.Labels["scope"] {
		case "workload":
			about = a.Labels["workload"]
		case "node":
			about = a.Labels["node"]
		}
		alerts = append(alerts, fmt.Sprintf("%s(%s) %s", a.Labels["alertname"], about, a.Status))
	}
	slices.Sort(alerts)
	return fmt.Sprintf("%s %s: %s", n.Receiver, n.Status, strings.Join(alerts, ", "))
}

// notified are the notifications since the first n, each told in one line.
func (f *fleet) notified(n int) []string {
	var told []string
	for _, notification := range f.mailbox.Received()[n:] {
		told = append(told, tell(notification))
	}
	return told
}

// firing are the alerts of Prometheus that fire, by name and pod.
func (f *fleet) firing() map[string]bool {
	firing := make(map[string]bool)
	for _, a := range f.prometheus.Alerts() {
		if a.State == "firing" {
			firing[a.Labels["alertname"]+"("+a.Labels["pod"]+")"] = true
		}
	}
	return firing
}

// held tells whether Alertmanager holds these alerts back: it knows each, by name
// and pod, and inhibits it.
func (f *fleet) held(alerts ...string) bool {
	inhibited := make(map[string]bool)
	for _, a := range f.manager.Inhibited() {
		if a.Inhibited {
			inhibited[a.Labels["alertname"]+"("+a.Labels["pod"]+")"] = true
		}
	}
	for _, a := range alerts {
		if !inhibited[a] {
			return false
		}
	}
	return true
}

// TestWhoIsWoken: real watchdogs beside real Envoys, a real Prometheus with the
// shipped rules and a real Alertmanager with the shipped configuration. Each
// incident makes one notification for each group that it is about, those of the
// pods are held back, and healing it is told too.
func TestWhoIsWoken(t *testing.T) {
	neighbour.Installed(t, "prometheus", "prometheus")
	neighbour.Installed(t, "prometheus-alertmanager", "prometheus-alertmanager")
	f := startFleet(t)
	frontEnd, onNode1 := f.members[:2], f.members[:3]

	// tbot ends on node-1: one page for the node, none of its three pods.
	f.turn((*lab.Pod).Inject, "socket-gone", onNode1...)
	f.until(time.Minute, "the alerts of the pods of node-1, all of them held back", func() bool {
		return f.held("SVIDWatchdogWorkloadAPIUnreachable(front-end-1)", "SVIDWatchdogWorkloadAPIUnreachable(front-end-2)",
			"SVIDWatchdogWorkloadAPIUnreachable(carts-1)", "SVIDWatchdogSDSStreamDown(front-end-1)",
			"SVIDWatchdogSDSStreamDown(front-end-2)", "SVIDWatchdogSDSStreamDown(carts-1)")
	})
	f.turn((*lab.Pod).Heal, "socket-gone", onNode1...)
	f.until(slack, "the node's recovery to be told, and all to be calm", func() bool {
		return len(f.mailbox.Received()) >= 2 && len(f.prometheus.Alerts()) == 0
	})
	want := []string{
		"svid-watchdog-pages firing: SVIDWatchdogNodeWorkloadAPIDown(node-1) firing",
		"svid-watchdog-pages resolved: SVIDWatchdogNodeWorkloadAPIDown(node-1) resolved",
	}
	if got := f.notified(0); !slices.Equal(got, want) {
		t.Fatalf("notified of\n%s\nwant\n%s\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"), f)
	}
	for _, m := range f.members {
		m.watchdog.Until(renewal+slack, "health", func(v rotation.Verdict) bool { return v.State == rotation.Healthy })
	}

	// The incident: tbot re-sends the old certificates to the two pods of
	// front-end, most of node-1. The node is told, then the workload warned, then
	// paged for; both pods' own alerts are held back, and so is the workload's
	// warning once it pages.
	seen := len(f.mailbox.Received())
	f.turn((*lab.Pod).Inject, "tbot-resend", frontEnd...)
	f.until(ttl+slack, "the page for front-end, and the rest to be held back", func() bool {
		notified := f.notified(seen)
		return slices.ContainsFunc(notified, func(told string) bool { return strings.HasPrefix(told, "svid-watchdog-pages") }) &&
			f.held("SVIDWatchdogDeliveryOverdue(front-end-1)", "SVIDWatchdogDeliveryOverdue(front-end-2)",
				"SVIDWatchdogHollowUpdates(front-end-1)", "SVIDWatchdogCertificateExpiring()")
	})
	// Envoy from 1.37 on does not show updates that change nothing.
	if f.firing()["SVIDWatchdogHollowUpdates(front-end-2)"] {
		t.Errorf("hollow updates seen on Envoy 1.40.0\n%s", f)
	}
	f.turn((*lab.Pod).Heal, "tbot-resend", frontEnd...)
	f.until(slack, "all to be calm", func() bool {
		return len(f.prometheus.Alerts()) == 0 && len(f.notified(seen)) >= 6
	})
	want = []string{
		"svid-watchdog-tickets firing: SVIDWatchdogNodeRotationStalled(node-1) firing",
		"svid-watchdog-tickets firing: SVIDWatchdogCertificateExpiring(front-end) firing",
		"svid-watchdog-pages firing: SVIDWatchdogCertificateExpiring(front-end) firing",
		"svid-watchdog-pages resolved: SVIDWatchdogCertificateExpiring(front-end) resolved",
		"svid-watchdog-tickets resolved: SVIDWatchdogCertificateExpiring(front-end) resolved",
		"svid-watchdog-tickets resolved: SVIDWatchdogNodeRotationStalled(node-1) resolved",
	}
	got := f.notified(seen)
	if !slices.Equal(got[:3], want[:3]) || !maps.Equal(count(got[3:]), count(want[3:])) {
		t.Errorf("notified of\n%s\nwant\n%s\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"), f)
	}
	page := f.mailbox.Received()[seen+2].Alerts[0]
	if page.Labels["namespace"] != "shop" || page.Labels["severity"] != "critical" || !strings.Contains(page.Annotations["description"], "shop/front-end") ||
		!strings.HasSuffix(page.Annotations["runbook_url"], "docs/runbooks.md#svidwatchdogcertificateexpiring") {
		t.Errorf("the page does not tell what to do: %+v", page)
	}
	t.Logf("the whole story:\n%s", f)
}

// count is how often each text occurs: what resolves at once is told in any order.
func count(texts []string) map[string]int {
	counts := make(map[string]int)
	for _, text := range texts {
		counts[text]++
	}
	return counts
}
