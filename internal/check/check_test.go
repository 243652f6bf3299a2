package check_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"

	"svid-watchdog/internal/check"
	"svid-watchdog/internal/lab"
	"svid-watchdog/internal/rotation"
	"svid-watchdog/internal/watchdog"
)

// startPod starts a pod with the stand-in.
func startPod(t *testing.T, cfg lab.Config) pod {
	t.Helper()
	started, err := lab.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := started.Close(); err != nil {
			t.Error(err)
		}
	})
	p := pod{started, t, true, cfg.Issuer, cfg.Renewal}
	if r, ok := p.until(20*time.Second, func(r check.Report) bool { return r.ExitCode == check.ExitHealthy }); !ok {
		t.Fatal(describe(t, r))
	}
	return p
}

// TestOneStream: a look opens one Workload API stream, takes one answer and
// closes it; with NoSVID it opens none, and is healthy all the same.
func TestOneStream(t *testing.T) {
	t.Parallel()
	p := startPod(t, lab.Config{Issuer: lab.Tbot, TTL: time.Hour, StandIn: "1.37"})
	streams := func() (opened, sent, closed int) {
		events, _ := p.Events()
		for _, e := range events {
			switch {
			case e.Service != lab.WorkloadAPI:
			case e.Kind == lab.StreamOpened:
				opened++
			case e.Kind == lab.SVIDSent:
				sent++
			case e.Kind == lab.StreamClosed:
				closed++
			}
		}
		return opened, sent, closed
	}
	settled := func() (opened, sent int) {
		for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
			if opened, sent, closed := streams(); opened == closed {
				return opened, sent
			}
		}
		t.Fatal("a stream stays open")
		return 0, 0
	}
	opened, sent := settled()
	began := time.Now()
	if r := p.look(); r.ExitCode != check.ExitHealthy {
		t.Error(describe(t, r))
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("a look at a healthy pod took %s", took)
	}
	if o, s := settled(); o != opened+1 || s != sent+1 {
		t.Errorf("%d streams and %d SVIDs, want one each", o-opened, s-sent)
	}
	opened, sent = settled()
	cfg := p.config()
	cfg.Pod.NoSVID = true
	r, err := check.Run(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if o, s := settled(); o != opened || s != sent {
		t.Errorf("with NoSVID %d streams and %d SVIDs, want none", o-opened, s-sent)
	}
	if r.ExitCode != check.ExitHealthy || r.Verdict.IdentityMode != rotation.ModeExternalSDS || r.Verdict.Stage(rotation.Issued).Certificate != nil {
		t.Error(describe(t, r))
	}
	if text := render(t, r, 100); !strings.Contains(text, "not asked for") {
		t.Error(text)
	}
	validate(t, schema(t, "check.schema.json"), r)
}

// TestStreamsOpenAgain: Envoy has just come, or its server has been restarted, so
// that its streams are down at the first look and open at the next. That is no
// fault to be told.
func TestStreamsOpenAgain(t *testing.T) {
	t.Parallel()
	p := startPod(t, lab.Config{Issuer: lab.Tbot, TTL: time.Hour, StandIn: "1.37"})
	admin, err := url.Parse(p.Envoy().AdminAddress())
	if err != nil {
		t.Fatal(err)
	}
	for _, down := range []int32{1, 1000} {
		t.Run(fmt.Sprintf("down at %d looks", down), func(t *testing.T) {
			var looks atomic.Int32
			envoy := httptest.NewServer(&httputil.ReverseProxy{
				Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(admin) },
				ModifyResponse: func(r *http.Response) error {
					if r.Request.URL.Path != "/clusters" || looks.Add(1) > down {
						return nil
					}
					return unconnected(r)
				},
			})
			defer envoy.Close()
			cfg := p.config()
			cfg.Pod.EnvoyAdminAddress = envoy.URL
			r, err := check.Run(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			if healthy := r.ExitCode == check.ExitHealthy; healthy != (down == 1) || r.Verdict.Has(rotation.SDSStreamDown) == healthy {
				t.Error(describe(t, r))
			}
			want := int32(2)
			if down == 1 {
				want = 3
			}
			if n := looks.Load(); n != want {
				t.Errorf("Envoy was looked at %d times, want %d", n, want)
			}
		})
	}
}

