package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"svid-watchdog/internal/e2e/spire"
	"svid-watchdog/internal/lab"
	"svid-watchdog/internal/rotation"
)

const (
	workloadID = "spiffe://example.test/ns/shop/sa/front-end"
	// svidTTL is an SVID's lifetime: one comes every ten seconds.
	svidTTL = 30 * time.Second
)

// TestRealSPIRE: a real Envoy takes its secrets from a real SPIRE agent. The
// watchdog beside it verifies rotation after rotation and raises nothing; it
// tells when the agent is killed, and when it is back.
func TestRealSPIRE(t *testing.T) {
	for _, version := range []string{"1.36.4", "1.40.0"} {
		t.Run("envoy"+version, func(t *testing.T) {
			t.Parallel()
			envoyPath := need(t, "envoy", version, "envoy")
			s := spire.Start(t, spire.Workload{ID: workloadID, User: os.Getuid(), TTL: svidTTL})
			dir := t.TempDir()
			e, err := lab.NewRealEnvoy(lab.RealEnvoyConfig{Path: envoyPath, SDSSocket: s.Socket(), Dir: dir})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { e.Close() })
			// The agent may not have its first entries yet: as in a pod, it
			// says PermissionDenied until then.
			if err := e.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			w := startWatchdog(t, "--workload-api.address=unix://"+s.Socket(), "--envoy.admin-address="+e.AdminAddress(),
				"--credentials.dir="+filepath.Join(dir, "none"), "--envoy.poll-interval=1s", "--rotation.grace=8s", "--envoy.budget=50", "--handshake.address="+e.ListenerAddress())

			v := w.Until(90*time.Second, "three verified rotations", func(v rotation.Verdict) bool {
				return v.VerifiedRotations >= 3 && v.State == rotation.Healthy
			}, s.Agent)
			for _, event := range v.Events {
				if event.Type == rotation.EventProblemRaised {
					t.Errorf("a problem was raised in a healthy pod: %+v", event)
				}
			}
			w.Until(10*time.Second, "equal serials, as SPIRE shares its SVIDs", func(v rotation.Verdict) bool {
				issued, loaded := v.Stage(rotation.Issued).Certificate, v.Stage(rotation.Loaded).Certificate
				return issued.Serial == v.Stage(rotation.Delivered).Certificate.Serial && issued.Serial == loaded.Serial && issued.SPIFFEID == workloadID
			})
			if v.IdentityMode != rotation.ModeExternalSDS || v.Envoy.Version != version {
				t.Errorf("identity mode %s beside Envoy %s", v.IdentityMode, v.Envoy.Version)
			}
			if page := w.Get("/metrics"); !strings.Contains(page, `svid_watchdog_rotation_state{state="healthy"} 1`) {
				t.Errorf("the metrics are not healthy:\n%s", page)
			}

			// An agent that hangs keeps its streams open: nothing tells but the
			// renewals that do not come.
			if err := s.Agent.Cmd.Process.Signal(syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			silent := rotation.ReasonServerSilent
			if version != "1.36.4" {
				silent = rotation.ReasonServerSilentOrResends
			}
			w.Until(svidTTL+8*time.Second+5*time.Second, "the hung agent to be told", func(v rotation.Verdict) bool {
				p, _ := v.Find(rotation.DeliveryOverdue)
				return p.Reason == silent && v.Has(rotation.IssuanceOverdue) && !v.Has(rotation.SDSStreamDown)
			})
			if err := s.Agent.Cmd.Process.Signal(syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
			w.Until(30*time.Second, "the agent to go on", func(v rotation.Verdict) bool { return v.State == rotation.Healthy }, s.Agent)

			s.Agent.Kill()
			w.Until(8*time.Second+time.Second+5*time.Second, "the agent's death to be told", func(v rotation.Verdict) bool {
				p, told := v.Find(rotation.WorkloadUnreachable)
				return told && p.Reason == rotation.ReasonRefused && v.Has(rotation.SDSStreamDown) && v.IdentityMode == rotation.ModeIstiodCA
			})

			s.StartAgent()
			verified := w.Verdict().VerifiedRotations
			// Envoy's backoff is up to 30 s, and a renewal comes every 10 s.
			w.Until(75*time.Second, "rotation to go on", func(v rotation.Verdict) bool {
				return v.State == rotation.Healthy && v.VerifiedRotations >= verified+2
			}, s.Agent)
		})
	}
}
