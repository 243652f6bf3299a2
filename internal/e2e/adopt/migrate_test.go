package adopt

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"svid-watchdog/internal/e2e/neighbour"
	"svid-watchdog/internal/mesh"
)

const (
	templatesBefore = "teleport-sidecar,spire"
	templatesAfter  = "sidecar,teleport-sidecar"
)

// TestScriptIsClean: a script that people read before they run it.
func TestScriptIsClean(t *testing.T) {
	cmd := exec.Command(neighbour.Installed(t, "shellcheck", "shellcheck"), "deploy/migrate")
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// state is what the command may change of a deployment, and how often anything
// of its pods was changed.
type state struct {
	Templates, Remembered string
	Generation            int
}

func states(t *testing.T, plane *mesh.ControlPlane, namespace string) map[string]state {
	t.Helper()
	var list struct {
		Items []struct {
			Metadata struct {
				Name        string            `json:"name"`
				Generation  int               `json:"generation"`
				Annotations map[string]string `json:"annotations"`
			} `json:"metadata"`
			Spec struct {
				Template struct {
					Metadata struct {
						Annotations map[string]string `json:"annotations"`
					} `json:"metadata"`
				} `json:"template"`
			} `json:"spec"`
		} `json:"items"`
	}
	if err := json.Unmarshal([]byte(kubectl(t, plane, "get", "deployments", "-n", namespace, "-o", "json")), &list); err != nil {
		t.Fatal(err)
	}
	found := make(map[string]state)
	for _, d := range list.Items {
		found[d.Metadata.Name] = state{
			Templates: d.Spec.Template.Metadata.Annotations["inject.istio.io/templates"], Remembered: d.Metadata.Annotations["svid-watchdog/templates-before"],
			Generation: d.Metadata.Generation,
		}
	}
	return found
}

// same fails the test where something was changed.
func same(t *testing.T, plane *mesh.ControlPlane, namespace string, before map[string]state) {
	t.Helper()
	if now := states(t, plane, namespace); fmt.Sprint(now) != fmt.Sprint(before) {
		t.Fatalf("something was changed:\n%v\nbefore:\n%v", now, before)
	}
}

// run runs the command, and fails the test where it ends with another exit code
// or does not say what it should.
func run(t *testing.T, plane *mesh.ControlPlane, arguments string, code int, says ...string) string {
	t.Helper()
	out, got := shell(t, plane, "deploy/migrate "+arguments)
	if got != code {
		t.Fatalf("deploy/migrate %s: exit code %d, not %d:\n%s", arguments, got, code, out)
	}
	for _, s := range says {
		if !strings.Contains(out, s) {
			t.Errorf("deploy/migrate %s does not say %q:\n%s", arguments, s, out)
		}
	}
	return out
}

// apply puts a directory of the example into the cluster, and waits until the
// shop is ready.
func apply(t *testing.T, plane *mesh.ControlPlane, directory string) {
	t.Helper()
	kubectl(t, plane, "apply", "--server-side", "-f", root+"/deploy/example/"+directory)
	kubectl(t, plane, "wait", "--for=condition=Available", "--timeout=60s", "-n", "sock-shop", "deployment", "--all")
}

// remove deletes the namespace, and waits until it is gone.
func remove(t *testing.T, plane *mesh.ControlPlane, namespace string) {
	t.Helper()
	kubectl(t, plane, "delete", "namespace", namespace, "--timeout=60s")
}

// TestMigrate moves the example from before to after, with a deployment in the
// middle that does not get ready at first, and back again.
func TestMigrate(t *testing.T) {
	plane := controlPlane(t)
	configure(t, plane, templatesBefore, unwatched, shared.older)
	// The kubelet ends with the test, the namespace before it.
	kubelet := startKubelet(t, plane, "sock-shop")
	apply(t, plane, "before")
	defer remove(t, plane, "sock-shop")
	before := states(t, plane, "sock-shop")
	if len(before) != 3 {
		t.Fatalf("the example has %d deployments", len(before))
	}

	run(t, plane, "--dry-run sock-shop", 0,
		`sock-shop/carts: "teleport-sidecar,spire" -> "sidecar,teleport-sidecar" (1 replicas)`,
		`sock-shop/front-end: "teleport-sidecar,spire" -> "sidecar,teleport-sidecar" (2 replicas)`,
		"Dry run: 3 to do, nothing was changed.")
	same(t, plane, "sock-shop", before)

	// The second of three does not get ready: the third is not touched.
	kubelet.setSick("catalogue", true)
	run(t, plane, "--timeout 5s sock-shop", 1,
		"carts is ready", "sock-shop/catalogue: it did not become ready within 5s",
		"deploy/migrate --rollback --from 'teleport-sidecar,spire' --to 'sidecar,teleport-sidecar' sock-shop catalogue")
	now := states(t, plane, "sock-shop")
	for name, want := range map[string]state{
		"carts":     {templatesAfter, templatesBefore, before["carts"].Generation + 1},
		"catalogue": {templatesAfter, templatesBefore, before["catalogue"].Generation + 1},
		"front-end": before["front-end"],
	} {
		if now[name] != want {
			t.Errorf("%s: %v, not %v", name, now[name], want)
		}
	}

	// Again, it is still not ready: the third is still not touched.
	run(t, plane, "--timeout 3s sock-shop", 1, "carts is ready", "sock-shop/catalogue: it did not become ready within 3s")
	same(t, plane, "sock-shop", now)

	// What it says is done: this one back, alone. The old pod was there all the
	// time, so that it is ready at once.
	run(t, plane, "--rollback --from 'teleport-sidecar,spire' --to 'sidecar,teleport-sidecar' sock-shop catalogue", 0, "catalogue is ready")
	if got := states(t, plane, "sock-shop")["catalogue"]; got.Templates != templatesBefore || got.Remembered != "" {
		t.Errorf("catalogue: %v after its rollback", got)
	}

	// It is mended, and the same command goes on. The mesh has the older
	// templates, so that there is a proxy and no watchdog, and it says so.
	kubelet.setSick("catalogue", false)
	run(t, plane, "sock-shop", 0, "carts: asks for \"sidecar,teleport-sidecar\" already", "catalogue is ready", "front-end is ready",
		"4 pods have no svid-watchdog", "Done: 3 deployments are ready.")
	now = states(t, plane, "sock-shop")
	for name, got := range now {
		if got.Templates != templatesAfter || got.Remembered != templatesBefore {
			t.Errorf("%s: %v", name, got)
		}
	}

	// The templates of deploy/istio, and one restart: now each pod is watched.
	configure(t, plane, templatesAfter, watched, ours)
	kubectl(t, plane, "rollout", "restart", "deployment", "-n", "sock-shop")
	now = states(t, plane, "sock-shop")
	out := run(t, plane, "sock-shop", 0, "Done: 3 deployments are ready.")
	if strings.Contains(out, "svid-watchdog:") {
		t.Errorf("a pod is not watched:\n%s", out)
	}
	same(t, plane, "sock-shop", now)
	pods, err := kubelet.pods(t.Context())
	if err != nil || len(pods) != 4 {
		t.Fatalf("%d pods, %v", len(pods), err)
	}
	for _, p := range pods {
		if err := watched(p); err != nil {
			t.Errorf("%s: %v", p.Metadata.Name, err)
		}
	}
	// It is what the example shows as the state after, but for the restart above.
	if out, code := shell(t, plane, "kubectl diff --server-side -f deploy/example/after"); code > 1 || regexp.MustCompile(`(?m)^[-+]\s+.*templates`).MatchString(out) {
		t.Errorf("not what deploy/example/after says:\n%s", out)
	}

	// Back again, with the settings of then, since the older annotation asks for
	// templates that only they have; and twice, since that is safe too.
	configure(t, plane, templatesBefore, unwatched, shared.older)
	run(t, plane, "--rollback --dry-run sock-shop", 0, "Dry run: 3 to do, nothing was changed.")
	same(t, plane, "sock-shop", now)
	run(t, plane, "--rollback sock-shop", 0, "Done: 3 deployments are ready.")
	for name, got := range states(t, plane, "sock-shop") {
		if got.Templates != templatesBefore || got.Remembered != "" {
			t.Errorf("%s: %v after the rollback", name, got)
		}
	}
	now = states(t, plane, "sock-shop")
	run(t, plane, "--rollback sock-shop", 0, "Nothing to do.")
	same(t, plane, "sock-shop", now)
}

// TestRefuse: what is not understood is not touched, nor anything beside it.
func TestRefuse(t *testing.T) {
	plane := controlPlane(t)
	configure(t, plane, templatesBefore, unwatched, shared.older)
	kubelet := startKubelet(t, plane, "sock-shop")
	apply(t, plane, "before")
	defer remove(t, plane, "sock-shop")

	annotate := func(name, value string) {
		t.Helper()
		kubectl(t, plane, "patch", "deployment", "-n", "sock-shop", name, "--type=merge", "-p",
			fmt.Sprintf(`{"spec":{"template":{"metadata":{"annotations":{"inject.istio.io/templates":%s}}}}}`, value))
		kubectl(t, plane, "rollout", "status", "-n", "sock-shop", "deployment/"+name, "--timeout=60s")
	}
	refused := func(arguments string, says ...string) {
		t.Helper()
		before := states(t, plane, "sock-shop")
		run(t, plane, arguments, 2, says...)
		same(t, plane, "sock-shop", before)
	}

	run(t, plane, "", 64, "which namespace?")
	run(t, plane, "--form x sock-shop", 64, "there is no flag --form")
	run(t, plane, `--to '"}' sock-shop`, 64, "is no list of templates")
	refused("no-such-shop", "there are no deployments in the namespace no-such-shop")
	refused("sock-shop cart", "there is no deployment cart in the namespace sock-shop")

	annotate("catalogue", `"sidecar"`)
	refused("sock-shop", `sock-shop/catalogue: it asks for "sidecar", neither "teleport-sidecar,spire" nor "sidecar,teleport-sidecar"`, "nothing was changed")
	annotate("catalogue", `"teleport-sidecar,spire"`)

	// Named, it is refused; not named, it is none of ours and left alone.
	annotate("catalogue", `null`)
	refused("sock-shop catalogue", "it has no annotation inject.istio.io/templates")
	run(t, plane, "--dry-run sock-shop", 0, "sock-shop/catalogue: no annotation inject.istio.io/templates: left alone", "2 to do")
	annotate("catalogue", `"teleport-sidecar,spire"`)

	kubectl(t, plane, "rollout", "pause", "-n", "sock-shop", "deployment/carts")
	refused("sock-shop", "sock-shop/carts: its rollout is paused")
	kubectl(t, plane, "rollout", "resume", "-n", "sock-shop", "deployment/carts")

	// What is not ready already is not made worse.
	kubelet.setSick("front-end", true)
	kubectl(t, plane, "rollout", "restart", "-n", "sock-shop", "deployment/front-end")
	refused("sock-shop", "sock-shop/front-end: it is not ready as it is")
	kubelet.setSick("front-end", false)
	kubectl(t, plane, "rollout", "status", "-n", "sock-shop", "deployment/front-end", "--timeout=60s")

	// A template that there is not: no pod can be made, and the old one stays.
	run(t, plane, "--timeout 5s --to sidecar,no-such-template sock-shop carts", 1, "sock-shop/carts: it did not become ready within 5s")
	run(t, plane, "--rollback --to sidecar,no-such-template sock-shop carts", 0, "carts is ready")

	// One that somebody changed by hand after us is not given back.
	run(t, plane, "sock-shop carts", 0, "carts is ready")
	annotate("carts", `"sidecar"`)
	refused("--rollback sock-shop", `sock-shop/carts: it asks for "sidecar", neither what it was before ("teleport-sidecar,spire") nor "sidecar,teleport-sidecar"`)
}

// TestWithoutProxy: an overlay alone gives a pod without proxy, which gets ready
// like any other; the command does not go on with it.
func TestWithoutProxy(t *testing.T) {
	plane := controlPlane(t)
	configure(t, plane, templatesBefore, unwatched, shared.older)
	startKubelet(t, plane, "sock-shop")
	apply(t, plane, "before")
	defer remove(t, plane, "sock-shop")
	run(t, plane, "--to spire sock-shop", 1, "sock-shop/carts: ready, but a pod came without istio-proxy", "the deployments after it are untouched")
	if got := states(t, plane, "sock-shop")["catalogue"].Templates; got != templatesBefore {
		t.Errorf("catalogue asks for %q", got)
	}
}

// TestChangedInBetween: somebody changes a deployment just before the command
// does. What they wrote stays.
func TestChangedInBetween(t *testing.T) {
	plane := controlPlane(t)
	configure(t, plane, templatesBefore, unwatched, shared.older)
	startKubelet(t, plane, "sock-shop")
	apply(t, plane, "before")
	defer remove(t, plane, "sock-shop")
	// Somebody else's hand, in front of the command's first patch.
	path, err := filepath.Abs(plane.KubectlPath())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	script := fmt.Sprintf(`#!/bin/sh
case " $* " in
*" patch "*) %[1]s -n sock-shop patch deployment carts --type=merge -p '{"spec":{"template":{"metadata":{"annotations":{"inject.istio.io/templates":"sidecar"}}}}}' >/dev/null ;;
esac
exec %[1]s "$@"
`, path)
	if err := os.WriteFile(filepath.Join(dir, "kubectl"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	out, code := shellIn(t, plane, root, "deploy/migrate sock-shop", dir)
	if code != 1 || !strings.Contains(out, "sock-shop/carts: the API server did not take the change, see above") {
		t.Errorf("exit code %d:\n%s", code, out)
	}
	now := states(t, plane, "sock-shop")
	if got := now["carts"]; got.Templates != "sidecar" || got.Remembered != "" {
		t.Errorf("carts: %v", got)
	}
	if got := now["catalogue"].Templates; got != templatesBefore {
		t.Errorf("catalogue asks for %q", got)
	}
}
