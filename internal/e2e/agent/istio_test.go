package agent

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"svid-watchdog/internal/check"
	"svid-watchdog/internal/e2e/neighbour"
	"svid-watchdog/internal/e2e/sidecar"
)

// Where things are in a pod. The agent takes these paths relative to its
// working directory, so that a directory can be its root.
const (
	socketDir = "var/run/secrets/workload-spiffe-uds"
	certsDir  = "var/run/secrets/workload-spiffe-credentials"
	filesDir  = "var/run/secrets/credential-uds"
)

// proxyUser is the user that istio-proxy runs as in a pod.
const proxyUser = 1337

// pod is the root directory of a pod, and how its volumes are mounted.
type pod struct {
	t   *testing.T
	dir string
	// node is the directory of the workload socket outside of the pod.
	node string
	// writable mounts it so that the pod may write there, as with an emptyDir.
	writable bool
}

func newPod(t *testing.T, node string, writable bool) *pod {
	t.Helper()
	if os.Getuid() != 0 {
		neighbour.Lacking(t, "it takes root to mount as in a pod")
	}
	for _, name := range []string{"unshare", "setpriv", "nsenter", "mount"} {
		neighbour.Installed(t, name, "util-linux")
	}
	neighbour.Installed(t, "ip", "iproute2")
	dir, err := os.MkdirTemp("", "svid-agent-") // short: a socket's path is
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	p := &pod{t: t, dir: dir, node: node, writable: writable}
	for _, path := range []string{socketDir, certsDir, filesDir, "var/run/secrets/istio", "var/run/secrets/tokens", "etc/istio/proxy", "var/lib/istio/envoy"} {
		if err := os.MkdirAll(p.path(path), 0o755); err != nil { //nolint:gosec // others read it, as in a pod
			t.Fatal(err)
		}
	}
	template, err := os.ReadFile(neighbour.Need(t, "istio", "envoy_bootstrap.json"))
	if err != nil {
		t.Fatal(err)
	}
	p.write("var/lib/istio/envoy/envoy_bootstrap_tmpl.json", template)
	if node != "" {
		p.own(node)
	}
	p.own(p.dir)
	return p
}

func (p *pod) path(name string) string { return filepath.Join(p.dir, name) }

func (p *pod) write(name string, text []byte) {
	p.t.Helper()
	if err := os.WriteFile(p.path(name), text, 0o644); err != nil { //nolint:gosec // others read it, as in a pod
		p.t.Fatal(err)
	}
}

// own gives all below a path to the user of istio-proxy.
func (p *pod) own(path string) {
	p.t.Helper()
	if err := filepath.WalkDir(path, func(path string, _ os.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(path, proxyUser, proxyUser))
	}); err != nil {
		p.t.Fatal(err)
	}
}

// mounted is a script that mounts the workload socket's directory as in the pod
// and then runs its arguments as the user of istio-proxy. The shell stays: with
// it, as the first process of its namespace, all others end.
const mounted = `
set -e
node=$1 pod=$2 access=$3
shift 3
ip link set lo up
mount --bind "$node" "$pod/` + socketDir + `"
[ "$access" = rw ] || mount -o remount,bind,ro "$pod/` + socketDir + `"
cd "$pod"
status=0
setpriv --reuid=1337 --regid=1337 --clear-groups -- "$@" || status=$?
exit "$status"
`

// inside are the arguments of unshare, by which a command runs with the pod's
// mounts and with processes and a network of its own.
func (p *pod) inside(command ...string) []string {
	access := "ro"
	if p.writable {
		access = "rw"
	}
	return append([]string{
		"--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--net", "--",
		"sh", "-c", mounted, "sh", p.node, p.dir, access,
	}, command...)
}

// look is what `watchdog check` says of the pod.
func (p *pod) look(socket string) check.Report {
	p.t.Helper()
	args := p.inside(sidecar.Binary(p.t), "check", "--json", "--own-look", "--timeout=3s",
		"--credentials.dir="+p.path(certsDir), "--workload-api.address=unix://"+p.path(filepath.Join(socketDir, socket)))
	var stderr bytes.Buffer
	command := exec.CommandContext(p.t.Context(), "unshare", args...) //nolint:gosec // our own
	command.Stderr = &stderr
	out, err := command.Output()
	var failed *exec.ExitError
	if err != nil && !errors.As(err, &failed) {
		p.t.Fatal(err)
	}
	var report check.Report
	if err := json.Unmarshal(out, &report); err != nil {
		p.t.Fatalf("%v\n%s\n%s", err, out, stderr.String())
	}
	return report
}

// proxy is a running agent.
type proxy struct {
	*neighbour.Process
	pod *pod
}

// start starts the agent as istio-proxy does.
func (p *pod) start(discovery string, metadata map[string]string, env ...string) *proxy {
	p.t.Helper()
	config, err := json.Marshal(map[string]any{
		"discoveryAddress": discovery, "binaryPath": neighbour.Need(p.t, "envoy", "1.40.0", "envoy"), "proxyMetadata": metadata,
	})
	if err != nil {
		p.t.Fatal(err)
	}
	command := append([]string{
		"env", "-i", "PATH=" + os.Getenv("PATH"), "POD_NAME=front-end", "POD_NAMESPACE=shop", "INSTANCE_IP=127.0.0.1",
		"ISTIO_META_CLUSTER_ID=Kubernetes", "SERVICE_ACCOUNT=front-end", "CA_ADDR=" + discovery, "PROXY_CONFIG=" + string(config),
	}, env...)
	command = append(command, neighbour.Need(p.t, "bin", "pilot-agent"), "proxy", "sidecar", "--domain=shop.svc.cluster.local")
	return &proxy{neighbour.Start(p.t, "unshare", p.inside(command...)...), p}
}

func (a *proxy) says(text string) bool { return strings.Contains(a.Out.String(), text) }

func (a *proxy) exited() bool {
	select {
	case <-a.Exited:
		return true
	default:
		return false
	}
}

// envoyRuns tells whether the agent has started its Envoy, and that Envoy has
// taken the bootstrap.
func (a *proxy) envoyRuns() bool {
	var report check.Report
	none := a.pod.path("none")
	return json.Unmarshal([]byte(a.check("--workload-api.address=unix://"+none, "--credentials.dir="+none)), &report) == nil &&
		report.Verdict.Envoy.Version == "1.40.0"
}

// check is what `watchdog check` prints in the agent's network, as its user.
func (a *proxy) check(args ...string) string {
	command := append([]string{
		"--target", a.child(), "--net", "--", "setpriv", "--reuid=1337", "--regid=1337", "--clear-groups", "--",
		sidecar.Binary(a.pod.t), "check", "--json", "--own-look", "--timeout=3s",
	}, args...)
	out, _ := exec.CommandContext(a.pod.t.Context(), "nsenter", command...).Output() //nolint:gosec // our own; the exit code tells of the pod
	return string(out)
}

// child is the number of the first process in the agent's namespace.
func (a *proxy) child() string {
	pid := a.Cmd.Process.Pid
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(children))
}

// listener names who listens on a socket, "" if nobody does.
func listener(t *testing.T, path string) string {
	t.Helper()
	conn, err := net.DialTimeout("unix", path, time.Second)
	if err != nil {
		return ""
	}
	defer conn.Close()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var cred *unix.Ucred
	var failed error
	if err := raw.Control(func(fd uintptr) { cred, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil || failed != nil {
		t.Fatal(err, failed)
	}
	name, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", cred.Pid))
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Base(name)
}
