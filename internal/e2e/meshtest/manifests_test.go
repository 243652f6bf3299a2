package meshtest

import (
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
)

// TestMonitoringManifests has the API server judge every PodMonitor and
// PrometheusRule below deploy/ by the definitions of the Prometheus operator.
func TestMonitoringManifests(t *testing.T) {
	plane := controlPlane(t)
	kinds := map[string]int{"PodMonitor": 0, "PrometheusRule": 0}
	kind := regexp.MustCompile(`(?m)^kind: (PodMonitor|PrometheusRule)\s*$`)
	deployDir := filepath.Join(root, "deploy")
	if err := filepath.WalkDir(deployDir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || filepath.Ext(path) != ".yaml" {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		match := kind.FindStringSubmatch(string(text))
		if match == nil {
			return nil
		}
		kinds[match[1]]++
		if _, err := plane.Kubectl(t.Context(), "", "apply", "--server-side", "--validate=strict", "--dry-run=server", "-f", path); err != nil {
			t.Errorf("%s is refused: %v", path, err)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for kind, count := range kinds {
		if count == 0 {
			t.Errorf("there is no %s below %s", kind, deployDir)
		}
	}

	// What is refused shows that the definitions do judge.
	for name, broken := range map[string]string{
		"an unknown field":        strings.Replace(podMonitor(t), "interval:", "intervall:", 1),
		"an interval of no unit":  strings.Replace(podMonitor(t), "interval: 1m", `interval: "60"`, 1),
		"an unknown relabelling":  strings.Replace(podMonitor(t), "action: labeldrop", "action: labelpop", 1),
		"an operator unheard of":  "apiVersion: monitoring.coreos.com/v9\nkind: PodMonitor\nmetadata: {name: x}\nspec: {}\n",
		"a rule without a reason": "apiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\nmetadata: {name: x}\nspec: {groups: [{name: x, rules: [{alert: X}]}]}\n",
	} {
		if _, err := plane.Kubectl(t.Context(), broken, "apply", "--server-side", "--validate=strict", "--dry-run=server", "-f", "-"); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}

func podMonitor(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "deploy", "prometheus", "podmonitor.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestKustomize builds the base and each overlay with the real kustomize, and
// has the API server apply what comes of it, twice.
func TestKustomize(t *testing.T) {
	plane := controlPlane(t)
	var dirs []string
	deployDir := filepath.Join(root, "deploy")
	if err := filepath.WalkDir(deployDir, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.Name() == "kustomization.yaml" {
			dirs = append(dirs, filepath.Dir(path))
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if len(dirs) < 3 {
		t.Fatalf("there are %d kustomizations below %s: %v", len(dirs), deployDir, dirs)
	}
	if err := plane.CreateNamespace(t.Context(), "monitoring", false); err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs {
		name, err := filepath.Rel(deployDir, dir)
		if err != nil {
			t.Fatal(err)
		}
		t.Run(name, func(t *testing.T) {
			text, err := plane.Kubectl(t.Context(), "", "kustomize", dir)
			if err != nil {
				t.Fatal(err)
			}
			if strings.TrimSpace(text) == "" {
				t.Fatal("it makes nothing")
			}
			args := []string{"apply", "--server-side", "--validate=strict", "-f", "-"}
			if !regexp.MustCompile(`(?m)^  namespace: `).MatchString(text) {
				args = append(args, "--namespace", "monitoring")
			}
			for range 2 {
				if out, err := plane.Kubectl(t.Context(), text, args...); err != nil {
					t.Fatalf("%v\n%s", err, out)
				}
			}
		})
	}
}

// TestTheScrapesLabelAlike: the rules rely on the same labels, whoever scrapes.
func TestTheScrapesLabelAlike(t *testing.T) {
	plain, err := os.ReadFile(filepath.Join(root, "deploy", "prometheus", "scrape-config.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	monitor := podMonitor(t)
	targets := func(text string) map[string]bool {
		all := map[string]bool{}
		for _, match := range regexp.MustCompile(`target_?[lL]abel: (\w+)`).FindAllStringSubmatch(text, -1) {
			all[match[1]] = true
		}
		return all
	}
	want := targets(string(plain))
	want["job"] = true // the plain one has it by its name
	// These the operator sets by itself.
	delete(want, "namespace")
	delete(want, "pod")
	if got := targets(monitor); !reflect.DeepEqual(got, want) {
		t.Errorf("podmonitor.yaml sets %v, scrape-config.yaml %v", got, want)
	}
	for _, rule := range regexp.MustCompile(`regex: \S*[;(]\S*`).FindAllString(monitor, -1) {
		if !strings.Contains(string(plain), rule) {
			t.Errorf("podmonitor.yaml has %q, which scrape-config.yaml has not", rule)
		}
	}
}
