package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"svid-watchdog/internal/lab"
	"svid-watchdog/internal/rotation"
)

const (
	spireServerConfig = `
server {
  bind_address = "127.0.0.1"
  bind_port = "%[2]d"
  socket_path = "%[1]s/server.sock"
  trust_domain = "example.test"
  data_dir = "%[1]s/server"
  ca_ttl = "1h"
  experimental { cache_reload_interval = "1s" }
}
plugins {
  DataStore "sql" {
    plugin_data {
      database_type = "sqlite3"
      connection_string = "%[1]s/server/db.sqlite3"
    }
  }
  KeyManager "memory" { plugin_data {} }
  NodeAttestor "join_token" { plugin_data {} }
}
`
	spireAgentConfig = `
agent {
  data_dir = "%[1]s/agent"
  server_address = "127.0.0.1"
  server_port = "%[2]d"
  socket_path = "%[1]s/agent.sock"
  trust_domain = "example.test"
  insecure_bootstrap = true
  experimental { sync_interval = "1s" }
}
plugins {
  KeyManager "memory" { plugin_data {} }
  NodeAttestor "join_token" { plugin_data {} }
  WorkloadAttestor "unix" { plugin_data {} }
}
`
	workloadID = "spiffe://example.test/ns/shop/sa/front-end"
	agentID    = "spiffe://example.test/agent"
	// svidTTL is an SVID's lifetime: back-dated by ten seconds and renewed at
	// half life, one comes every ten seconds.
	svidTTL = 30
)

// spire is a real SPIRE server, and an agent for this machine.
type spire struct {
	t             *testing.T
	dir           string
	server, agent *process
}

// startSPIRE starts both and registers this user as the workload.
func startSPIRE(t *testing.T) *spire {
	t.Helper()
	serverPath := need(t, "bin", "spire-server")
	need(t, "bin", "spire-agent")
	dir, err := os.MkdirTemp("", "svid-e2e-") // short: a socket's path is
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	for name, config := range map[string]string{"server": spireServerConfig, "agent": spireAgentConfig} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name+".conf"), fmt.Appendf(nil, config, dir, port), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := &spire{t: t, dir: dir}
	s.server = startProcess(t, serverPath, "run", "-config", filepath.Join(dir, "server.conf"))
	until(t, 30*time.Second, "the SPIRE server", func() bool {
		_, err := s.tryControl("healthcheck")
		return err == nil
	}, s.server)
	s.control("entry", "create", "-parentID", agentID, "-spiffeID", workloadID,
		"-selector", fmt.Sprintf("unix:uid:%d", os.Getuid()), "-x509SVIDTTL", fmt.Sprint(svidTTL))
	s.startAgent()
	return s
}

func (s *spire) tryControl(args ...string) (string, error) {
	cmd := exec.Command(need(s.t, "bin", "spire-server"), append(args, "-socketPath", filepath.Join(s.dir, "server.sock"))...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (s *spire) control(args ...string) string {
	s.t.Helper()
	out, err := s.tryControl(args...)
	if err != nil {
		s.t.Fatalf("spire-server %s: %v\n%s\n%s", strings.Join(args, " "), err, out, s.server)
	}
	return out
}

// startAgent starts an agent. A join token is good for one start only.
func (s *spire) startAgent() {
	s.t.Helper()
	var token struct{ Value string }
	if err := json.Unmarshal([]byte(s.control("token", "generate", "-spiffeID", agentID, "-output", "json")), &token); err != nil {
		s.t.Fatal(err)
	}
	// An agent that was killed leaves what it had stored; the new one has
	// another identity.
	if err := os.RemoveAll(filepath.Join(s.dir, "agent")); err != nil {
		s.t.Fatal(err)
	}
	s.agent = startProcess(s.t, need(s.t, "bin", "spire-agent"), "run", "-config", filepath.Join(s.dir, "agent.conf"), "-joinToken", token.Value)
}

func (s *spire) socket() string { return filepath.Join(s.dir, "agent.sock") }

// TestRealSPIRE: a real Envoy takes its secrets from a real SPIRE agent. The
// watchdog beside it verifies rotation after rotation and raises nothing; it
// tells when the agent is killed, and when it is back.
func TestRealSPIRE(t *testing.T) {
	for _, version := range []string{"1.36.4", "1.40.0"} {
		t.Run("envoy"+version, func(t *testing.T) {
			t.Parallel()
			envoyPath := need(t, "envoy", version, "envoy")
			s := startSPIRE(t)
			dir := t.TempDir()
			e, err := lab.NewRealEnvoy(lab.RealEnvoyConfig{Path: envoyPath, SDSSocket: s.socket(), Dir: dir})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { e.Close() })
			// The agent may not have its first entries yet: as in a pod, it
			// says PermissionDenied until then.
			if err := e.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			w := startWatchdog(t, "--workload-api.address=unix://"+s.socket(), "--envoy.admin-address="+e.AdminAddress(),
				"--credentials.dir="+filepath.Join(dir, "none"), "--envoy.poll-interval=1s", "--rotation.grace=8s", "--envoy.budget=50", "--handshake.address="+e.ListenerAddress())

			v := w.Until(90*time.Second, "three verified rotations", func(v rotation.Verdict) bool {
				return v.VerifiedRotations >= 3 && v.State == rotation.Healthy
			}, s.agent)
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
			if err := s.agent.Cmd.Process.Signal(syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			silent := rotation.ReasonServerSilent
			if version != "1.36.4" {
				silent = rotation.ReasonServerSilentOrResends
			}
			w.Until(svidTTL*time.Second+8*time.Second+5*time.Second, "the hung agent to be told", func(v rotation.Verdict) bool {
				p, _ := v.Find(rotation.DeliveryOverdue)
				return p.Reason == silent && v.Has(rotation.IssuanceOverdue) && !v.Has(rotation.SDSStreamDown)
			})
			if err := s.agent.Cmd.Process.Signal(syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
			w.Until(30*time.Second, "the agent to go on", func(v rotation.Verdict) bool { return v.State == rotation.Healthy }, s.agent)

			s.agent.Kill()
			w.Until(8*time.Second+time.Second+5*time.Second, "the agent's death to be told", func(v rotation.Verdict) bool {
				p, told := v.Find(rotation.WorkloadUnreachable)
				return told && p.Reason == rotation.ReasonRefused && v.Has(rotation.SDSStreamDown) && v.IdentityMode == rotation.ModeIstiodCA
			})

			s.startAgent()
			verified := w.Verdict().VerifiedRotations
			// Envoy's backoff is up to 30 s, and a renewal comes every 10 s.
			w.Until(75*time.Second, "rotation to go on", func(v rotation.Verdict) bool {
				return v.State == rotation.Healthy && v.VerifiedRotations >= verified+2
			}, s.agent)
		})
	}
}
