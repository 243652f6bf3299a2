package meshtest

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"svid-watchdog/internal/mesh"
)

// TestOlderAnnotations shows what a mesh had before: the annotations that
// deploy/istio/README.md compares ours with, and the one that is safe before
// the templates are changed and after.
func TestOlderAnnotations(t *testing.T) {
	plane := controlPlane(t)
	for _, tt := range []struct {
		name, templates string
		certs           string // the mount of the credential files in istio-proxy
	}{
		// Works, and arms Istio's agent: whatever is written there counts.
		{"sidecar-spire", "sidecar,spire", "workload-certs rw"},
		// The full copy of Istio's template is rid of the directory.
		{"older", "older", ""},
		{"older-spire", "older,spire", ""},
		// With sidecar in front the full copy is laid over what it is a copy of.
		{"sidecar-older", "sidecar,older", "workload-certs rw"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := deploy(t, plane, tt.name, true, map[string]string{templates: tt.templates, nativeSidecar: "false"})
			keep(t, plane, tt.name)
			proxy, _ := p.container(t, "istio-proxy")
			if got := mounts(proxy)[certsDir]; got != tt.certs {
				t.Errorf("istio-proxy mounts %q at %s, want %q", got, certsDir, tt.certs)
			}
			if find(p.Spec.Containers, "svid-watchdog") != nil || find(p.Spec.InitContainers, "svid-watchdog") != nil {
				t.Error("there is a watchdog, which nobody asked for")
			}
		})
	}
}

// TestRefused has the API server refuse the pods that the overlay was not made
// for, with a sentence that says what to do.
func TestRefused(t *testing.T) {
	plane := controlPlane(t)
	for _, list := range []string{"teleport-sidecar", "teleport-sidecar,spire"} {
		_, err := plane.Kubectl(t.Context(), barePod("default", map[string]string{templates: list}), "create", "--dry-run=server", "-f", "-")
		if err == nil || !strings.Contains(err.Error(), "must say sidecar,teleport-sidecar") {
			t.Errorf("with %q: %v", list, err)
		}
	}
	// A template that knows istio-proxy as a container only, as `spire` commonly
	// is written, cannot be laid over a native sidecar.
	for _, list := range []string{"sidecar,spire", "sidecar,teleport-sidecar,spire"} {
		_, err := plane.Kubectl(t.Context(), barePod("default", map[string]string{templates: list}), "create", "--dry-run=server", "-f", "-")
		if err == nil || !strings.Contains(err.Error(), `Duplicate value: "istio-proxy"`) {
			t.Errorf("with %q and native sidecars: %v", list, err)
		}
	}
}

// TestOwnExcludedPorts shows why a pod's own list of excluded ports must have the
// watchdog's: it takes the place of the mesh's.
func TestOwnExcludedPorts(t *testing.T) {
	plane := controlPlane(t)
	for ports, want := range map[string]bool{"9100": false, "9100,9816": true} {
		out, err := plane.Kubectl(t.Context(), barePod("default", map[string]string{
			templates: "sidecar,teleport-sidecar", "traffic.sidecar.istio.io/excludeInboundPorts": ports,
		}), "create", "--dry-run=server", "-o", "json", "-f", "-")
		if err != nil {
			t.Fatal(err)
		}
		var p pod
		if err := json.Unmarshal([]byte(out), &p); err != nil {
			t.Fatal(err)
		}
		if got := excludes(find(p.Spec.InitContainers, "istio-init"), "9816"); got != want {
			t.Errorf("with %s the port of the watchdog is excluded: %t, want %t", ports, got, want)
		}
	}
}

// TestDefaultTemplates has the watchdog in all injected pods by the settings of
// deploy/, and in none without them.
func TestDefaultTemplates(t *testing.T) {
	plane := controlPlane(t)
	older := filepath.Join(plane.Dir(), "older-templates.yaml")
	if err := mesh.Await(within(t), "the pod without annotation to be as ever", unannotated(plane, "istio-proxy", "svid-watchdog")); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(operatorFile)
	if err != nil {
		t.Fatal(err)
	}
	shown := "# defaultTemplates: [sidecar, teleport-sidecar]"
	if !strings.Contains(string(text), shown) {
		t.Fatalf("%s does not show the setting %q", operatorFile, shown)
	}
	t.Cleanup(func() {
		if err := plane.Configure(context.Background(), operatorFile, older); err != nil {
			t.Error(err)
		}
	})
	for _, tt := range []struct {
		name     string
		operator string // after istio-config.yaml
		want     expectation
	}{
		{"as-shown", strings.Replace(string(text), shown, shown[2:], 1), expectation{native: true}},
		{"guarded", overlay(t, "guarded"), expectation{native: true}},
		{"strict", overlay(t, "strict"), expectation{native: true, strict: true}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			// From the beginning, so that what it waits for was not there before.
			if err := plane.Configure(t.Context(), operatorFile, older); err != nil {
				t.Fatal(err)
			}
			if err := mesh.Await(within(t), "a pod without the watchdog", unannotated(plane, "istio-proxy", "svid-watchdog")); err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(t.TempDir(), "default.yaml")
			if err := os.WriteFile(file, []byte(tt.operator), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := plane.Configure(t.Context(), operatorFile, file, older); err != nil {
				t.Fatal(err)
			}
			if err := mesh.Await(within(t), "the watchdog in a pod without annotation", unannotated(plane, "svid-watchdog", "")); err != nil {
				t.Fatal(err)
			}
			namespace := "default-" + tt.name
			p := deploy(t, plane, namespace, true, nil)
			keep(t, plane, namespace)
			judge(t, p, tt.want)
		})
	}
}

// within bounds a wait for istiod to have read its configuration.
func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// overlay is the setting of a kustomization, as an IstioOperator.
func overlay(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "deploy", "kustomize", "overlays", name, "defaults.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	return "apiVersion: install.istio.io/v1alpha1\nkind: IstioOperator\nspec:\n  values:\n" + indent(string(text), 4)
}

// unannotated tells whether a pod that chooses no template, and is only tried,
// comes back with one container and without another.
func unannotated(plane *mesh.ControlPlane, with, without string) func(context.Context) error {
	return func(ctx context.Context) error {
		out, err := plane.Kubectl(ctx, barePod("default", nil), "create", "--dry-run=server", "-o", "json", "-f", "-")
		if err != nil {
			return err
		}
		var p pod
		if err := json.Unmarshal([]byte(out), &p); err != nil {
			return fmt.Errorf("read the pod: %w", err)
		}
		all := strings.Fields(names(p.Spec.InitContainers) + " " + names(p.Spec.Containers))
		if !slices.Contains(all, with) || slices.Contains(all, without) {
			return fmt.Errorf("the containers are %q", all)
		}
		return nil
	}
}
