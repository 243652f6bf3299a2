package pod

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"svid-watchdog/internal/check"
	"svid-watchdog/internal/e2e/neighbour"
	"svid-watchdog/internal/e2e/netns"
	"svid-watchdog/internal/e2e/podman"
	"svid-watchdog/internal/e2e/sidecar"
	"svid-watchdog/internal/e2e/spire"
	"svid-watchdog/internal/mesh"
	"svid-watchdog/internal/rotation"
)

const (
	namespace  = "shop"
	workload   = "front-end"
	workloadID = "spiffe://" + spire.TrustDomain + "/ns/" + namespace + "/sa/" + workload
	clientID   = "spiffe://" + spire.TrustDomain + "/ns/" + namespace + "/sa/client"
	// podIP is what mesh says of a pod that it calls ready; outsideIP is that of
	// whoever is not in the pod.
	podIP, outsideIP = "192.0.2.10", "192.0.2.1"
	appPort          = "8080"
	metricsPort      = "9816"
	// istiodAddress is where the pod finds istiod.
	istiodAddress = "127.0.0.1:15012"
)

// operator is laid over what is shipped: the trust domain is the identity
// provider's, as it must be, and istiod is found on the pod's own loopback, from
// where its connections are passed on.
const operator = `apiVersion: install.istio.io/v1alpha1
kind: IstioOperator
spec:
  meshConfig:
    trustDomain: ` + spire.TrustDomain + `
    defaultConfig: {discoveryAddress: "localhost:15012"}
`

// application is what a team deploys. The annotation nativeSidecar is there
// because podman knows no native sidecars.
const application = `apiVersion: v1
kind: ServiceAccount
metadata: {name: front-end, namespace: shop}
---
apiVersion: v1
kind: Service
metadata: {name: front-end, namespace: shop}
spec:
  selector: {app: front-end}
  ports: [{name: http, port: 80, targetPort: 8080}]
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: STRICT}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: front-end, namespace: shop}
spec:
  replicas: 1
  selector: {matchLabels: {app: front-end}}
  template:
    metadata:
      labels: {app: front-end}
      annotations:
        inject.istio.io/templates: sidecar,teleport-sidecar
        sidecar.istio.io/nativeSidecar: "false"
        svid-watchdog/handshake-port: "8080"
    spec:
      serviceAccountName: front-end
      containers:
      - name: web
        image: web
        ports: [{name: http, containerPort: 8080}]
`

// running is the pod as it runs.
type running struct {
	t       *testing.T
	podman  *podman.Podman
	plane   *mesh.ControlPlane
	name    string
	inside  *netns.Namespace
	outside *netns.Namespace
	http    *http.Client // from outside
}

// run makes the pod of the Deployment and starts it.
func run(t *testing.T, identities *spire.SPIRE, pace map[string]string) *running {
	t.Helper()
	p := podman.New(t)
	neighbour.Installed(t, "catatonit", "catatonit") // for podman, which holds the network of a pod by it
	images(t, p)
	r := &running{t: t, podman: p, plane: controlPlane(t), outside: netns.New(t)}
	r.http = &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DialContext: r.outside.Dial, DisableKeepAlives: true}}

	var merged struct {
		Metadata struct{ Name string }
	}
	text := r.deploy(&merged)
	r.name = merged.Metadata.Name
	n := node{
		t: t, dir: t.TempDir(), socketDir: identities.SocketDir(), podIP: podIP, pace: pace,
		token:    r.kubectl("", "create", "token", workload, "-n", namespace, "--audience", "istio-ca"),
		rootCert: r.kubectl("", "get", "configmap", "istio-ca-root-cert", "-n", namespace, "-o", `jsonpath={.data.root-cert\.pem}`),
	}
	file := filepath.Join(t.TempDir(), "pod.yaml")
	if err := os.WriteFile(file, n.forPodman(text), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Remove("pod", r.name); err != nil {
			t.Error(err)
		}
	})
	p.Must("play", "kube", "--network", "none", "--start=false", file)
	// The network comes first, as a kubelet does it: istio-init looks at the
	// pod's address.
	infra := p.Must("pod", "inspect", r.name, "--format", "{{.InfraContainerID}}")
	p.Must("start", infra)
	r.inside = netns.Of(t, p.Must("inspect", "--format", "{{.State.Pid}}", infra))
	netns.Join(r.inside, podIP+"/24", r.outside, outsideIP+"/24")
	_, port, err := net.SplitHostPort(r.plane.IstiodAddress())
	if err != nil {
		t.Fatal(err)
	}
	netns.Forward(t, r.inside, istiodAddress, nil, "127.0.0.1:"+port)
	p.Must("pod", "start", r.name)
	return r
}

// controlPlane starts one with the templates that are shipped.
func controlPlane(t *testing.T) *mesh.ControlPlane {
	t.Helper()
	file := filepath.Join(t.TempDir(), "operator.yaml")
	if err := os.WriteFile(file, []byte(operator), 0o600); err != nil {
		t.Fatal(err)
	}
	root := neighbour.Root(t)
	cfg := mesh.Config{
		Neighbours: filepath.Join(root, ".neighbours"), Istio: true,
		Operators: []string{filepath.Join(root, "deploy", "istio", "istio-config.yaml"), file},
	}
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
	return plane
}

