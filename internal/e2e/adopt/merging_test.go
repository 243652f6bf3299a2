package adopt

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"svid-watchdog/internal/child"
	"svid-watchdog/internal/e2e/neighbour"
	"svid-watchdog/internal/e2e/prom"
	"svid-watchdog/internal/e2e/sidecar"
	"svid-watchdog/internal/lab"
	"svid-watchdog/internal/rotation"
)

// TestMerged: our metrics come through the merging of Istio's agent beside those of
// an application, also while every certificate has expired; that nobody serves
// them any more is seen by their absence alone; and they go with the agent. All
// is real: the injector that writes what the agent is told, the agent with its
// Envoy, the watchdog, and Prometheus, whose own metrics are the application's.
func TestMerged(t *testing.T) {
	plane := controlPlane(t)
	configure(t, plane, templatesAfter, watched, ours)
	box, err := lab.Start(t.Context(), lab.Config{
		Issuer: lab.Tbot, TTL: 30 * time.Second, Renewal: 10 * time.Second, EnvoyPath: neighbour.Need(t, "envoy", "1.40.0", "envoy"),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { box.Close() })
	w := sidecar.Start(t, "--workload-api.address="+box.SocketAddress(), "--credentials.dir="+box.CredentialsDir(),
		"--envoy.admin-address="+box.Envoy().AdminAddress(), "--envoy.poll-interval=500ms", "--envoy.budget=50",
		"--rotation.interval=10s", "--rotation.grace=3s")
	app := prom.Start(t, prom.Config{})

	p, err := try(t.Context(), plane, map[string]string{
		"inject.istio.io/templates":          templatesAfter,
		"prometheus.istio.io/scrape-targets": port(t, strings.TrimPrefix(app.URL, "http://")) + ":/metrics," + port(t, w.Address) + ":/metrics",
	})
	if err != nil {
		t.Fatal(err)
	}
	status, stop := startAgent(t, box, environment(t, p))
	prometheus := prom.Start(t, prom.Config{
		// A scrape each second. The agent's path is not the usual one.
		Factor: 60, Jobs: map[string][]prom.Target{"pods": {{Address: status, Labels: map[string]string{
			"__metrics_path__": "/stats/prometheus", "namespace": "sock-shop", "pod": "front-end-1", "workload": "front-end", "node": "node-1",
		}}}},
	})
	has := func(expr string, count int) {
		t.Helper()
		neighbour.Until(t, time.Minute, fmt.Sprintf("%d series of %s", count, expr), func() bool {
			return len(prometheus.MustQuery(expr)) == count
		})
	}
	const pod = `{namespace="sock-shop",pod="front-end-1",workload="front-end",node="node-1"}`
	has(`up`+pod+` == 1`, 1)
	has(`svid_watchdog_rotation_state`+pod, 4)
	has(`svid_watchdog_build_info`+pod, 1)
	has(`prometheus_build_info`+pod, 1)
	has(`istio_agent_scrapes_total`+pod, 1)
	// Both have the metrics of their process: that of the first target is kept.
	has(`process_start_time_seconds`+pod, 1)
	has(`prometheus_build_info`+pod+` and on (pod) process_resident_memory_bytes > 32e6`, 1)

	// The incident: what Envoy uses expires. The way of the metrics is not mTLS.
	if err := box.Inject(t.Context(), "tbot-resend"); err != nil {
		t.Fatal(err)
	}
	w.Until(time.Minute, "the certificate to expire", func(v rotation.Verdict) bool { return v.State == rotation.Broken })
	has(`svid_watchdog_problem{problem="certificate_expired",pod="front-end-1"} == 1`, 1)

	// Nobody says that the watchdog has gone but its absence.
	w.Kill()
	has(`svid_watchdog_build_info`, 0)
	has(`up`+pod+` == 1`, 1)
	has(`prometheus_build_info`+pod, 1)

	// And without the agent there is nothing.
	stop()
	has(`up`+pod+` == 0`, 1)
	has(`prometheus_build_info`+pod, 0)
}

func port(t *testing.T, address string) string {
	t.Helper()
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// startAgent starts Istio's agent with a real Envoy, as a process. It has the
// socket of a lab's identity provider, and no istiod: so its Envoy accepts nobody
// yet, and the one thing that is missing in what is merged is Envoy's statistics. It returns where the agent serves the merged metrics, and what ends
// it and its Envoy.
func startAgent(t *testing.T, box *lab.Pod, annotations string) (address string, stop func()) {
	t.Helper()
	agent := neighbour.Need(t, "bin", "pilot-agent")
	bootstrap, err := os.ReadFile(neighbour.Need(t, "istio", "envoy_bootstrap.json"))
	if err != nil {
		t.Fatal(err)
	}
	// All paths of the agent are relative to where it is started.
	dir := t.TempDir()
	for path, content := range map[string][]byte{
		"var/lib/istio/envoy/envoy_bootstrap_tmpl.json":     bootstrap,
		"var/run/secrets/istio/root-cert.pem":               authority(t),
		"var/run/secrets/tokens/istio-token":                []byte("token"),
		"var/run/secrets/workload-spiffe-uds/.keep":         nil,
		"var/run/secrets/workload-spiffe-credentials/.keep": nil,
		"var/run/secrets/credential-uds/.keep":              nil,
		"etc/istio/proxy/.keep":                             nil,
		"etc/istio/pod/.keep":                               nil,
	} {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { //nolint:gosec // nothing secret
			t.Fatal(err)
		}
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(box.SocketPath(), filepath.Join(dir, "var/run/secrets/workload-spiffe-uds/socket")); err != nil {
		t.Fatal(err)
	}
	ports := []int{neighbour.Port(t), neighbour.Port(t), neighbour.Port(t), neighbour.Port(t)}
	config, err := json.Marshal(map[string]any{
		"discoveryAddress": "127.0.0.1:1", "statusPort": ports[0], "proxyAdminPort": ports[1],
		"binaryPath": neighbour.Need(t, "envoy", "1.40.0", "envoy"), "configPath": "./etc/istio/proxy",
	})
	if err != nil {
		t.Fatal(err)
	}
	p := &neighbour.Process{Cmd: exec.Command(agent, "proxy", "sidecar")}
	p.Cmd.Dir = dir
	p.Cmd.Env = append(os.Environ(),
		"POD_NAME=front-end-1", "POD_NAMESPACE=sock-shop", "SERVICE_ACCOUNT=front-end", "INSTANCE_IP=127.0.0.1",
		"ISTIO_META_CLUSTER_ID=Kubernetes", "CA_ADDR=127.0.0.1:1", "PROXY_CONFIG="+string(config),
		fmt.Sprintf("ENVOY_STATUS_PORT=%d", ports[2]), fmt.Sprintf("ENVOY_PROMETHEUS_PORT=%d", ports[3]),
		"ISTIO_PROMETHEUS_ANNOTATIONS="+annotations)
	p.Cmd.Stdout, p.Cmd.Stderr = &p.Out, &p.Out
	// A group of its own, as Envoy outlives its agent.
	p.Cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	exited, err := child.Start(p.Cmd)
	if err != nil {
		t.Fatal(err)
	}
	p.Exited = exited
	stop = func() {
		_ = syscall.Kill(-p.Cmd.Process.Pid, syscall.SIGKILL) // it may have ended
		<-exited
	}
	t.Cleanup(func() {
		stop()
		if t.Failed() {
			t.Log(p)
		}
	})
	return fmt.Sprintf("127.0.0.1:%d", ports[0]), stop
}

// authority stands for istiod's, whom nobody asks here.
func authority(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
