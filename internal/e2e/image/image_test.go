package image

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"svid-watchdog/internal/e2e/neighbour"
	"svid-watchdog/internal/e2e/podman"
)

const name = "localhost/svid-watchdog:image"

// securityContext is what deploy/istio gives the container, in podman's words.
// The seccomp profile is podman's own, which is what RuntimeDefault means.
var securityContext = []string{"--read-only", "--read-only-tmpfs=false", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--user", "65532:65532", "--memory", "32m", "--memory-swap", "32m"}

func build(t *testing.T, p *podman.Podman) {
	t.Helper()
	command := exec.CommandContext(t.Context(), "make", "image", "PLATFORMS=amd64", "IMAGE="+name, "VERSION=image")
	command.Dir, command.Env = neighbour.Root(t), p.Env()
	if out, err := command.CombinedOutput(); err != nil {
		t.Fatalf("make image: %v\n%s", err, out)
	}
}

// TestImage: the image is one file without a shell, and runs with nothing that
// it does not need.
func TestImage(t *testing.T) {
	p := podman.New(t)
	build(t, p)

	t.Run("holds the binary alone", func(t *testing.T) {
		container := p.Must("create", name)
		archive := filepath.Join(t.TempDir(), "image.tar")
		p.Must("export", "--output", archive, container)
		file, err := os.Open(archive)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		var files []string
		for r := tar.NewReader(file); ; {
			header, err := r.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if header.Typeflag == tar.TypeReg && header.Size > 0 {
				files = append(files, fmt.Sprintf("%s %o", header.Name, header.FileInfo().Mode().Perm()))
			}
		}
		if len(files) != 1 || files[0] != "watchdog 555" {
			t.Errorf("the files of the image: %q", files)
		}
	})

	t.Run("runs confined", func(t *testing.T) {
		p.Must(append(append([]string{"run", "--detach", "--name", "watchdog", "--network", "none"}, securityContext...), name)...)
		neighbour.Until(t, 30*time.Second, "the watchdog to listen", func() bool {
			return strings.Contains(p.Must("logs", "watchdog"), "listen_address=")
		})
		pid := p.Must("inspect", "--format", "{{.State.Pid}}", "watchdog")
		status, err := os.ReadFile(filepath.Join("/proc", pid, "status"))
		if err != nil {
			t.Fatal(err)
		}
		for field, want := range map[string]string{
			"Uid": "65532\t65532\t65532\t65532", "Gid": "65532\t65532\t65532\t65532", "NoNewPrivs": "1", "Seccomp": "2",
			"CapInh": "0000000000000000", "CapPrm": "0000000000000000", "CapEff": "0000000000000000", "CapBnd": "0000000000000000", "CapAmb": "0000000000000000",
		} {
			found := regexp.MustCompile(`(?m)^` + field + `:\t(.*)$`).FindSubmatch(status)
			if found == nil || string(found[1]) != want {
				t.Errorf("%s is %q, want %s", field, found, want)
			}
		}
		mounts, err := os.ReadFile(filepath.Join("/proc", pid, "mounts"))
		if err != nil || !regexp.MustCompile(`(?m)^\S+ / \S+ ro,`).Match(mounts) {
			t.Errorf("the root is not read-only: %v\n%s", err, mounts)
		}
		// It answers from within, and there is nothing else that could run.
		if out, err := p.Run("exec", "watchdog", "/watchdog", "check", "--json"); !strings.Contains(out, `"told_by": "watchdog"`) {
			t.Errorf("check: %v\n%s", err, out)
		}
		for _, shell := range []string{"/bin/sh", "sh", "/busybox/sh"} {
			if out, err := p.Run("exec", "watchdog", shell, "-c", "true"); err == nil {
				t.Errorf("there is a shell: %s", out)
			}
		}
		p.Must("stop", "--time", "5", "watchdog")
		if code := p.Must("inspect", "--format", "{{.State.ExitCode}}", "watchdog"); code != "0" {
			t.Errorf("told to stop it ends with %s\n%s", code, p.Must("logs", "watchdog"))
		}
	})
}
