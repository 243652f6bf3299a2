package meshtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"svid-watchdog/internal/e2e/neighbour"
	"svid-watchdog/internal/mesh"
)

// root is that of the repository.
var root = filepath.Join("..", "..", "..")

var shared struct {
	once  sync.Once
	plane *mesh.ControlPlane
	err   error
}

func TestMain(m *testing.M) {
	code := m.Run()
	if shared.plane != nil {
		if err := shared.plane.Close(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// controlPlane is one for all tests: they use namespaces of their own.
func controlPlane(t *testing.T) *mesh.ControlPlane {
	t.Helper()
	cfg := mesh.Config{Neighbours: filepath.Join(root, ".neighbours"), Istio: true, Operators: []string{operatorFile}}
	if err := mesh.Missing(cfg); err != nil {
		neighbour.Lacking(t, err.Error())
	}
	shared.once.Do(func() {
		// Not the test's context: it outlives the first test.
		shared.plane, shared.err = startForComparison(context.Background(), cfg)
	})
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.plane
}

// operatorFile is what a platform engineer installs.
var operatorFile = filepath.Join(root, "deploy", "istio", "istio-config.yaml")

// startForComparison starts the control plane with the templates of deploy/,
// and beside them those that such a mesh may have had before: a full copy of
// Istio's template, without the directory of credentials, and one that mounts
// the socket.
func startForComparison(ctx context.Context, cfg mesh.Config) (*mesh.ControlPlane, error) {
	plane, err := mesh.Start(ctx, cfg)
	if err != nil {
		return nil, err
	}
	file, err := withOlderTemplates(ctx, plane)
	if err == nil {
		err = plane.Configure(ctx, append(cfg.Operators, file)...)
	}
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
		defer cancel()
		err = mesh.Await(ctx, "the older templates", func(ctx context.Context) error {
			_, err := plane.Kubectl(ctx, barePod("default", map[string]string{"inject.istio.io/templates": "older,spire"}), "create", "--dry-run=server", "-f", "-")
			if err != nil && strings.Contains(err.Error(), "not found") {
				return err
			}
			return nil // also when the pod is refused for what is in it
		})
	}
	if err != nil {
		plane.Close()
		return nil, err
	}
	return plane, nil
}

func withOlderTemplates(ctx context.Context, plane *mesh.ControlPlane) (string, error) {
	stock, err := plane.StockTemplate(ctx)
	if err != nil {
		return "", err
	}
	older := strings.NewReplacer(
		"    - name: workload-certs\n      mountPath: /var/run/secrets/workload-spiffe-credentials\n", "",
		"  - emptyDir:\n    name: workload-certs\n", "",
	).Replace(stock)
	if strings.Contains(older, "workload-certs") {
		return "", errors.New("Istio's template mounts workload-certs in another way than this test knows")
	}
	// The same volume, said in the way in which a merge keeps it.
	explicit := strings.Replace(stock, "  - emptyDir:\n    name: workload-socket\n", "  - emptyDir: {}\n    name: workload-socket\n", 1)
	if explicit == stock {
		return "", errors.New("Istio's template has the volume workload-socket in another way than this test knows")
	}
	spire := `spec:
  containers:
  - name: istio-proxy
    env:
    - {name: CA_ADDR, value: "unix:///run/secrets/workload-spiffe-uds/socket"}
    - {name: PILOT_CERT_PROVIDER, value: workloadapi}
    volumeMounts:
    - {name: workload-socket, mountPath: /run/secrets/workload-spiffe-uds, readOnly: true}
  volumes:
  - name: workload-socket
    csi: {driver: csi.spiffe.io, readOnly: true}
`
	file := filepath.Join(plane.Dir(), "older-templates.yaml")
	text := "apiVersion: install.istio.io/v1alpha1\nkind: IstioOperator\nspec:\n  values:\n    sidecarInjectorWebhook:\n      templates:\n" +
		"        older: |\n" + indent(older, 10) + "        explicit: |\n" + indent(explicit, 10) + "        spire: |\n" + indent(spire, 10)
	return file, os.WriteFile(file, []byte(text), 0o600)
}

func indent(text string, by int) string {
	var moved strings.Builder
	for line := range strings.Lines(text) {
		moved.WriteString(strings.Repeat(" ", by) + line)
	}
	return moved.String()
}

// barePod is a pod that asks for injection.
func barePod(namespace string, annotations map[string]string) string {
	return fmt.Sprintf(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"bare","namespace":%q,"labels":{"sidecar.istio.io/inject":"true"},"annotations":%s},`+
		`"spec":{"containers":[{"name":"app","image":"app"}]}}`, namespace, asJSON(annotations))
}
