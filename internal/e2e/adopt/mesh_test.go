package adopt

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"svid-watchdog/internal/e2e/neighbour"
	"svid-watchdog/internal/e2e/sidecar"
	"svid-watchdog/internal/mesh"
)

var (
	// root is that of the repository.
	root = filepath.Join("..", "..", "..")
	// ours is what a platform engineer installs.
	ours = filepath.Join(root, "deploy", "istio", "istio-config.yaml")
)

var shared struct {
	once  sync.Once
	plane *mesh.ControlPlane
	older string // the settings of the mesh before
	err   error
}

func TestMain(m *testing.M) {
	code := sidecar.Main(m)
	if shared.plane != nil {
		if err := shared.plane.Close(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// controlPlane is one for all tests, which run one after the other: they change
// the templates of the mesh.
func controlPlane(t *testing.T) *mesh.ControlPlane {
	t.Helper()
	cfg := mesh.Config{Neighbours: filepath.Join(root, ".neighbours"), Istio: true}
	if err := mesh.Missing(cfg); err != nil {
		neighbour.Lacking(t, err.Error())
	}
	shared.once.Do(func() {
		// Not the test's context: it outlives the first test.
		shared.plane, shared.err = mesh.Start(context.Background(), cfg)
		if shared.err == nil {
			shared.older, shared.err = writeOlder(context.Background(), shared.plane)
		}
	})
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.plane
}

// writeOlder writes the templates of the mesh before: `teleport-sidecar` was a
// full copy of Istio's own with the socket of the CSI driver and without the
// directory of credentials, and `spire` said the same of the socket once more.
func writeOlder(ctx context.Context, plane *mesh.ControlPlane) (string, error) {
	stock, err := plane.StockTemplate(ctx)
	if err != nil {
		return "", err
	}
	teleport := strings.NewReplacer(
		"    - name: workload-certs\n      mountPath: /var/run/secrets/workload-spiffe-credentials\n", "",
		"  - emptyDir:\n    name: workload-certs\n", "",
		"  - emptyDir:\n    name: workload-socket\n", "  - csi: {driver: csi.spiffe.io, readOnly: true}\n    name: workload-socket\n",
	).Replace(stock)
	if strings.Contains(teleport, "workload-certs") || !strings.Contains(teleport, "csi.spiffe.io") {
		return "", errors.New("Istio's template mounts the socket and the credentials in another way than this test knows") //nolint:staticcheck // a name
	}
	spire := `spec:
  volumes:
  - name: workload-socket
    csi: {driver: csi.spiffe.io, readOnly: true}
`
	text := "apiVersion: install.istio.io/v1alpha1\nkind: IstioOperator\nspec:\n  values:\n    sidecarInjectorWebhook:\n      templates:\n" +
		"        teleport-sidecar: |\n" + indent(teleport, 10) + "        spire: |\n" + indent(spire, 10)
	file := filepath.Join(plane.Dir(), "templates-before.yaml")
	return file, os.WriteFile(file, []byte(text), 0o600)
}

func indent(text string, by int) string {
	var moved strings.Builder
	for line := range strings.Lines(text) {
		moved.WriteString(strings.Repeat(" ", by) + line)
	}
	return moved.String()
}

// configure gives the mesh other settings, and waits until a pod that is only
// tried shows it.
func configure(t *testing.T, plane *mesh.ControlPlane, templates string, shows func(pod) error, operators ...string) {
	t.Helper()
	if err := plane.Configure(t.Context(), operators...); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := mesh.Await(ctx, "istiod to read its templates", func(ctx context.Context) error {
		p, err := try(ctx, plane, map[string]string{"inject.istio.io/templates": templates})
		if err != nil {
			return err
		}
		return shows(p)
	}); err != nil {
		t.Fatal(err)
	}
}

// pod is what is looked at of a pod.
type pod struct {
	Metadata struct {
		Name        string            `json:"name"`
		Labels      map[string]string `json:"labels"`
		Annotations map[string]string `json:"annotations"`
	} `json:"metadata"`
	Spec struct {
		InitContainers []container `json:"initContainers"`
		Containers     []container `json:"containers"`
	} `json:"spec"`
	Status struct {
		Phase string `json:"phase"`
	} `json:"status"`
}

type container struct {
	Name string   `json:"name"`
	Args []string `json:"args"`
	Env  []struct {
		Name  string `json:"name"`
		Value string `json:"value"`
	} `json:"env"`
}

// container is the one of that name, or nil.
func (p pod) container(name string) *container {
	for _, list := range [][]container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			if list[i].Name == name {
				return &list[i]
			}
		}
	}
	return nil
}

func watched(p pod) error {
	if p.container("istio-proxy") == nil || p.container("svid-watchdog") == nil {
		return errors.New("the pod has no watchdog")
	}
	return nil
}

func unwatched(p pod) error {
	if p.container("istio-proxy") == nil || p.container("svid-watchdog") != nil {
		return errors.New("the pod has a watchdog, or no proxy")
	}
	return nil
}

// try has the API server try a pod, and returns what would come of it.
func try(ctx context.Context, plane *mesh.ControlPlane, annotations map[string]string) (pod, error) {
	notes, err := json.Marshal(annotations)
	if err != nil {
		return pod{}, err
	}
	text := fmt.Sprintf(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"tried","namespace":"default","labels":{"sidecar.istio.io/inject":"true"},"annotations":%s},`+
		`"spec":{"containers":[{"name":"app","image":"app","ports":[{"containerPort":8080}]}]}}`, notes)
	out, err := plane.Kubectl(ctx, text, "create", "--dry-run=server", "-o", "json", "-f", "-")
	if err != nil {
		return pod{}, err
	}
	var p pod
	return p, json.Unmarshal([]byte(out), &p)
}

// kubectl fails the test where kubectl fails.
func kubectl(t *testing.T, plane *mesh.ControlPlane, args ...string) string {
	t.Helper()
	out, err := plane.Kubectl(t.Context(), "", args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// shell runs a command as a person at the root of the repository would, with
// kubectl for this control plane, and returns what it printed and its exit code.
func shell(t *testing.T, plane *mesh.ControlPlane, command string) (string, int) {
	t.Helper()
	return shellIn(t, plane, root, command)
}

func shellIn(t *testing.T, plane *mesh.ControlPlane, dir, command string, path ...string) (string, int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-euo", "pipefail", "-c", command)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(),
		"PATH="+strings.Join(append(path, filepath.Dir(plane.KubectlPath()), os.Getenv("PATH")), ":"),
		"KUBECONFIG="+plane.Kubeconfig(), "KUBECACHEDIR="+filepath.Join(plane.Dir(), "cache"))
	out, err := cmd.CombinedOutput()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && ctx.Err() == nil {
		return string(out), exit.ExitCode()
	}
	if err != nil {
		t.Fatalf("%s: %v\n%s", command, err, out)
	}
	return string(out), 0
}

// kubelet says of pods that they are ready, as a kubelet would.
type kubelet struct {
	plane     *mesh.ControlPlane
	namespace string

	mu   sync.Mutex
	sick map[string]bool // the value of the label app of those that never get ready
}

// startKubelet starts one for a namespace, until the test ends.
func startKubelet(t *testing.T, plane *mesh.ControlPlane, namespace string) *kubelet {
	t.Helper()
	k := &kubelet{plane: plane, namespace: namespace, sick: make(map[string]bool)}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		again := time.NewTicker(200 * time.Millisecond)
		defer again.Stop()
		for {
			k.look(ctx)
			select {
			case <-again.C:
			case <-ctx.Done():
				return
			}
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	return k
}

// setSick says whether new pods of an app get ready.
func (k *kubelet) setSick(app string, sick bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.sick[app] = sick
}

// look says it of all that can be ready. A pod may be gone in between, so that
// an error says nothing; a test that waits in vain tells.
func (k *kubelet) look(ctx context.Context) {
	pods, err := k.pods(ctx)
	if err != nil {
		return
	}
	for _, p := range pods {
		k.mu.Lock()
		sick := k.sick[p.Metadata.Labels["app"]]
		k.mu.Unlock()
		if p.Status.Phase == "Running" || sick {
			continue
		}
		status := fmt.Sprintf(`{"status":{"phase":"Running","podIP":"192.0.2.10","podIPs":[{"ip":"192.0.2.10"}],"startTime":%[1]q,"conditions":[`+
			`{"type":"Ready","status":"True","lastTransitionTime":%[1]q},{"type":"ContainersReady","status":"True","lastTransitionTime":%[1]q}]}}`,
			time.Now().UTC().Format(time.RFC3339))
		_, _ = k.plane.Kubectl(ctx, "", "patch", "pod", "-n", k.namespace, p.Metadata.Name, "--subresource=status", "--type=merge", "-p", status)
	}
}

// pods are those of the namespace.
func (k *kubelet) pods(ctx context.Context) ([]pod, error) {
	out, err := k.plane.Kubectl(ctx, "", "get", "pods", "-n", k.namespace, "-o", "json")
	if err != nil {
		return nil, err
	}
	var list struct {
		Items []pod `json:"items"`
	}
	return list.Items, json.Unmarshal([]byte(out), &list)
}
