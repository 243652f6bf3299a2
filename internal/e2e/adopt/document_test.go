package adopt

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"svid-watchdog/internal/e2e/fenced"
	"svid-watchdog/internal/mesh"
)

// TestDropTheCronJob follows docs/drop-the-cronjob.md on a real API server, with
// the commands as they stand there. Those that ask Prometheus or run in a pod are
// for the tests in internal/e2e/grafana.
func TestDropTheCronJob(t *testing.T) {
	plane := controlPlane(t)
	blocks := fenced.Read(t, "docs/drop-the-cronjob.md")
	// Where a person is, at the root of the repository, with room for a file.
	dir := t.TempDir()
	deploy, err := filepath.Abs(filepath.Join(root, "deploy"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(deploy, filepath.Join(dir, "deploy")); err != nil {
		t.Fatal(err)
	}
	// do runs the blocks of a section, and returns what each printed.
	do := func(heading string, before map[string]func()) []string {
		t.Helper()
		var printed []string
		for _, b := range blocks {
			if b.Heading != heading || b.Kind != "sh" {
				continue
			}
			for part, act := range before {
				if strings.Contains(b.Text, part) {
					act()
					delete(before, part)
				}
			}
			out, code := shellIn(t, plane, dir, b.Text)
			if code != 0 {
				t.Fatalf("%s: exit code %d:\n%s\n%s", heading, code, b.Text, out)
			}
			printed = append(printed, out)
		}
		if len(printed) == 0 || len(before) > 0 {
			t.Fatalf("%s: %d commands were run, and these were not there: %v", heading, len(printed), before)
		}
		return printed
	}
	contains := func(text, part string) {
		t.Helper()
		if !strings.Contains(text, part) {
			t.Errorf("%q is not in\n%s", part, text)
		}
	}

	configure(t, plane, templatesBefore, unwatched, shared.older)
	startKubelet(t, plane, "sock-shop")
	apply(t, plane, "before")
	defer remove(t, plane, "sock-shop")

	observe := do("1. Observe beside it", map[string]func(){
		"rollout restart": func() { configure(t, plane, templatesAfter, watched, ours) },
	})
	contains(observe[0], "Done: 3 deployments are ready.")
	// The last of them lists the pods: a watchdog in each of the four.
	if list := observe[len(observe)-1]; strings.Count(list, "svid-watchdog") != 4 || strings.Count(list, "\n") != 5 {
		t.Errorf("the list of the pods:\n%s", list)
	}

	suspend := do("2. Suspend it in one namespace", nil)
	contains(suspend[0], "true")
	// What was run by hand is a job of the CronJob, though that is suspended.
	contains(kubectl(t, plane, "get", "jobs", "-n", "sock-shop", "-o", "jsonpath={.items[*].metadata.ownerReferences[*].name}"), "cert-refresh")

	do("4. Delete it", nil)
	left := func() string {
		return kubectl(t, plane, "get", "cronjobs,roles,rolebindings", "-n", "sock-shop", "-o", "name")
	}
	if got := left(); got != "" {
		t.Errorf("left behind: %s", got)
	}
	for name, s := range states(t, plane, "sock-shop") {
		if s.Remembered != "" || s.Templates != templatesAfter {
			t.Errorf("%s: %v", name, s)
		}
	}

	// Back, from where it is only suspended and was not forgotten.
	remove(t, plane, "sock-shop")
	configure(t, plane, templatesBefore, unwatched, shared.older)
	apply(t, plane, "before")
	do("1. Observe beside it", map[string]func(){
		"rollout restart": func() { configure(t, plane, templatesAfter, watched, ours) },
	})
	do("2. Suspend it in one namespace", nil)
	do("Roll back", map[string]func(){
		`"suspend":false`: func() {},
		"kubectl apply": func() {
			if got := kubectl(t, plane, "get", "cronjob", "cert-refresh", "-n", "sock-shop", "-o", "jsonpath={.spec.suspend}"); got != "false" {
				t.Errorf("suspended after the rollback: %s", got)
			}
			keepAndDelete(t, plane, dir, blocks)
			if got := left(); got != "" {
				t.Errorf("left behind: %s", got)
			}
		},
		"--rollback": func() { configure(t, plane, templatesBefore, unwatched, shared.older) },
	})
	if got, want := strings.Fields(left()), []string{
		"cronjob.batch/cert-refresh", "role.rbac.authorization.k8s.io/cert-refresh", "rolebinding.rbac.authorization.k8s.io/cert-refresh",
	}; !slices.Equal(got, want) {
		t.Errorf("after the rollback there is %v, not %v", got, want)
	}
	for name, s := range states(t, plane, "sock-shop") {
		if s.Remembered != "" || s.Templates != templatesBefore {
			t.Errorf("%s: %v after the rollback", name, s)
		}
	}
}

// keepAndDelete runs the one block that keeps the CronJob and deletes it.
func keepAndDelete(t *testing.T, plane *mesh.ControlPlane, dir string, blocks []fenced.Block) {
	t.Helper()
	i := slices.IndexFunc(blocks, func(b fenced.Block) bool { return strings.Contains(b.Text, "delete cronjob/cert-refresh") })
	if i < 0 {
		t.Fatal("no command deletes the CronJob")
	}
	if out, code := shellIn(t, plane, dir, blocks[i].Text); code != 0 {
		t.Fatalf("exit code %d:\n%s\n%s", code, blocks[i].Text, out)
	}
}

// TestExample: after differs from before in nothing but the annotation, and in
// that there is no CronJob.
func TestExample(t *testing.T) {
	read := func(path string) string {
		text, err := os.ReadFile(filepath.Join(root, "deploy", "example", path))
		if err != nil {
			t.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(text), "\n") // the comment at the top
		return rest
	}
	before, after := read("before/shop.yaml"), read("after/shop.yaml")
	if n := strings.Count(before, `"`+templatesBefore+`"`); n != 3 {
		t.Errorf("%d deployments of before ask for %s", n, templatesBefore)
	}
	if strings.ReplaceAll(before, `"`+templatesBefore+`"`, `"`+templatesAfter+`"`) != after {
		t.Error("before and after differ in more than the annotation")
	}
	entries, err := os.ReadDir(filepath.Join(root, "deploy", "example", "after"))
	if err != nil || len(entries) != 1 {
		t.Errorf("after has %d files, %v", len(entries), err)
	}
}

// TestWorkaround: the CronJob of the example does, with the rights that it has
// there, what the document says of it: all deployments get new pods.
func TestWorkaround(t *testing.T) {
	plane := controlPlane(t)
	configure(t, plane, templatesBefore, unwatched, shared.older)
	kubelet := startKubelet(t, plane, "sock-shop")
	apply(t, plane, "before")
	defer remove(t, plane, "sock-shop")
	names := func() map[string]bool {
		pods, err := kubelet.pods(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		found := make(map[string]bool)
		for _, p := range pods {
			found[p.Metadata.Name] = true
		}
		return found
	}
	before := names()
	command := strings.Fields(kubectl(t, plane, "get", "cronjob", "cert-refresh", "-n", "sock-shop",
		"-o", "jsonpath={.spec.jobTemplate.spec.template.spec.containers[0].command[*]}"))
	if len(command) < 2 || command[0] != "kubectl" {
		t.Fatalf("the CronJob runs %v", command)
	}
	kubectl(t, plane, append(command[1:], "--as=system:serviceaccount:sock-shop:cert-refresh")...)
	for name := range states(t, plane, "sock-shop") {
		kubectl(t, plane, "rollout", "status", "deployment/"+name, "-n", "sock-shop", "--timeout=60s")
	}
	after := names()
	if len(before) != 4 || len(after) != 4 {
		t.Errorf("%d pods before, %d after", len(before), len(after))
	}
	for name := range after {
		if before[name] {
			t.Errorf("%s is still there", name)
		}
	}
}
