package web_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"svid-watchdog/internal/podsim"
	"svid-watchdog/internal/rotation"
)

// story plays a pod for some hours, and is its verdict at the end: one minute
// at a time, at fixed times, so that the pictures change only with the page.
func story(cfg podsim.Config, minutes int, happens func(pod *podsim.Pod, minute int)) rotation.Verdict {
	now := time.Date(2026, 3, 1, 9, 0, 0, 0, time.UTC)
	pod := podsim.New(cfg, now)
	l := rotation.NewLedger(rotation.Config{Grace: 90 * time.Second, Verify: podsim.Verify, Handshake: true})
	var v rotation.Verdict
	for step := range 4 * minutes {
		if step%4 == 0 && happens != nil {
			happens(pod, step/4)
		}
		pod.Advance(now)
		l.RecordFiles(pod.CredentialFiles(now))
		l.RecordWorkloadAPI(pod.WorkloadAPI(now))
		if i := pod.Issuance(); i != nil {
			l.RecordIssuance(*i)
		}
		l.RecordEnvoy(pod.Envoy(now))
		l.RecordHandshake(pod.Handshake(now))
		v = l.Judge(now)
		now = now.Add(15 * time.Second)
	}
	return v
}

// scenes are the states that the page must show well.
func scenes() map[string]rotation.Verdict {
	hour := podsim.Config{Issuer: podsim.Tbot, Modern: true, TTL: time.Hour}
	old := hour
	old.Modern = false
	return map[string]rotation.Verdict{
		"healthy": story(hour, 210, nil),
		"incident": story(old, 190, func(pod *podsim.Pod, minute int) {
			pod.Resend = minute >= 110
		}),
		"files": story(hour, 130, func(pod *podsim.Pod, minute int) {
			if minute == 95 {
				pod.Files = []rotation.CredentialFile{rotation.KeyFile}
			}
			if minute == 120 {
				pod.Files = rotation.CredentialFileNames()
			}
		}),
		"unknown": rotation.NewLedger(rotation.Config{Grace: 90 * time.Second, Handshake: true}).Judge(time.Date(2026, 3, 1, 9, 0, 0, 0, time.UTC)),
	}
}

// browser is the command that runs a script of tools/browser.
func browser(t *testing.T, script string, args ...string) *exec.Cmd {
	t.Helper()
	lacks := func(what string, err error) {
		if os.Getenv("CI") != "" {
			t.Fatalf("no %s: %v", what, err)
		}
		t.Skipf("no %s here: %v", what, err)
	}
	chromium, err := exec.LookPath("chromium")
	if err != nil {
		lacks("Chromium (Debian's package chromium)", err)
	}
	node, err := exec.LookPath("node")
	if err != nil {
		lacks("Node 20", err)
	}
	root, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	modules := filepath.Join(root, ".neighbours", "browser")
	if _, err := os.Stat(filepath.Join(modules, "node_modules")); err != nil {
		lacks("playwright (run `make neighbours`)", err)
	}
	return exec.CommandContext(t.Context(), node, append([]string{filepath.Join(root, "tools", "browser", script), modules, chromium}, args...)...)
}

type finding struct {
	Name, Look, Title, Text string
	Errors, Elsewhere       []string
	Overflow                int
	Links, Reached          int
	Violations              []struct {
		ID, Impact, Help string
		Nodes            []string
	}
}

// TestInABrowser shows the page in each state in a real Chromium, in light on a
// desk and in dark on a phone: it says what is wrong, nothing is loaded from
// elsewhere, nothing is refused by the policy, every link can be reached by
// keyboard, and axe finds no fault. SCREENSHOTS=DIR takes pictures.
func TestInABrowser(t *testing.T) {
	t.Parallel()
	type pageAt struct {
		Name string `json:"name"`
		URL  string `json:"url"`
	}
	var plan struct {
		Pages       []pageAt `json:"pages"`
		Screenshots string   `json:"screenshots,omitempty"`
	}
	plan.Screenshots = os.Getenv("SCREENSHOTS")
	for name, v := range scenes() {
		cfg := config()
		cfg.Verdict = func() rotation.Verdict { return v }
		address := start(t, cfg)
		plan.Pages = append(plan.Pages, pageAt{name, "http://" + address + "/"})
		if name == "healthy" {
			plan.Pages = append(plan.Pages, pageAt{"problems", "http://" + address + "/problems"})
		}
	}
	text, err := json.Marshal(plan)
	if err != nil {
		t.Fatal(err)
	}
	command := browser(t, "look.mjs", string(text))
	var stderr bytes.Buffer
	command.Stderr = &stderr
	out, err := command.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, stderr.String())
	}
	var findings []finding
	if err := json.Unmarshal(out, &findings); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if len(findings) != 2*len(plan.Pages) {
		t.Errorf("%d findings", len(findings))
	}
	says := map[string][]string{
		"healthy":  {"healthy", "verified so far", "None holds."},
		"incident": {"broken", "hollow_update", "18.6.4", "server_resends", "It stopped here.", "expired"},
		"files":    {"broken", "credential_files_complete", "cert-chain.pem, key.pem, root-cert.pem", "OUTPUT_CERTS"},
		"unknown":  {"unknown", "No certificate was seen yet", "not seen", "has not answered yet", "None that could be seen; not everything could."},
		"problems": {"delivery_overdue", "server_resends", "Advice"},
	}
	for _, f := range findings {
		where := f.Name + ", " + f.Look
		for _, want := range says[f.Name] {
			if !strings.Contains(f.Text, want) {
				t.Errorf("%s: %q is not said:\n%s", where, want, f.Text)
			}
		}
		if len(f.Errors)+len(f.Elsewhere) > 0 {
			t.Errorf("%s: errors %q, asked elsewhere %q", where, f.Errors, f.Elsewhere)
		}
		if f.Overflow > 0 {
			t.Errorf("%s: wider than the screen by %d", where, f.Overflow)
		}
		if f.Links == 0 || f.Reached < f.Links {
			t.Errorf("%s: %d of %d links are reached by keyboard", where, f.Reached, f.Links)
		}
		for _, v := range f.Violations {
			if v.Impact == "minor" || v.Impact == "moderate" {
				t.Logf("%s: %s (%s): %v", where, v.Help, v.Impact, v.Nodes)
				continue
			}
			t.Errorf("%s: %s: %s (%s): %v", where, v.ID, v.Help, v.Impact, v.Nodes)
		}
	}
}

