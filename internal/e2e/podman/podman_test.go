package podman

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// failsOnce is a runtime that fails the first time it is to kill a container,
// as runc was seen to do on a full machine ("container does not exist", where
// conmon cleaned up after the same container).
const failsOnce = `#!/bin/sh
case " $* " in *" kill "*)
	mkdir "$0.killed" 2>/dev/null && exit 1 ;;
esac
exec runc "$@"
`

// TestRemoveAgain: what podman fails to end is ended and removed all the same.
func TestRemoveAgain(t *testing.T) {
	for _, kind := range []string{"container", "pod"} {
		t.Run(kind, func(t *testing.T) {
			p := New(t)
			dir := t.TempDir()
			build := exec.CommandContext(t.Context(), "go", "build", "-o", filepath.Join(dir, "stays"), "./testdata/stays") //nolint:gosec // a test's own program
			build.Env = append(os.Environ(), "CGO_ENABLED=0")
			if out, err := build.CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			runtime := filepath.Join(dir, "runtime")
			for name, text := range map[string]string{"Dockerfile": "FROM scratch\nCOPY stays /\n", "runtime": failsOnce} {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil { //nolint:gosec // a program
					t.Fatal(err)
				}
			}
			p.Image("localhost/stays", dir)
			args := []string{"--runtime", runtime, "run", "--detach", "--network", "none", "--name", "container"}
			if kind == "pod" {
				args = append(args, "--pod", "new:pod")
			}
			p.Must(append(args, "localhost/stays", "/stays")...)

			if err := p.Remove(kind, kind); err != nil {
				t.Error(err)
			}
			if _, err := os.Stat(runtime + ".killed"); err != nil {
				t.Error("podman did not come to kill it")
			}
			if left := p.Must("ps", "--all", "--quiet"); left != "" {
				t.Errorf("there is still %s", left)
			}
		})
	}
}
