package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"go.uber.org/goleak"

	"svid-watchdog/internal/lab"
	"svid-watchdog/internal/rotation"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestBadUsage: one clear line, exit 64, nothing started.
func TestBadUsage(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args, env []string
		says      string
	}{
		{args: []string{"now"}, says: "now"},
		{args: []string{"--no-such-flag"}, says: "no-such-flag"},
		{args: []string{"--issuer=vault"}, says: "vault"},
		{args: []string{"--stand-in=1.12"}, says: "1.12"},
		{args: []string{"--ttl=1s"}, says: "--ttl"},
		{args: []string{"--renewal=2m"}, says: "--renewal"},
		{args: []string{"--for=-1s"}, says: "--for"},
		{args: []string{"--envoy=/no/such/envoy"}, says: "/no/such/envoy"},
		{args: []string{"--envoy=" + t.TempDir()}, says: "not a program"},
		{args: []string{"--envoy=" + program, "--stand-in=1.36"}, says: "exclude"},
		{args: []string{"--envoy=" + program, "--fault=contexts-stuck"}, says: "contexts-stuck"},
		{env: []string{"ENVOY_BIN=/no/such/envoy"}, says: "/no/such/envoy"},
		{args: []string{"--fault=gremlins"}, says: "gremlins"},
		{args: []string{"--fault=denied@soon"}, says: "soon"},
		{args: []string{"--control=nowhere"}, says: "HOST:PORT"},
		{args: []string{"--control=0.0.0.0:9817"}, says: "loopback"},
		{args: []string{"--control=" + taken.Addr().String()}, says: "in use"},
	} {
		t.Run(strings.Join(append(tt.args, tt.env...), " "), func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			if code := run(t.Context(), tt.args, tt.env, &stdout, &stderr); code != exitBadUsage {
				t.Errorf("exit %d, want %d", code, exitBadUsage)
			}
			if strings.Count(stderr.String(), "\n") != 1 || !strings.Contains(stderr.String(), tt.says) {
				t.Errorf("stderr: %q", stderr.String())
			}
			if stdout.Len() > 0 {
				t.Errorf("stdout: %q", stdout.String())
			}
		})
	}
}

func TestHelp(t *testing.T) {
	var stdout, stderr bytes.Buffer
	if code := run(t.Context(), []string{"--help"}, nil, &stdout, &stderr); code != exitOK || stderr.Len() > 0 {
		t.Errorf("exit %d, stderr %q", code, stderr.String())
	}
	for _, flag := range []string{"envoy", "stand-in", "issuer", "ttl", "renewal", "sds-stats", "fault", "list-faults", "for", "json", "watchdog", "control"} {
		if !strings.Contains(stdout.String(), "\n  --"+flag+" ") {
			t.Errorf("--%s is not explained", flag)
		}
	}
}

func TestListFaults(t *testing.T) {
	var stdout, stderr bytes.Buffer
	if code := run(t.Context(), []string{"--list-faults"}, nil, &stdout, &stderr); code != exitOK || stderr.Len() > 0 {
		t.Errorf("exit %d, stderr %q", code, stderr.String())
	}
	for _, f := range lab.Faults() {
		if !strings.Contains(stdout.String(), f.Name) || !strings.Contains(stdout.String(), string(f.Shows)) {
			t.Errorf("%s is not listed with what it shows", f.Name)
		}
	}
}

// TestEnvoyFromEnvironment: a flag wins over ENVOY_BIN, also the one that asks
// for the stand-in.
func TestEnvoyFromEnvironment(t *testing.T) {
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	environ := []string{"ENVOY_BIN=" + program, "NO_COLOR=1"}
	o, err := parseFlags(nil, environ)
	if err != nil || o.pod.EnvoyPath != program || !o.noColor {
		t.Errorf("%+v, %v", o, err)
	}
	if o, err = parseFlags([]string{"--stand-in=1.36"}, environ); err != nil || o.pod.EnvoyPath != "" {
		t.Errorf("%+v, %v", o, err)
	}
}