// TestThePageFollows: the page takes a new verdict without making anew what has
// not changed, keeps the focus, and says so when the watchdog is gone.
func TestThePageFollows(t *testing.T) {
	t.Parallel()
	all := scenes()
	var now atomic.Pointer[rotation.Verdict]
	healthy, incident := all["healthy"], all["incident"]
	now.Store(&healthy)
	cfg := config()
	cfg.Verdict = func() rotation.Verdict { return *now.Load() }
	address, stop := startUntil(t, cfg)
	command := browser(t, "follow.mjs", "http://"+address+"/")
	stderr, err := command.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	command.Stdout = &out
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	var said []string
	for lines := bufio.NewScanner(stderr); lines.Scan(); {
		said = append(said, lines.Text())
		switch lines.Text() {
		case "healthy":
			now.Store(&incident)
		case "broken":
			stop()
		}
	}
	if err := command.Wait(); err != nil {
		t.Fatalf("%v: %q", err, said)
	}
	var seen struct {
		Broken struct {
			Kept, Focus    bool
			Title, Stopped string
		}
		Gone struct{ Alert, Verdict string }
	}
	if err := json.Unmarshal(out.Bytes(), &seen); err != nil {
		t.Fatal(err)
	}
	if b := seen.Broken; !b.Kept || !b.Focus || !strings.Contains(b.Title, "broken") || b.Stopped != "delivered" {
		t.Errorf("%+v", b)
	}
	if g := seen.Gone; !strings.Contains(g.Alert, "does not answer") || g.Verdict != "unknown" {
		t.Errorf("%+v", g)
	}
}

// getAs gets a page as somebody who accepts a kind of content.
func getAs(t *testing.T, url, accept string) (http.Header, string) {
	t.Helper()
	status, header, body := ask(t, http.MethodGet, url, func(r *http.Request, _ *http.Transport) { r.Header.Set("Accept", accept) })
	if status != http.StatusOK {
		t.Errorf("%s: %d", url, status)
	}
	return header, body
}

// TestPageSize: the page is one answer of a few KB, and refers to nothing that
// it does not serve itself.
func TestPageSize(t *testing.T) {
	address := start(t, config())
	for path, most := range map[string]int{"/": 20 << 10, "/problems": 40 << 10} {
		header, body := getAs(t, "http://"+address+path, "text/html,application/xhtml+xml")
		if len(body) > most || !strings.HasPrefix(body, "<!doctype html>") {
			t.Errorf("%s: %d bytes, at most %d", path, len(body), most)
		}
		policy := header.Get("Content-Security-Policy")
		for _, part := range []string{"default-src 'none'", "frame-ancestors 'none'", "base-uri 'none'", "sha256-"} {
			if !strings.Contains(policy, part) {
				t.Errorf("%s: %q is not in the policy %q", path, part, policy)
			}
		}
		if strings.Contains(policy, "unsafe") || slices.Contains([]string{"", "*"}, policy) {
			t.Errorf("%s: the policy is %q", path, policy)
		}
		if strings.Contains(strings.ReplaceAll(body, "http://www.w3.org/2000/svg", ""), "http") {
			t.Errorf("%s refers to other places", path)
		}
	}
	for _, d := range rotation.Catalogue() {
		if _, body := getAs(t, "http://"+address+"/problems", "text/html"); !strings.Contains(body, fmt.Sprintf("id=%q", d.Name)) {
			t.Errorf("%s has no runbook", d.Name)
		}
	}
	if _, body := getAs(t, "http://"+address+"/?text", "text/html"); !strings.HasPrefix(body, "svid-watchdog") {
		t.Errorf("?text: %s", body)
	}
}
