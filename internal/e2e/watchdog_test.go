package e2e

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"svid-watchdog/internal/e2e/neighbour"
	"svid-watchdog/internal/e2e/sidecar"
	"svid-watchdog/internal/rotation"
)

// The support that other tests share, by its short names.
var (
	need          = neighbour.Need
	lacking       = neighbour.Lacking
	until         = neighbour.Until
	binary        = sidecar.Binary
	startWatchdog = sidecar.Start
)

func TestMain(m *testing.M) { os.Exit(sidecar.Main(m)) }

// alone are flags for a watchdog without any neighbour.
func alone(dir string) []string {
	return []string{
		"--credentials.dir=" + filepath.Join(dir, "none"),
		"--workload-api.address=unix://" + filepath.Join(dir, "socket"),
		"--envoy.admin-address=unix://" + filepath.Join(dir, "admin"),
	}
}

// TestAlone: with no neighbour at all the metrics answer within a second of
// the start, and SIGTERM ends the process within another.
func TestAlone(t *testing.T) {
	binary(t)
	begin := time.Now()
	s := startWatchdog(t, alone(t.TempDir())...)
	page := s.Get("/metrics")
	if took := time.Since(begin); took > time.Second {
		t.Errorf("the metrics answered after %s", took)
	}
	if !strings.Contains(page, `svid_watchdog_rotation_state{state="unknown"} 1`) {
		t.Errorf("nothing was seen, and the state is not unknown:\n%s", page)
	}
	series := 0
	for line := range strings.Lines(page) {
		if !strings.HasPrefix(line, "#") {
			series++
		}
	}
	if series > 80 {
		t.Errorf("%d series, the contract allows 80", series)
	}
	told := time.Now()
	if err := s.Cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-s.Exited
	if took := time.Since(told); took > time.Second || s.Cmd.ProcessState.ExitCode() != 0 {
		t.Errorf("ended after %s with exit code %d\n%s", took, s.Cmd.ProcessState.ExitCode(), s)
	}
}

// TestBadUsage: one line and exit code 64.
func TestBadUsage(t *testing.T) {
	for _, args := range [][]string{{"--no-such-flag"}, {"fly"}, {"run", "--envoy.budget=much"}, {"run", "--web.config.file=/no/such/file"}} {
		cmd := exec.Command(binary(t), args...)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		_ = cmd.Run() // the exit code is what counts
		if code := cmd.ProcessState.ExitCode(); code != 64 || strings.Count(stderr.String(), "\n") != 1 {
			t.Errorf("%v: exit code %d, %q", args, code, stderr.String())
		}
	}
}

// TestPromtool: Prometheus' own linter finds nothing on the live page.
func TestPromtool(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		lacking(t, "no promtool here: install Debian's package prometheus")
	}
	s := startWatchdog(t, alone(t.TempDir())...)
	cmd := exec.Command(promtool, "check", "metrics")
	cmd.Stdin = strings.NewReader(s.Get("/metrics"))
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestHangingNeighbours: the metrics answer while every neighbour takes
// connections and never says a word.
func TestHangingNeighbours(t *testing.T) {
	dir, err := os.MkdirTemp("", "svid-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	for _, name := range []string{"socket", "admin"} {
		l, err := net.Listen("unix", filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
	}
	s := startWatchdog(t, append(alone(dir), "--rotation.grace=1s")...)
	s.Until(30*time.Second, "both to be called unreachable", func(v rotation.Verdict) bool {
		p, told := v.Find(rotation.WorkloadUnreachable)
		return told && p.Reason == rotation.ReasonSilent && v.Has(rotation.EnvoyUnreachable)
	})
	begin := time.Now()
	page := s.Get("/metrics")
	if took := time.Since(begin); took > 100*time.Millisecond || !strings.Contains(page, `svid_watchdog_problem{problem="envoy_unreachable"} 1`) {
		t.Errorf("the metrics answered after %s:\n%s", took, page)
	}
	told := time.Now()
	if err := s.Cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-s.Exited
	if took := time.Since(told); took > time.Second {
		t.Errorf("ended after %s", took)
	}
}