func TestPlan(t *testing.T) {
	o, err := parseFlags([]string{"--fault=sds-silent@1m", "--fault=denied", "--fault=envoy-hung@5s"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range o.faults {
		got = append(got, fmt.Sprintf("%s@%s", p.fault.Name, p.after))
	}
	if want := []string{"denied@0s", "envoy-hung@5s", "sds-silent@1m0s"}; !slices.Equal(got, want) {
		t.Errorf("plan %v, want %v", got, want)
	}
}

// TestJSON: the document has what scripts read, and the fault that was planned.
func TestJSON(t *testing.T) {
	t.Parallel()
	var stdout, stderr bytes.Buffer
	code := run(t.Context(), []string{"--for=9s", "--ttl=9s", "--json", "--fault=files-partial@7s"}, nil, &stdout, &stderr)
	if code != exitOK || stderr.Len() > 0 {
		t.Fatalf("exit %d, stderr %q", code, stderr.String())
	}
	var r report
	if err := json.Unmarshal(stdout.Bytes(), &r); err != nil {
		t.Fatalf("%v: %s", err, stdout.String())
	}
	if !slices.Equal(r.ProblemsRaised, []rotation.ProblemName{rotation.CredentialFilesPartial}) {
		t.Errorf("raised %v", r.ProblemsRaised)
	}
	if r.VerifiedRotations < 1 || r.Verdict == nil || r.Verdict.State != rotation.Degraded {
		t.Errorf("%d verified, verdict %+v", r.VerifiedRotations, r.Verdict)
	}
	if !slices.IsSortedFunc(r.Timeline, byTime) {
		t.Error("the timeline is not in order")
	}
	from := make(map[string]bool)
	for _, e := range r.Timeline {
		from[e.From+"/"+e.Type] = true
	}
	for _, want := range []string{"lab/svid_sent", "lab/fault_injected", "watchdog/rotation_verified", "watchdog/problem_raised"} {
		if !from[want] {
			t.Errorf("no %s in the timeline", want)
		}
	}
}

// TestInterrupted: an interrupt ends the run in good order, with its summary.
func TestInterrupted(t *testing.T) {
	t.Parallel()
	ctx, interrupt := context.WithCancel(t.Context())
	stdout := &watched{until: "First certificate loaded", then: interrupt}
	var stderr bytes.Buffer
	if code := run(ctx, nil, nil, stdout, &stderr); code != exitOK || stderr.Len() > 0 {
		t.Errorf("exit %d, stderr %q", code, stderr.String())
	}
	lines := strings.Split(strings.TrimSpace(stdout.String()), "\n")
	if last := lines[len(lines)-1]; !regexp.MustCompile(`^Ran for \d+s: .*, no problem raised\.$`).MatchString(last) {
		t.Errorf("last line %q", last)
	}
	if strings.Contains(stdout.String(), "\x1b") {
		t.Error("escape sequences although this is no terminal")
	}
}

// TestByHand: the command that is printed names what is there.
func TestByHand(t *testing.T) {
	t.Parallel()
	ctx, interrupt := context.WithCancel(t.Context())
	var credentials string
	stdout := &watched{until: "--web.listen-address"}
	stdout.then = func() {
		credentials = regexp.MustCompile(`--credentials\.dir=(\S+)`).FindStringSubmatch(stdout.buf.String())[1]
		if info, err := os.Stat(credentials); err != nil || !info.IsDir() {
			t.Errorf("credentials directory: %v", err)
		}
		interrupt()
	}
	var stderr bytes.Buffer
	if code := run(ctx, []string{"--watchdog=false"}, nil, stdout, &stderr); code != exitOK || stderr.Len() > 0 {
		t.Errorf("exit %d, stderr %q", code, stderr.String())
	}
	if _, err := os.Stat(filepath.Dir(credentials)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the pod's directory is left behind: %v", err)
	}
}

// watched is an output that calls a function when a text is written.
type watched struct {
	mu    sync.Mutex
	buf   bytes.Buffer
	until string
	then  func()
	done  bool
}

func (w *watched) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n, err := w.buf.Write(p)
	if !w.done && strings.Contains(w.buf.String(), w.until) {
		w.done = true
		w.then()
	}
	return n, err
}

func (w *watched) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.String()
}

// fakePod takes note of faults.
type fakePod struct{ active []string }

func (p *fakePod) Inject(_ context.Context, name string) error {
	switch name {
	case "denied":
		p.active = append(p.active, name)
		return nil
	case "contexts-stuck":
		return errors.New("only the stand-in can do this")
	default:
		return lab.ErrUnknownFault
	}
}

func (p *fakePod) Heal(_ context.Context, name string) error {
	p.active = slices.DeleteFunc(p.active, func(n string) bool { return n == name })
	return nil
}

