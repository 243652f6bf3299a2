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
	"svid-watchdog/internal/rotation"
)

// containers is podman with a storage of its own, as it runs without systemd
// and without the right to raise limits.
type containers struct {
	t    *testing.T
	base []string
}

func newContainers(t *testing.T) *containers {
	t.Helper()
	for _, name := range []string{"podman", "buildah", "runc"} {
		if _, err := exec.LookPath(name); err != nil {
			lacking(t, "no "+name+" here")
		}
	}
	dir, err := os.MkdirTemp("", "svid-e2e-containers-")
	if err != nil {
		t.Fatal(err)
	}
	// What cleans up after a container is still at it when podman returns.
	t.Cleanup(func() {
		until(t, 30*time.Second, "the containers' storage to be removed", func() bool { return os.RemoveAll(dir) == nil })
	})
	return &containers{t, []string{"--root", filepath.Join(dir, "root"), "--runroot", filepath.Join(dir, "run"), "--storage-driver", "vfs"}}
}

func (c *containers) podman(args ...string) (string, error) {
	all := append(append([]string{}, c.base...), "--cgroup-manager", "cgroupfs", "--runtime", "runc")
	command := exec.Command("podman", append(all, args...)...)
	command.Dir = os.TempDir()
	out, err := command.CombinedOutput()
	return string(out), err
}

// image builds an image from a directory with a Dockerfile.
func (c *containers) image(name, dir string) {
	c.t.Helper()
	args := append(append([]string{}, c.base...), "build", "--isolation", "chroot", "--tag", name, dir)
	if out, err := exec.Command("buildah", args...).CombinedOutput(); err != nil {
		c.t.Fatalf("build the image %s: %v\n%s", name, err, out)
	}
}

// limits are what a container may be given where limits cannot be raised.
var limits = []string{"--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"}

// TestDebugContainer: a container that shares the processes and the network of
// another, as `kubectl debug --target` makes one, sees the files and sockets of
// that other by --root, also where they lie behind an absolute symbolic link,
// as /var/run is one in Istio's image. Without it, it sees its own.
func TestDebugContainer(t *testing.T) {
	c := newContainers(t)
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
	c.image("localhost/pod", dir)

	run := append([]string{"run", "--detach", "--name", "proxy", "--network", "none", "--env", "TMPDIR=/var/run/pod"}, limits...)
	if out, err := c.podman(append(run, "localhost/pod", "/lab", "--watchdog=false", "--ttl=1h")...); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Cleanup(func() {
		if out, err := c.podman("rm", "--force", "--time", "2", "proxy"); err != nil {
			t.Logf("%v\n%s", err, out)
		}
	})
	var args []string
	flags := regexp.MustCompile(`--(?:credentials\.dir|workload-api\.address|envoy\.admin-address)=\S+`)
	until(t, 20*time.Second, "the pod", func() bool {
		out, err := c.podman("logs", "proxy")
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
		}, limits...)
		command = append(append(append(command, "localhost/pod", "/watchdog", "check", "--own-look", "--json"), args...), more...)
		out, err := c.podman(command...)
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
