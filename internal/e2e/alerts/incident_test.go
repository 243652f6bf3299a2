package alerts

import (
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"svid-watchdog/internal/e2e/fleet"
	"svid-watchdog/internal/e2e/sidecar"
)

func TestMain(m *testing.M) { os.Exit(sidecar.Main(m)) }

// watched is a fleet, and what its Alertmanager did.
type watched struct{ *fleet.Fleet }

// notified are the notifications since the first n, each told in one line.
func (w watched) notified(n int) []string {
	var told []string
	for _, notification := range w.Mailbox.Received()[n:] {
		told = append(told, notification.String())
	}
	return told
}

// held tells whether Alertmanager holds all of these alerts back, by name and pod.
func (w watched) held(alerts ...string) bool {
	inhibited := make(map[string]bool)
	for _, labels := range w.Alertmanager.Inhibited() {
		inhibited[labels["alertname"]+"("+labels["pod"]+")"] = true
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
// pods are held back, and healing is told too. Meanwhile the pod that nothing
// happened to proves that its certificates rotate.
func TestWhoIsWoken(t *testing.T) {
	t.Parallel()
	w := watched{fleet.Start(t, fleet.Pods()...)}
	frontEnd, onNode1 := w.Members[:2], w.Members[:3]

	// tbot ends on node-1: one page for the node, none of its three pods.
	w.Inject("socket-gone", onNode1...)
	w.Until(fleet.Grace+2*fleet.Slack, "the alerts of the pods of node-1, all of them held back", func() bool {
		return w.held("SVIDWatchdogWorkloadAPIUnreachable(front-end-1)", "SVIDWatchdogWorkloadAPIUnreachable(front-end-2)",
			"SVIDWatchdogWorkloadAPIUnreachable(carts-1)", "SVIDWatchdogSDSStreamDown(front-end-1)",
			"SVIDWatchdogSDSStreamDown(front-end-2)", "SVIDWatchdogSDSStreamDown(carts-1)")
	})
	w.Heal("socket-gone", onNode1...)
	w.Until(2*fleet.Slack, "the node's recovery to be told, and all to be calm", func() bool {
		return len(w.Mailbox.Received()) >= 2 && len(w.Prometheus.Alerts()) == 0
	})
	want := []string{
		"svid-watchdog-pages firing: SVIDWatchdogNodeWorkloadAPIDown(node-1) firing",
		"svid-watchdog-pages resolved: SVIDWatchdogNodeWorkloadAPIDown(node-1) resolved",
	}
	if got := w.notified(0); !slices.Equal(got, want) {
		t.Fatalf("notified of\n%s\nwant\n%s\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"), w)
	}
	w.Calm()

	// The incident: tbot re-sends the old certificates to the two pods of
	// front-end, most of node-1. The node is told, then the workload warned, then
	// paged for; both pods' own alerts are held back, and so is the workload's
	// warning once it pages.
	seen := len(w.Mailbox.Received())
	w.Inject("tbot-resend", frontEnd...)
	w.Until(w.Members[0].TTL()+fleet.Slack, "the page for front-end, and the rest to be held back", func() bool {
		paged := slices.ContainsFunc(w.notified(seen), func(told string) bool { return strings.HasPrefix(told, "svid-watchdog-pages") })
		return paged && w.held("SVIDWatchdogDeliveryOverdue(front-end-1)", "SVIDWatchdogDeliveryOverdue(front-end-2)",
			"SVIDWatchdogHollowUpdates(front-end-1)", "SVIDWatchdogCertificateExpiring()")
	})
	// Envoy from 1.37 on does not show updates that change nothing.
	if w.held("SVIDWatchdogHollowUpdates(front-end-2)") {
		t.Errorf("hollow updates seen on Envoy 1.40.0\n%s", w)
	}
	w.Heal("tbot-resend", frontEnd...)
	w.Until(2*fleet.Slack, "all to be calm", func() bool {
		return len(w.Prometheus.Alerts()) == 0 && len(w.notified(seen)) >= 6
	})
	want = []string{
		"svid-watchdog-tickets firing: SVIDWatchdogNodeRotationStalled(node-1) firing",
		"svid-watchdog-tickets firing: SVIDWatchdogCertificateExpiring(front-end) firing",
		"svid-watchdog-pages firing: SVIDWatchdogCertificateExpiring(front-end) firing",
		"svid-watchdog-pages resolved: SVIDWatchdogCertificateExpiring(front-end) resolved",
		"svid-watchdog-tickets resolved: SVIDWatchdogCertificateExpiring(front-end) resolved",
		"svid-watchdog-tickets resolved: SVIDWatchdogNodeRotationStalled(node-1) resolved",
	}
	got := w.notified(seen)
	if !slices.Equal(got[:3], want[:3]) || !maps.Equal(count(got[3:]), count(want[3:])) {
		t.Fatalf("notified of\n%s\nwant\n%s\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"), w)
	}
	page := w.Mailbox.Received()[seen+2].Alerts[0]
	if page.Labels["namespace"] != fleet.Namespace || page.Labels["severity"] != "critical" || !strings.Contains(page.Annotations["description"], "shop/front-end") ||
		!strings.HasSuffix(page.Annotations["runbook_url"], "docs/runbooks.md#svidwatchdogcertificateexpiring") {
		t.Errorf("the page does not tell what to do: %+v", page)
	}

	// The certificates of carts-2 live for an hour, less than half of the window.
	w.Until(2*fleet.Slack, "carts-2 to have proven its rotation", func() bool {
		return len(w.Prometheus.MustQuery(`pod:svid_watchdog_rotation_proven:bool{pod="carts-2", workload="carts", node="node-2"} == 1`)) == 1
	})
	// Those of the others live for two, so that nothing is proven: the gate is shut.
	if proven := w.Prometheus.MustQuery(`pod:svid_watchdog_rotation_proven:bool{node="node-1"}`); len(proven) > 0 {
		t.Errorf("proven in less than two lifetimes: %v", proven)
	}
	if gate := w.Prometheus.MustQuery(`namespace:svid_watchdog_cronjob_droppable:bool`); len(gate) != 1 || gate[0].Value != 0 {
		t.Errorf("the gate: %v", gate)
	}
	t.Logf("the whole story:\n%s", w)
}

// count is how often each text occurs: what resolves at once is told in any order.
func count(texts []string) map[string]int {
	counts := make(map[string]int)
	for _, text := range texts {
		counts[text]++
	}
	return counts
}