// unconnected makes Envoy's answer about its clusters that of one that has not
// connected yet.
func unconnected(r *http.Response) error {
	var clusters struct {
		ClusterStatuses []map[string]json.RawMessage `json:"cluster_statuses"`
	}
	if err := json.NewDecoder(r.Body).Decode(&clusters); err != nil {
		return err
	}
	r.Body.Close()
	for _, cluster := range clusters.ClusterStatuses {
		var hosts []struct {
			Address      json.RawMessage  `json:"address"`
			Stats        []map[string]any `json:"stats"`
			HealthStatus json.RawMessage  `json:"health_status"`
		}
		if err := json.Unmarshal(cluster["host_statuses"], &hosts); err != nil {
			return err
		}
		for _, host := range hosts {
			for _, stat := range host.Stats {
				delete(stat, "value")
			}
		}
		var err error
		if cluster["host_statuses"], err = json.Marshal(hosts); err != nil {
			return err
		}
	}
	body, err := json.Marshal(clusters)
	if err != nil {
		return err
	}
	r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	r.Header.Set("Content-Length", strconv.Itoa(len(body)))
	return nil
}

// TestWatch: who stays sees rotations, and judges as the daemon does.
func TestWatch(t *testing.T) {
	t.Parallel()
	p := startPod(t, lab.Config{Issuer: lab.Tbot, TTL: ttl, Renewal: renewal, StandIn: "1.37"})
	cfg := p.config()
	cfg.Watch = 3 * renewal
	cfg.Pod.RotationInterval, cfg.Pod.PollInterval, cfg.Pod.BudgetPercent = 0, 500*time.Millisecond, 100
	r, err := check.Run(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if r.ToldBy != check.ByWatch || r.ExitCode != check.ExitHealthy || r.Verdict.VerifiedRotations == 0 {
		t.Error(describe(t, r))
	}
	if r.Verdict.IntervalSource != rotation.IntervalLearned {
		t.Errorf("the interval is %s", r.Verdict.IntervalSource)
	}
	validate(t, schema(t, "check.schema.json"), r)
}

// TestAsksTheWatchdog: where one runs its verdict counts, since it knows the
// history; also when it has none to tell.
func TestAsksTheWatchdog(t *testing.T) {
	t.Parallel()
	var status rotation.Verdict
	answer := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		text, _ := json.Marshal(status)
		_, _ = w.Write(append([]byte(`{"version":"v9","new_field":{},`), text[1:]...))
	}
	l := rotation.NewLedger(rotation.Config{})
	now := time.Now()
	l.RecordFiles(rotation.CredentialFiles{At: now, DirExists: true, Present: map[rotation.CredentialFile]bool{
		rotation.CertChainFile: true, rotation.KeyFile: true, rotation.RootCertFile: true,
	}})
	status = l.Judge(now)
	server := httptest.NewServer(http.HandlerFunc(answer))
	defer server.Close()
	cfg := nothing(t)
	cfg.WatchdogAddress = server.URL
	r, err := check.Run(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if r.ToldBy != check.ByWatchdog || r.WatchdogVersion != "v9" || r.ExitCode != check.ExitProblem ||
		r.Credentials.Case != check.CaseC || r.Credentials.Outcome != check.OutcomeB {
		t.Error(describe(t, r))
	}
	if text := render(t, r, 80); !strings.Contains(text, "version v9") || !strings.Contains(text, "Case C") || !strings.Contains(text, "Outcome B") {
		t.Error(text)
	}
	validate(t, schema(t, "check.schema.json"), r)

	status = rotation.NewLedger(rotation.Config{}).Judge(now)
	if r, err = check.Run(t.Context(), cfg); err != nil || r.ExitCode != check.ExitCannotTell {
		t.Errorf("%v %s", err, describe(t, r))
	}
}

// TestStrangeWatchdogs: whatever answers in the watchdog's place, the look is
// made, and the report says whom it could not ask.
func TestStrangeWatchdogs(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		handler http.HandlerFunc
		says    string
	}{
		"password":   {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) }, "password"},
		"TLS":        {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadRequest) }, "TLS"},
		"stranger":   {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) }, "no watchdog"},
		"redirects":  {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/x", http.StatusFound) }, "no watchdog"},
		"no JSON":    {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) }, "read the status"},
		"other JSON": {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"state":"fine"}`)) }, "not the status"},
		"no end": {func(w http.ResponseWriter, _ *http.Request) {
			for _, err := w.Write([]byte("[")); err == nil; _, err = w.Write(bytes.Repeat([]byte("["), 1<<20)) {
			}
		}, "read the status"},
		"no age": {func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(`{"state":"healthy","at":"2026-01-01T00:00:00Z","stages":[{"stage":"issued","certificate":{}}]}`))
		}, "age"},
		"mute": {func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := httptest.NewServer(tt.handler)
			defer server.Close()
			cfg := nothing(t)
			cfg.WatchdogAddress, cfg.Timeout = server.URL, time.Second
			r, err := check.Run(t.Context(), cfg)
			if err != nil || r.ToldBy != check.ByLook || !strings.Contains(r.WatchdogError, tt.says) || (tt.says == "") != (r.WatchdogError == "") {
				t.Errorf("%v, %q, %s", err, r.WatchdogError, r.ToldBy)
			}
			if text := flat(render(t, r, 80)); tt.says != "" && !strings.Contains(text, flat(r.WatchdogError)) {
				t.Errorf("%q is not told:\n%s", r.WatchdogError, text)
			}
			validate(t, schema(t, "check.schema.json"), r)
		})
	}
}

// nothing is a place without any neighbour.
func nothing(t *testing.T) check.Config {
	t.Helper()
	dir := t.TempDir()
	cfg := watchdog.DefaultConfig()
	cfg.CredentialsDir = filepath.Join(dir, "credentials")
	cfg.WorkloadAPIAddress = "unix://" + filepath.Join(dir, "socket")
	cfg.EnvoyAdminAddress = "unix://" + filepath.Join(dir, "admin")
	return check.Config{Pod: cfg, Timeout: 5 * time.Second}
}

// TestNothingThere: all neighbours are missing, and the report says so at once.
func TestNothingThere(t *testing.T) {
	t.Parallel()
	began := time.Now()
	r, err := check.Run(t.Context(), nothing(t))
	if err != nil {
		t.Fatal(err)
	}
	if !r.Verdict.Has(rotation.EnvoyUnreachable) || !r.Verdict.Has(rotation.WorkloadUnreachable) || r.Credentials.Case != check.CaseA ||
		r.Credentials.Outcome != check.OutcomeOpen || time.Since(began) > 4*time.Second {
		t.Errorf("after %s: %s", time.Since(began), describe(t, r))
	}
	validate(t, schema(t, "check.schema.json"), r)
}

// TestTimeout: neighbours that accept connections and say nothing cost no more
// than the timeout.
func TestTimeout(t *testing.T) {
	t.Parallel()
	cfg := nothing(t)
	for _, address := range []*string{&cfg.Pod.WorkloadAPIAddress, &cfg.Pod.EnvoyAdminAddress} {
		l, err := net.Listen("unix", strings.TrimPrefix(*address, "unix://"))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
	}
	cfg.Timeout = 2 * time.Second
	began := time.Now()
	r, err := check.Run(t.Context(), cfg)
	if took := time.Since(began); err != nil || took > 4*time.Second {
		t.Fatalf("after %s: %v", took, err)
	}
	p, _ := r.Verdict.Find(rotation.WorkloadUnreachable)
	if p.Reason != rotation.ReasonSilent || !r.Verdict.Has(rotation.EnvoyUnreachable) {
		t.Error(describe(t, r))
	}
}

// TestCases: the open question of the deployment is answered by name.
func TestCases(t *testing.T) {
	t.Parallel()
	p := startPod(t, lab.Config{Issuer: lab.Tbot, TTL: time.Hour, StandIn: "1.37"})
	want := func(c check.Case, o check.Outcome) {
		t.Helper()
		r := p.look()
		if r.Credentials.Case != c || r.Credentials.Outcome != o || r.Credentials.CaseMeaning == "" || r.Credentials.OutcomeMeaning == "" {
			t.Errorf("want Case %s, Outcome %s: %+v", c, o, r.Credentials)
		}
	}
	want(check.CaseB, check.OutcomeA)
	for _, fault := range []struct {
		name string
		c    check.Case
		o    check.Outcome
	}{
		{"files-partial", check.CasePartial, check.OutcomeOpen},
		{"files-complete", check.CaseC, check.OutcomeB},
		{"socket-refused", check.CaseB, check.OutcomeOpen},
		{"foreign-ca", check.CaseB, check.OutcomeOpen},
		{"envoy-down", check.CaseB, check.OutcomeOpen},
	} {
		if err := p.Inject(t.Context(), fault.name); err != nil {
			t.Fatal(err)
		}
		// A pod may be healthy with what it has while Envoy still waits, up to 30 s,
		// before it opens its stream again; only then is it sent what is wrong.
		if _, ok := p.until(40*time.Second, func(r check.Report) bool { return r.Credentials.Outcome == fault.o }); !ok {
			t.Errorf("%s: want Outcome %s", fault.name, fault.o)
		}
		want(fault.c, fault.o)
		if err := p.Heal(t.Context(), fault.name); err != nil {
			t.Fatal(err)
		}
		if r, ok := p.until(40*time.Second, func(r check.Report) bool { return r.ExitCode == check.ExitHealthy }); !ok {
			t.Fatal(describe(t, r))
		}
	}
	if err := os.Remove(p.CredentialsDir()); err != nil {
		t.Fatal(err)
	}
	want(check.CaseA, check.OutcomeA)
	if err := os.WriteFile(p.CredentialsDir(), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	want(check.CaseUnknown, check.OutcomeOpen)
	if r := p.look(); r.ExitCode != check.ExitCannotTell {
		t.Errorf("exit %d where the directory cannot be looked at", r.ExitCode)
	}
}

// TestRoot: all paths are looked for below the root, as a process in there sees
// them: an absolute symbolic link, as /var/run is one in many images, does not
// lead out.
func TestRoot(t *testing.T) {
	t.Parallel()
	p := startPod(t, lab.Config{Issuer: lab.Tbot, TTL: time.Hour, StandIn: "1.37"})
	root := t.TempDir()
	socket := strings.TrimPrefix(p.SocketAddress(), "unix://")
	for _, dir := range []string{"run/credentials", "run/uds", "var"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/run", filepath.Join(root, "var/run")); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(socket, filepath.Join(root, "run/uds/socket")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "run/credentials/key.pem"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := p.config()
	cfg.Root = root
	cfg.Pod.CredentialsDir, cfg.Pod.WorkloadAPIAddress = "/var/run/credentials", "unix:///var/run/uds/socket"
	r, err := check.Run(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if r.Credentials.Case != check.CasePartial || r.Verdict.Stage(rotation.Issued).Certificate == nil || r.Verdict.IdentityMode != rotation.ModeExternalSDS {
		t.Error(describe(t, r))
	}
	cfg.Root = "relative"
	if _, err := check.Run(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "absolute") {
		t.Errorf("a relative root: %v", err)
	}
}

// TestSchema: the schemas' closed sets are the code's.
func TestSchema(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "status.schema.json"))
	if err != nil {
		t.Fatal(err)
	}
	var s struct {
		Defs map[string]struct {
			Enum []string `json:"enum"`
		} `json:"$defs"`
	}
	if err := json.Unmarshal(text, &s); err != nil {
		t.Fatal(err)
	}
	names, reasons := map[string]bool{}, map[string]bool{}
	for _, d := range rotation.Catalogue() {
		names[string(d.Name)] = true
		for _, r := range d.Reasons {
			reasons[string(r.Reason)] = true
		}
	}
	for what, code := range map[string]map[string]bool{"problemName": names, "reason": reasons} {
		documented := map[string]bool{}
		for _, e := range s.Defs[what].Enum {
			documented[e] = true
		}
		if !reflect.DeepEqual(documented, code) {
			t.Errorf("%s: documented are %v, in the code are %v", what, documented, code)
		}
	}
}

// TestText: no line is wider than asked, but for words that are; colours change
// nothing but colours.
func TestText(t *testing.T) {
	t.Parallel()
	r, err := check.Run(t.Context(), nothing(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, width := range []int{20, 40, 80, 100} {
		for line := range strings.Lines(render(t, r, width)) {
			line = strings.TrimSuffix(line, "\n")
			if utf8.RuneCountInString(line) > width && len(strings.Fields(line)) > 1 {
				t.Errorf("width %d: %q", width, line)
			}
			if strings.HasSuffix(line, " ") || strings.Contains(line, "\x1b") {
				t.Errorf("%q", line)
			}
		}
	}
	var coloured bytes.Buffer
	if err := r.WriteText(&coloured, 80, true); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(coloured.String(), "\x1b[") {
		t.Error("no colour")
	}
}
