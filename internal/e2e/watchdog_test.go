package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"svid-watchdog/internal/rotation"
)

// need is the path of a neighbour. Where it was not fetched the test is
// skipped, but never in CI.
func need(t *testing.T, elements ...string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join(append([]string{"..", "..", ".neighbours"}, elements...)...))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		lacking(t, "no "+strings.Join(elements, "/")+" here: run `make neighbours`")
	}
	return path
}

// lacking skips a test that cannot run here; in CI it fails.
func lacking(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatal(why)
	}
	t.Skip(why)
}

var build struct {
	once sync.Once
	path string
	err  error
}

// binary is the watchdog, built as it is shipped.
func binary(t *testing.T) string {
	t.Helper()
	build.once.Do(func() {
		var dir string
		if dir, build.err = os.MkdirTemp("", "svid-e2e-bin-"); build.err != nil {
			return
		}
		build.path = filepath.Join(dir, "watchdog")
		cmd := exec.Command("../../tools/build", build.path)
		if out, err := cmd.CombinedOutput(); err != nil {
			build.err = fmt.Errorf("build the watchdog: %w\n%s", err, out)
		}
	})
	if build.err != nil {
		t.Fatal(build.err)
	}
	return build.path
}

func TestMain(m *testing.M) {
	code := m.Run()
	if build.path != "" {
		os.RemoveAll(filepath.Dir(build.path))
	}
	os.Exit(code)
}

// output collects what a process writes.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// until waits for a condition.
func until(t *testing.T, bound time.Duration, what string, satisfied func() bool, more ...fmt.Stringer) {
	t.Helper()
	deadline := time.NewTimer(bound)
	defer deadline.Stop()
	look := time.NewTicker(50 * time.Millisecond)
	defer look.Stop()
	for !satisfied() {
		select {
		case <-look.C:
		case <-deadline.C:
			for _, m := range more {
				t.Log(m.String())
			}
			t.Fatalf("waited %s in vain for %s", bound, what)
		}
	}
}

// process is a running program.
type process struct {
	cmd    *exec.Cmd
	out    output
	exited chan struct{}
}

func startProcess(t *testing.T, path string, args ...string) *process {
	t.Helper()
	p := &process{cmd: exec.Command(path, args...), exited: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.exited)
		_ = p.cmd.Wait() // the exit code is in ProcessState
	}()
	t.Cleanup(func() { p.kill() })
	return p
}

func (p *process) String() string {
	text := p.out.String()
	return filepath.Base(p.cmd.Path) + ":\n" + text[max(0, len(text)-6000):]
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may have ended
	<-p.exited
}

// sidecar is a running watchdog.
type sidecar struct {
	*process
	t    *testing.T
	base string
}

var listens = regexp.MustCompile(`listen_address=(\S+)`)

func startWatchdog(t *testing.T, args ...string) *sidecar {
	t.Helper()
	p := startProcess(t, binary(t), append([]string{"run", "--web.listen-address=127.0.0.1:0"}, args...)...)
	s := &sidecar{process: p, t: t}
	until(t, 10*time.Second, "the watchdog to listen", func() bool {
		m := listens.FindStringSubmatch(p.out.String())
		if m != nil {
			s.base = "http://" + m[1]
		}
		return m != nil
	}, p)
	return s
}

func (s *sidecar) get(path string) string {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 5*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.base+path, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		s.t.Fatalf("%v\n%s", err, s)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		s.t.Fatalf("%s: %d %v\n%s", path, response.StatusCode, err, text)
	}
	return string(text)
}

func (s *sidecar) verdict() rotation.Verdict {
	s.t.Helper()
	var v rotation.Verdict
	if err := json.Unmarshal([]byte(s.get("/api/v1/status")), &v); err != nil {
		s.t.Fatal(err)
	}
	return v
}

func (s *sidecar) until(bound time.Duration, what string, satisfied func(rotation.Verdict) bool, more ...fmt.Stringer) rotation.Verdict {
	s.t.Helper()
	var v rotation.Verdict
	until(s.t, bound, what, func() bool {
		v = s.verdict()
		return satisfied(v)
	}, append(more, s)...)
	return v
}

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
	page := s.get("/metrics")
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
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-s.exited
	if took := time.Since(told); took > time.Second || s.cmd.ProcessState.ExitCode() != 0 {
		t.Errorf("ended after %s with exit code %d\n%s", took, s.cmd.ProcessState.ExitCode(), s)
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
	cmd.Stdin = strings.NewReader(s.get("/metrics"))
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
	s.until(30*time.Second, "both to be called unreachable", func(v rotation.Verdict) bool {
		p, told := v.Find(rotation.WorkloadUnreachable)
		return told && p.Reason == rotation.ReasonSilent && v.Has(rotation.EnvoyUnreachable)
	})
	begin := time.Now()
	page := s.get("/metrics")
	if took := time.Since(begin); took > 100*time.Millisecond || !strings.Contains(page, `svid_watchdog_problem{problem="envoy_unreachable"} 1`) {
		t.Errorf("the metrics answered after %s:\n%s", took, page)
	}
	told := time.Now()
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-s.exited
	if took := time.Since(told); took > time.Second {
		t.Errorf("ended after %s", took)
	}
}