func (p *fakePod) Faults() []string { return p.active }

func TestControl(t *testing.T) {
	pod := &fakePod{}
	server := httptest.NewServer(controlHandler(t.Context(), pod))
	defer server.Close()
	client := server.Client()
	for _, tt := range []struct {
		method, path string
		code         int
		active       bool
	}{
		{http.MethodGet, "/faults", http.StatusOK, false},
		{http.MethodPost, "/faults/denied", http.StatusOK, true},
		{http.MethodGet, "/faults", http.StatusOK, true},
		{http.MethodDelete, "/faults/denied", http.StatusOK, false},
		{http.MethodPost, "/faults/gremlins", http.StatusNotFound, false},
		{http.MethodPost, "/faults/contexts-stuck", http.StatusConflict, false},
		{http.MethodGet, "/faults/denied", http.StatusMethodNotAllowed, false},
	} {
		request, err := http.NewRequestWithContext(t.Context(), tt.method, server.URL+tt.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		response, err := client.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(response.Body)
		response.Body.Close()
		if err != nil || response.StatusCode != tt.code {
			t.Errorf("%s %s: %d, %v", tt.method, tt.path, response.StatusCode, err)
		}
		if tt.code != http.StatusOK {
			continue
		}
		var views []faultView
		if err := json.Unmarshal(body, &views); err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(views, func(v faultView) bool { return v.Name == "denied" })
		if i < 0 || views[i].Active != tt.active || views[i].Shows != string(rotation.WorkloadDenied) {
			t.Errorf("%s %s: %+v", tt.method, tt.path, views)
		}
	}
}

// TestView: every line fits the terminal, colours are optional, and what one
// must see is there.
func TestView(t *testing.T) {
	pod, err := lab.Start(t.Context(), lab.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := pod.Close(); err != nil {
			t.Error(err)
		}
	}()
	o, err := parseFlags(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	age := 90.0
	verdict := &rotation.Verdict{
		At: now, State: rotation.Broken, Summary: "A certificate has expired.",
		Stages: []rotation.StageView{
			{Stage: rotation.Issued, Certificate: &rotation.CertificateView{Serial: "abcdef0123456789", NotAfter: now.Add(31 * time.Second)}},
			{Stage: rotation.Delivered, Certificate: &rotation.CertificateView{Serial: "1", NotAfter: now.Add(-30 * time.Second)}, AgeSeconds: &age},
			{Stage: rotation.Served},
		},
		Problems: []rotation.Problem{{
			Name: rotation.DeliveryOverdue, Severity: rotation.Critical, Reason: rotation.ReasonServerResends,
			Cause: strings.Repeat("The cause is long. ", 20), Advice: "Do something.", Detail: "It was seen.",
		}},
	}
	v := view{
		scene: scene{o: o, pod: pod, began: now.Add(-time.Minute), status: "127.0.0.1:1"}, at: now,
		now: snapshot{verdict: verdict, faults: []string{"tbot-resend"}, entries: []entry{
			{At: now, From: fromLab, Type: string(lab.Acknowledged), Message: "quiet"},
			{At: now, From: fromLab, Type: string(lab.FaultInjected), Message: "loud"},
		}},
	}
	for _, width := range []int{1, 20, 80, 200} {
		v.Width, v.Color, v.Cut = width, false, true
		for _, line := range v.render() {
			if utf8.RuneCountInString(line) > width || strings.Contains(line, "\x1b") {
				t.Errorf("width %d: %q", width, line)
			}
		}
	}
	text := strings.Join(v.render(), "\n")
	for _, want := range []string{
		"BROKEN", "31s left", "expired 30s ago", "90s old", "not seen", "delivery_overdue (server_resends), critical",
		"Do something.", "tbot-resend", "loud", "abcdef01",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not shown", want)
		}
	}
	if strings.Contains(text, "quiet") {
		t.Error("what comes with every renewal is shown")
	}
	v.Color = true
	colour := regexp.MustCompile("\x1b\\[[0-9;]*m")
	if coloured := strings.Join(v.render(), "\n"); coloured == text || colour.ReplaceAllString(coloured, "") != text {
		t.Error("colours change more than colours")
	}
	v.now.verdict = nil
	if text := strings.Join(v.render(), "\n"); !strings.Contains(text, "Waiting") {
		t.Errorf("before the first verdict: %q", text)
	}
}
