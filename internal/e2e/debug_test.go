package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"svid-watchdog/internal/check"
	"svid-watchdog/internal/e2e/podman"
	"svid-watchdog/internal/rotation"
)

// TestDebugContainer: a container that shares the processes and the network of
// another, as `kubectl debug --target` makes one, sees the files and sockets of
// that other by --root, also where they lie behind an absolute symbolic link,
// as /var/run is one in Istio's image. Without it, it sees its own.
func TestDebugContainer(t *testing.T) {
	c := podman.New(t)
	dir := t.TempDir()
	build := exec.Command("go", "build", "-o", filepath.Join(dir, "lab"), "svid-watchdog/cmd/lab")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the lab: %v\n%s", err, out)
	}
	watchdog, err := os.ReadFile(binary(t))
	if err != nil {
		t.Fatal(err)
	}
	for name, write := range map[string]func(string) error{
		"watchdog": func(path string) error { return os.WriteFile(path, watchdog, 0o755) }, //nolint:gosec // a program
		"run/pod":  func(path string) error { return os.MkdirAll(path, 0o755) },
		"var/run":  func(path string) error { return os.Symlink("/run", path) },
		"Dockerfile": func(path string) error {
			return os.WriteFile(path, []byte("FROM scratch\nCOPY lab watchdog /\nCOPY run /run\nCOPY var /var\n"), 0o600)
		},
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := write(path); err != nil {
			t.Fatal(err)
		}
	}
	c.Image("localhost/pod", dir)

	c.Must("run", "--detach", "--name", "proxy", "--network", "none", "--env", "TMPDIR=/var/run/pod",
		"localhost/pod", "/lab", "--watchdog=false", "--ttl=1h")
	t.Cleanup(func() {
		if err := c.Remove("container", "proxy"); err != nil {
			t.Error(err)
		}
	})
	var args []string
	flags := regexp.MustCompile(`--(?:credentials\.dir|workload-api\.address|envoy\.admin-address)=\S+`)
	until(t, 20*time.Second, "the pod", func() bool {
		out, err := c.Run("logs", "proxy")
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		args = flags.FindAllString(out, -1)
		return len(args) >= 3
	})
	look := func(more ...string) check.Report {
		t.Helper()
		command := append([]string{
			"run", "--rm", "--pid", "container:proxy", "--network", "container:proxy", "--cap-add", "SYS_PTRACE",
			"localhost/pod", "/watchdog", "check", "--own-look", "--json",
		}, append(args, more...)...)
		out, err := c.Run(command...)
		var report check.Report
		start := strings.Index(out, "{")
		if start < 0 || json.NewDecoder(strings.NewReader(out[start:])).Decode(&report) != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return report
	}
	r := look("--root", "/proc/1/root")
	if r.ExitCode != check.ExitHealthy || r.Credentials.Case != check.CaseB || r.Credentials.Outcome != check.OutcomeA ||
		r.Verdict.Stage(rotation.Issued).Certificate == nil || r.Verdict.Stage(rotation.Loaded).Certificate == nil {
		t.Errorf("with --root: %+v", r)
	}
	if r = look(); r.Credentials.Case != check.CaseA {
		t.Errorf("without --root: Case %s, %s", r.Credentials.Case, fmt.Sprint(args))
	}
}