func (r *running) kubectl(stdin string, args ...string) string {
	r.t.Helper()
	out, err := r.plane.Kubectl(r.t.Context(), stdin, args...)
	if err != nil {
		r.t.Fatal(err)
	}
	return out
}

// deploy has the real controllers, webhook and API server make the pod.
func (r *running) deploy(into any) json.RawMessage {
	r.t.Helper()
	if err := r.plane.CreateNamespace(r.t.Context(), namespace, true); err != nil {
		r.t.Fatal(err)
	}
	r.kubectl(application, "apply", "--server-side", "-f", "-")
	pods, err := r.plane.Pods(r.t.Context(), namespace, "app="+workload, 1)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := json.Unmarshal(pods[0], into); err != nil {
		r.t.Fatal(err)
	}
	// istiod configures a proxy by the address that the API server has of it.
	if _, err := r.plane.SayReady(r.t.Context(), namespace); err != nil {
		r.t.Fatal(err)
	}
	return pods[0]
}

func (r *running) container(name string) string { return r.name + "-" + name }

// String is what the containers and istiod said last.
func (r *running) String() string {
	var b strings.Builder
	for _, name := range []string{"istio-init", "istio-proxy", "svid-watchdog", "web"} {
		out, err := r.podman.Run("logs", "--tail", "30", r.container(name))
		fmt.Fprintf(&b, "--- %s (%v)\n%s\n", name, err, out)
	}
	status, _ := r.podman.Run("ps", "--all", "--pod")
	return b.String() + status
}

// get asks from outside of the pod.
func (r *running) get(port, path string) (string, error) {
	request, err := http.NewRequestWithContext(r.t.Context(), http.MethodGet, "http://"+net.JoinHostPort(podIP, port)+path, nil)
	if err != nil {
		return "", err
	}
	response, err := r.http.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", response.Status, text)
	}
	return string(text), err
}

// until waits for a verdict of the pod's watchdog.
func (r *running) until(bound time.Duration, what string, satisfied func(rotation.Verdict) bool) rotation.Verdict {
	r.t.Helper()
	var v rotation.Verdict
	var last string
	neighbour.Until(r.t, bound, what, func() bool {
		text, err := r.get(metricsPort, "/api/v1/status")
		if err != nil {
			last = err.Error()
			return false
		}
		last, v = text, rotation.Verdict{}
		return json.Unmarshal([]byte(text), &v) == nil && satisfied(v)
	}, r, text{&last})
	return v
}

// text is one that is known only when it is printed.
type text struct{ of *string }

func (t text) String() string { return *t.of }

// handshakeAs makes one look from within the pod's network as a user.
func (r *running) handshakeAs(user string) check.Report {
	r.t.Helper()
	command := r.inside.Command("setpriv", "--reuid="+user, "--regid="+user, "--clear-groups", "--",
		sidecar.Binary(r.t), "check", "--json", "--own-look", "--no-svid", "--timeout=5s",
		"--credentials.dir="+filepath.Join(r.t.TempDir(), "none"), "--handshake.address="+net.JoinHostPort(podIP, appPort))
	var stderr bytes.Buffer
	cmd := exec.CommandContext(r.t.Context(), command[0], command[1:]...) //nolint:gosec // our own
	cmd.Stderr = &stderr
	out, _ := cmd.Output() // the exit code tells of the pod
	var report check.Report
	if err := json.Unmarshal(out, &report); err != nil {
		r.t.Fatalf("%v\n%s\n%s", err, out, stderr.String())
	}
	return report
}

// cgroup is the memory controller's group of a container.
type cgroup struct {
	t          *testing.T
	dir        string
	limit, max string // the names of its files
	events     string
}

func (r *running) cgroup(container string) cgroup {
	r.t.Helper()
	pid := r.podman.Must("inspect", "--format", "{{.State.Pid}}", r.container(container))
	text, err := os.ReadFile("/proc/" + pid + "/cgroup")
	if err != nil {
		r.t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		switch parts := strings.SplitN(strings.TrimSpace(line), ":", 3); {
		case parts[1] == "memory":
			return cgroup{r.t, filepath.Join("/sys/fs/cgroup/memory", parts[2]), "memory.limit_in_bytes", "memory.max_usage_in_bytes", "memory.oom_control"}
		case parts[0] == "0" && !strings.Contains(string(text), ":memory:"):
			return cgroup{r.t, filepath.Join("/sys/fs/cgroup", parts[2]), "memory.max", "memory.peak", "memory.events"}
		}
	}
	r.t.Fatalf("no memory controller: %s", text)
	return cgroup{}
}

func (c cgroup) bytes(name string) int {
	c.t.Helper()
	text, err := os.ReadFile(filepath.Join(c.dir, name))
	if err != nil {
		c.t.Fatal(err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		c.t.Fatal(err)
	}
	return n
}

// kills is how often the kernel has killed a process of the group.
func (c cgroup) kills() string {
	c.t.Helper()
	text, err := os.ReadFile(filepath.Join(c.dir, c.events))
	if err != nil {
		c.t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if count, found := strings.CutPrefix(line, "oom_kill "); found {
			return strings.TrimSpace(count)
		}
	}
	c.t.Fatalf("it is not said: %s", text)
	return ""
}
