// Package podman runs containers and pods in tests, by podman with a storage of
// its own, as it runs without systemd and without the right to raise limits.
package podman

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"svid-watchdog/internal/e2e/neighbour"
)

// Podman is a podman with a storage of its own, which goes with the test.
type Podman struct {
	t   testing.TB
	dir string
}

// New returns a podman that has neither images nor containers.
func New(t testing.TB) *Podman {
	t.Helper()
	for _, name := range []string{"podman", "buildah", "runc"} {
		neighbour.Installed(t, name, name)
	}
	sweep(t)
	dir, err := os.MkdirTemp("", fmt.Sprintf("%s%d-", prefix, os.Getpid())) // short: sockets lie in it
	if err != nil {
		t.Fatal(err)
	}
	p := &Podman{t: t, dir: dir}
	t.Cleanup(func() {
		if err := p.remove(); err != nil {
			t.Error(err)
		}
	})
	// Limits cannot be raised here, which podman would do by itself.
	p.write("containers.conf", `[containers]
default_ulimits=["nofile=1024:1024","nproc=1024:1024"]
[engine]
cgroup_manager="cgroupfs"
runtime="runc"
events_logger="file"
tmp_dir="`+filepath.Join(dir, "tmp")+`"
`)
	p.write("storage.conf", `[storage]
driver="vfs"
graphroot="`+p.root()+`"
runroot="`+filepath.Join(dir, "run")+`"
`)
	return p
}

// prefix of the directories of all storages; the number of the process that
// made one follows.
const prefix = "svid-podman-"

// sweep removes what tests have left behind that were killed.
func sweep(t testing.TB) {
	t.Helper()
	dirs, err := filepath.Glob(filepath.Join(os.TempDir(), prefix+"*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs {
		pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), prefix), "-")
		if _, err := os.Stat(filepath.Join("/proc", pid)); err == nil {
			continue // a test that runs now
		}
		if err := (&Podman{t: t, dir: dir}).remove(); err != nil {
			t.Logf("what an earlier test has left behind stays: %v", err)
		}
	}
}

// remove ends all that still runs and removes the storage.
func (p *Podman) remove() error {
	var failed error
	for _, kind := range []string{"pod", "container"} {
		if out, err := p.Run(kind, "rm", "--all", "--force", "--time", "0"); err != nil {
			failed = errors.Join(failed, fmt.Errorf("remove each %s: %w: %s", kind, err, out))
		}
	}
	// The storage is mounted upon itself.
	_ = exec.Command("umount", "--quiet", p.root()).Run() //nolint:gosec,noctx // it returns at once; it may not be mounted
	return errors.Join(failed, p.clear())
}

// clear removes the storage. What cleans up after a container may still be at
// it when podman returns.
func (p *Podman) clear() error {
	deadline := time.NewTimer(30 * time.Second)
	defer deadline.Stop()
	again := time.NewTicker(100 * time.Millisecond)
	defer again.Stop()
	for {
		err := os.RemoveAll(p.dir)
		if err == nil {
			return nil
		}
		select {
		case <-again.C:
		case <-deadline.C:
			return err
		}
	}
}

func (p *Podman) root() string { return filepath.Join(p.dir, "root") }

func (p *Podman) write(name, text string) {
	p.t.Helper()
	if err := os.WriteFile(filepath.Join(p.dir, name), []byte(text), 0o600); err != nil {
		p.t.Fatal(err)
	}
}

// Env makes podman and buildah, whoever starts them, use the storage.
func (p *Podman) Env() []string {
	return append(os.Environ(),
		"CONTAINERS_CONF="+filepath.Join(p.dir, "containers.conf"),
		"CONTAINERS_STORAGE_CONF="+filepath.Join(p.dir, "storage.conf"))
}

// Run runs podman and returns what it printed on both streams.
func (p *Podman) Run(args ...string) (string, error) {
	command := exec.Command("podman", args...) //nolint:gosec,noctx // containers are ended after the test's context
	// Not where a directory may have the name of an image.
	command.Dir, command.Env = p.dir, p.Env()
	out, err := command.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// Must is Run, and fails the test where podman fails.
func (p *Podman) Must(args ...string) string {
	p.t.Helper()
	out, err := p.Run(args...)
	if err != nil {
		p.t.Fatalf("podman %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// Image builds an image from a directory with a Dockerfile.
func (p *Podman) Image(name, dir string) {
	p.t.Helper()
	command := exec.CommandContext(p.t.Context(), "buildah", "build", "--isolation", "chroot", "--tag", name, dir) //nolint:gosec // a test's own image
	command.Env = p.Env()
	if out, err := command.CombinedOutput(); err != nil {
		p.t.Fatalf("build the image %s: %v\n%s", name, err, out)
	}
}
