package pod

import (
	"strings"
	"testing"
	"time"

	"svid-watchdog/internal/e2e/neighbour"
	"svid-watchdog/internal/e2e/prom"
	"svid-watchdog/internal/e2e/spire"
	"svid-watchdog/internal/rotation"
)

// until waits until an expression of Prometheus is true.
func until(t *testing.T, p *prom.Prometheus, bound time.Duration, expr string) {
	t.Helper()
	neighbour.Until(t, bound, expr, func() bool {
		samples, err := p.Query(expr)
		return err == nil && len(samples) > 0
	}, p)
}

// notified tells whether a receiver was told of an alert of the workload.
func notified(m *prom.Mailbox, receiver, status, alert string) bool {
	for _, n := range m.Received() {
		for _, a := range n.Alerts {
			if n.Receiver == receiver && a.Status == status && a.Labels["alertname"] == alert &&
				a.Labels["namespace"] == namespace && a.Labels["workload"] == workload {
				return true
			}
		}
	}
	return false
}

// providerDies kills the SPIRE agent, which leaves its socket behind, and
// starts it again when the page has come.
func providerDies(t *testing.T, r *running, identities *spire.SPIRE, mailbox *prom.Mailbox) {
	t.Helper()
	// Just after a rotation the time until the page is the longest.
	before := r.until(10*time.Second, "a verdict", func(rotation.Verdict) bool { return true }).VerifiedRotations
	r.until(renewal+slack, "the next rotation", func(v rotation.Verdict) bool {
		return v.VerifiedRotations > before && v.State == rotation.Healthy
	})
	identities.Agent.Kill()

	r.until(grace+slack, "the dead provider to be told", func(v rotation.Verdict) bool {
		p, told := v.Find(rotation.WorkloadUnreachable)
		return told && p.Reason == rotation.ReasonRefused && v.IdentityMode == rotation.ModeExternalSDS && v.NextStart == rotation.StartNeedsSocket
	})
	const tickets, pages = "svid-watchdog-tickets", "svid-watchdog-pages"
	neighbour.Until(t, 10*time.Minute/factor+slack, "the ticket", func() bool {
		return notified(mailbox, tickets, "firing", "SVIDWatchdogWorkloadAPIUnreachable")
	}, r)
	neighbour.Until(t, ttl+slack, "the page", func() bool {
		return notified(mailbox, pages, "firing", "SVIDWatchdogCertificateExpiring")
	}, r)

	// What was foretold: Istio's agent cannot remove the dead socket from a
	// read-only mount, and exits at each start.
	r.podman.Must("restart", "--time", "1", r.container("istio-proxy"))
	neighbour.Until(t, slack, "istio-proxy to refuse", func() bool {
		out, err := r.podman.Run("logs", "--tail", "40", r.container("istio-proxy"))
		return err == nil && strings.Contains(out, "existing SDS socket could not be removed") && strings.Contains(out, "read-only file system")
	}, r)
	r.until(slack, "a pod without Envoy to be told", func(v rotation.Verdict) bool {
		return v.Has(rotation.EnvoyUnreachable) && v.Has(rotation.WorkloadUnreachable)
	})

	identities.StartAgent()
	// podman has restarted the container again and again, as a kubelet does.
	r.until(2*ttl+slack, "the pod to heal", func(v rotation.Verdict) bool {
		return v.State == rotation.Healthy && v.NextStart == rotation.StartLeavesSocket
	})
	neighbour.Until(t, slack+10*time.Minute/factor, "the page to be resolved", func() bool {
		return notified(mailbox, pages, "resolved", "SVIDWatchdogCertificateExpiring")
	}, r)
}
