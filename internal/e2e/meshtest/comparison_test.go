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
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
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
