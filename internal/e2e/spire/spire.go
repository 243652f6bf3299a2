// Package spire runs a real SPIRE server and agent in tests, by unix processes
// alone: workloads are told apart by their user.
package spire

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"svid-watchdog/internal/e2e/neighbour"
)

const (
	serverConfig = `
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
	agentConfig = `
agent {
  data_dir = "%[1]s/agent"
  server_address = "127.0.0.1"
  server_port = "%[2]d"
  socket_path = "%[1]s/socket/socket"
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
	// TrustDomain is that of all identities.
	TrustDomain = "example.test"
	agentID     = "spiffe://" + TrustDomain + "/agent"
)

// Workload is an identity, and who gets it.
type Workload struct {
	ID   string
	User int
	// TTL is an SVID's lifetime: it is back-dated by ten seconds and renewed at
	// half life.
	TTL time.Duration
}

// SPIRE is a server, and an agent for this machine.
type SPIRE struct {
	// Server and Agent are the running programs.
	Server, Agent *neighbour.Process

	t   testing.TB
	dir string
}

// Start starts both and registers the workloads.
func Start(t testing.TB, workloads ...Workload) *SPIRE {
	t.Helper()
	path := neighbour.Need(t, "bin", "spire-server")
	neighbour.Need(t, "bin", "spire-agent")
	dir, err := os.MkdirTemp("", "svid-spire-") // short: a socket's path is
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	port := neighbour.Port(t)
	for name, config := range map[string]string{"server": serverConfig, "agent": agentConfig} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name+".conf"), fmt.Appendf(nil, config, dir, port), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := &SPIRE{t: t, dir: dir}
	// Workloads of other users find the socket, and nothing else.
	if err := os.Chmod(dir, 0o711); err != nil { //nolint:gosec // see above
		t.Fatal(err)
	}
	if err := os.Mkdir(s.SocketDir(), 0o755); err != nil { //nolint:gosec // see above
		t.Fatal(err)
	}
	s.Server = neighbour.Start(t, path, "run", "-config", filepath.Join(dir, "server.conf"))
	neighbour.Until(t, 30*time.Second, "the SPIRE server", func() bool {
		_, err := s.try("healthcheck")
		return err == nil
	}, s.Server)
	for _, w := range workloads {
		s.control("entry", "create", "-parentID", agentID, "-spiffeID", w.ID,
			"-selector", fmt.Sprintf("unix:uid:%d", w.User), "-x509SVIDTTL", fmt.Sprint(int(w.TTL.Seconds())))
	}
	s.StartAgent()
	return s
}

func (s *SPIRE) try(args ...string) (string, error) {
	args = append(args, "-socketPath", filepath.Join(s.dir, "server.sock"))
	out, err := exec.CommandContext(s.t.Context(), neighbour.Need(s.t, "bin", "spire-server"), args...).CombinedOutput() //nolint:gosec // our own
	return string(out), err
}

func (s *SPIRE) control(args ...string) string {
	s.t.Helper()
	out, err := s.try(args...)
	if err != nil {
		s.t.Fatalf("spire-server %s: %v\n%s\n%s", strings.Join(args, " "), err, out, s.Server)
	}
	return out
}

// StartAgent starts an agent. A join token is good for one start only.
func (s *SPIRE) StartAgent() {
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
	s.Agent = neighbour.Start(s.t, neighbour.Need(s.t, "bin", "spire-agent"), "run", "-config", filepath.Join(s.dir, "agent.conf"), "-joinToken", token.Value)
}

// SocketDir is the directory of the agent's socket, and of nothing else.
func (s *SPIRE) SocketDir() string { return filepath.Join(s.dir, "socket") }

// Socket is the path of the agent's socket.
func (s *SPIRE) Socket() string { return filepath.Join(s.SocketDir(), "socket") }
