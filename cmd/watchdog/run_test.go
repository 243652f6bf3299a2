package main

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"svid-watchdog/internal/watchdog"
)

// TestBadUsage: one clear line, exit 64, nothing started.
func TestBadUsage(t *testing.T) {
	badYAML := filepath.Join(t.TempDir(), "web.yml")
	if err := os.WriteFile(badYAML, []byte("tls_server_conf: {}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args, env []string
		says      string
	}{
		{args: []string{"fly"}, says: "fly"},
		{args: []string{"run", "--no-such-flag"}, says: "no-such-flag"},
		{args: []string{"--envoy.poll-interval=soon"}, says: "envoy.poll-interval"},
		{args: []string{"--envoy.poll-interval=1ms"}, says: "poll interval"},
		{args: []string{"--envoy.budget=0"}, says: "budget"},
		{args: []string{"--envoy.admin-address=ftp://x"}, says: "admin address"},
		{args: []string{"--envoy.admin-address=http://192.0.2.1:15000"}, says: "--envoy.allow-remote-admin"},
		{args: []string{"--envoy.admin-address=http://envoy.example:15000"}, says: "--envoy.allow-remote-admin"},
		{args: []string{"--workload-api.address=/run/socket"}, says: "Workload API address"},
		{args: []string{"--rotation.grace=-1s"}, says: "negative"},
		{args: []string{"--log.format=xml"}, says: "xml"},
		{args: []string{"--log.level=loud"}, says: "log.level"},
		{args: []string{"--web.config.file=/no/such/file"}, says: "/no/such/file"},
		{args: []string{"--web.config.file=" + badYAML}, says: "web.yml"},
		{args: []string{"--web.listen-address=nowhere"}, says: "nowhere"},
		{args: []string{"run", "extra"}, says: "extra"},
		{env: []string{"SVID_WATCHDOG_ROTATION_GRACE=long"}, says: "SVID_WATCHDOG_ROTATION_GRACE"},
		{env: []string{"SPIFFE_ENDPOINT_SOCKET=nonsense"}, says: "nonsense"},
	} {
		t.Run(strings.Join(append(tt.args, tt.env...), " "), func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			// A run that wrongly starts ends at once.
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			code := run(ctx, tt.args, tt.env, &stdout, &stderr)
			if code != exitBadUsage {
				t.Errorf("exit %d, want %d", code, exitBadUsage)
			}
			if lines := strings.Count(stderr.String(), "\n"); lines != 1 || !strings.Contains(stderr.String(), tt.says) {
				t.Errorf("stderr: %q", stderr.String())
			}
			if stdout.Len() > 0 {
				t.Errorf("stdout: %q", stdout.String())
			}
		})
	}
}

// TestPrecedence: flag over environment over the SPIFFE standard's variable
// over the default.
func TestPrecedence(t *testing.T) {
	standard := watchdog.DefaultConfig().WorkloadAPIAddress
	spiffe := "SPIFFE_ENDPOINT_SOCKET=unix:///spiffe"
	twin := "SVID_WATCHDOG_WORKLOAD_API_ADDRESS=unix:///twin"
	for _, tt := range []struct {
		args, env []string
		want      string
	}{
		{nil, nil, standard},
		{nil, []string{spiffe}, "unix:///spiffe"},
		{nil, []string{spiffe, twin}, "unix:///twin"},
		{[]string{"--workload-api.address=unix:///flag"}, []string{spiffe, twin}, "unix:///flag"},
		// Kubernetes makes such variables for a Service of that name.
		{nil, []string{"SVID_WATCHDOG_SERVICE_HOST=10.0.0.1", "SVID_WATCHDOG_PORT=tcp://10.0.0.1:9816"}, standard},
	} {
		o, err := parseFlags(tt.args, tt.env)
		if err != nil {
			t.Errorf("%v %v: %v", tt.args, tt.env, err)
		} else if o.watchdog.WorkloadAPIAddress != tt.want {
			t.Errorf("%v %v: %s, want %s", tt.args, tt.env, o.watchdog.WorkloadAPIAddress, tt.want)
		}
	}
}

func TestVersion(t *testing.T) {
	var stdout bytes.Buffer
	if code := run(t.Context(), []string{"version"}, nil, &stdout, io.Discard); code != exitOK || !strings.HasPrefix(stdout.String(), "svid-watchdog ") {
		t.Errorf("%d %q", code, stdout.String())
	}
}

// logs collects what the program writes, and tells when a line has come.
type logs struct {
	mu  sync.Mutex
	b   bytes.Buffer
	got chan struct{}
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n, err := l.b.Write(p)
	select {
	case l.got <- struct{}{}:
	default:
	}
	return n, err
}

func (l *logs) await(t *testing.T, pattern string) []string {
	t.Helper()
	re := regexp.MustCompile(pattern)
	deadline := time.NewTimer(10 * time.Second)
	defer deadline.Stop()
	for {
		l.mu.Lock()
		text := l.b.String()
		l.mu.Unlock()
		if m := re.FindStringSubmatch(text); m != nil {
			return m
		}
		select {
		case <-l.got:
		case <-deadline.C:
			t.Fatalf("no %q in:\n%s", pattern, text)
		}
	}
}

// TestRunsAlone: with no neighbour at all the watchdog serves, says unknown,
// and ends within a second when told to.
func TestRunsAlone(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	stderr := &logs{got: make(chan struct{}, 1)}
	ended := make(chan int, 1)
	go func() {
		ended <- run(ctx, []string{
			"--credentials.dir=" + filepath.Join(dir, "none"),
			"--workload-api.address=unix://" + filepath.Join(dir, "none", "socket"),
			"--envoy.admin-address=unix://" + filepath.Join(dir, "admin"),
			"--web.listen-address=127.0.0.1:0",
		}, nil, io.Discard, stderr)
	}()
	address := stderr.await(t, `listen_address=(\S+)`)[1]
	for path, want := range map[string]string{
		"/metrics":       `svid_watchdog_rotation_state{state="unknown"} 1`,
		"/healthz":       "ok",
		"/readyz":        "ok",
		"/api/v1/status": `"state": "unknown"`,
	} {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(response.Body)
		response.Body.Close()
		if err != nil || response.StatusCode != http.StatusOK || !strings.Contains(string(text), want) {
			t.Errorf("%s: %d %v\n%s", path, response.StatusCode, err, text)
		}
	}
	http.DefaultClient.CloseIdleConnections()
	stopped := time.Now()
	cancel()
	select {
	case code := <-ended:
		if took := time.Since(stopped); code != exitOK || took > time.Second {
			t.Errorf("exit %d after %s", code, took)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("it does not end")
	}
}
