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

// Remove ends and removes a container or a pod; it may be gone already.
func (p *Podman) Remove(kind, name string) error {
	return p.discard(kind, "--ignore", name)
}

// remove ends all that still runs and removes the storage.
func (p *Podman) remove() error {
	failed := errors.Join(p.discard("pod", "--all"), p.discard("container", "--all"))
	// The storage is mounted upon itself.
	_ = exec.Command("umount", "--quiet", p.root()).Run() //nolint:gosec,noctx // it returns at once; it may not be mounted
	// What cleans up after a container may still be at it when podman returns.
	return errors.Join(failed, again(func() error { return os.RemoveAll(p.dir) }))
}

// discard ends and removes containers or pods. Podman fails where one ends, and
// is cleaned up after, while it is about to be killed.
func (p *Podman) discard(kind string, which ...string) error {
	return again(func() error {
		args := append([]string{kind, "rm", "--force", "--time", "0"}, which...)
		if out, err := p.Run(args...); err != nil {
			return fmt.Errorf("podman %s: %w: %s", strings.Join(args, " "), err, out)
		}
		return nil
	})
}

// again does something until it succeeds, for half a minute.
func again(do func() error) error {
	deadline := time.NewTimer(30 * time.Second)
	defer deadline.Stop()
	pause := time.NewTicker(100 * time.Millisecond)
	defer pause.Stop()
	for {
		err := do()
		if err == nil {
			return nil
		}
		select {
		case <-pause.C:
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
