package web_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"golang.org/x/crypto/bcrypt"

	"svid-watchdog/internal/rotation"
	"svid-watchdog/internal/web"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func verdict() rotation.Verdict {
	l := rotation.NewLedger(rotation.Config{})
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	l.RecordFiles(rotation.CredentialFiles{At: now, DirExists: true, Present: map[rotation.CredentialFile]bool{
		rotation.CertChainFile: true, rotation.KeyFile: true, rotation.RootCertFile: true,
	}})
	leaf := rotation.Certificate{
		SPIFFEID: "spiffe://example.test/a", Serial: "abc", Issuer: "CN=x", NotBefore: now, NotAfter: now.Add(time.Hour),
		SHA256: rotation.Fingerprint{1}, Chain: [][]byte{[]byte("BYTES-OF-THE-CHAIN")},
	}
	l.RecordIssuance(rotation.Issuance{At: now, Stream: 1, Leaf: leaf, SPIFFEIDs: []string{leaf.SPIFFEID}})
	return l.Judge(now.Add(time.Minute))
}

func config() web.Config {
	return web.Config{
		ListenAddress: "127.0.0.1:0",
		Verdict:       verdict,
		Ready:         func() bool { return true },
		Registry:      prometheus.NewRegistry(),
		Version:       "v1.2.3",
		Log:           slog.New(slog.DiscardHandler),
	}
}

// start runs a server and returns its address.
func start(t *testing.T, cfg web.Config) string {
	t.Helper()
	address, _ := startUntil(t, cfg)
	return address
}

// startUntil runs a server that can be stopped before the test ends.
func startUntil(t *testing.T, cfg web.Config) (address string, stop func()) {
	t.Helper()
	s, err := web.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the server ended with %v", err)
		}
	})
	t.Cleanup(stop)
	return s.Address(), stop
}

// ask sends one request on a connection of its own.
func ask(t *testing.T, method, url string, setup func(*http.Request, *http.Transport)) (int, http.Header, string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{DisableKeepAlives: true}
	if setup != nil {
		setup(request, transport)
	}
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, response.Header, string(text)
}

func TestPaths(t *testing.T) {
	base := "http://" + start(t, config())
	for _, tt := range []struct {
		method, path string
		status       int
		contains     string
	}{
		{"GET", "/metrics", 200, ""},
		{"HEAD", "/metrics", 200, ""},
		{"GET", "/healthz", 200, "ok"},
		{"GET", "/readyz", 200, "ok"},
		{"GET", "/api/v1/status", 200, `"credential_files_complete"`},
		{"GET", "/", 200, "Istio's agent will leave the socket"},
		{"GET", "/nowhere", 404, ""},
		{"GET", "/debug/pprof/", 404, ""},
		{"POST", "/metrics", 405, ""},
		{"PUT", "/api/v1/status", 405, ""},
		{"DELETE", "/", 405, ""},
	} {
		status, header, text := ask(t, tt.method, base+tt.path, nil)
		if status != tt.status || !strings.Contains(text, tt.contains) {
			t.Errorf("%s %s: %d %q", tt.method, tt.path, status, text)
		}
		if header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s %s: headers %v", tt.method, tt.path, header)
		}
	}
}

// TestStatus: the document is the verdict, and holds no bytes of a chain.
func TestStatus(t *testing.T) {
	_, _, text := ask(t, "GET", "http://"+start(t, config())+"/api/v1/status", nil)
	var status web.Status
	if err := json.Unmarshal([]byte(text), &status); err != nil {
		t.Fatal(err)
	}
	if status.Version != "v1.2.3" || status.State != rotation.Broken || !status.Has(rotation.CredentialFilesComplete) {
		t.Errorf("%+v", status)
	}
	if c := status.Stage(rotation.Issued).Certificate; c == nil || c.Serial != "abc" || c.SHA256 == "" {
		t.Errorf("issued: %+v", c)
	}
	if strings.Contains(text, "BYTES-OF") || strings.Contains(text, "QllURVM") {
		t.Error("the status holds the chain")
	}
}

func TestNotReadyBeforeAJudgement(t *testing.T) {
	cfg := config()
	cfg.Ready = func() bool { return false }
	base := "http://" + start(t, cfg)
	if status, _, _ := ask(t, "GET", base+"/readyz", nil); status != http.StatusServiceUnavailable {
		t.Errorf("readyz: %d", status)
	}
	if status, _, _ := ask(t, "GET", base+"/healthz", nil); status != http.StatusOK {
		t.Errorf("healthz: %d", status)
	}
}

func TestBadWebConfig(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"unknown.yml": "tls_server_conf: {}\n",
		"nofile.yml":  "tls_server_config: {cert_file: nowhere.crt, key_file: nowhere.key}\n",
		"notyaml.yml": "\t:",
	} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		cfg := config()
		cfg.ConfigFile = path
		if s, err := web.New(cfg); err == nil {
			s.Close()
			t.Errorf("%s was accepted", name)
		} else if !strings.Contains(err.Error(), path) {
			t.Errorf("%s: the error does not name the file: %v", name, err)
		}
	}
	cfg := config()
	cfg.ConfigFile = filepath.Join(dir, "missing.yml")
	if s, err := web.New(cfg); !errors.Is(err, os.ErrNotExist) {
		if s != nil {
			s.Close()
		}
		t.Errorf("a missing file: %v", err)
	}
}

func TestBasicAuth(t *testing.T) {
	hash, err := bcrypt.GenerateFromPassword([]byte("right"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "web.yml")
	if err := os.WriteFile(path, fmt.Appendf(nil, "basic_auth_users:\n  scraper: %s\n", hash), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := config()
	cfg.ConfigFile = path
	base := "http://" + start(t, cfg)
	if status, _, _ := ask(t, "GET", base+"/metrics", nil); status != http.StatusUnauthorized {
		t.Errorf("without a password: %d", status)
	}
	for password, want := range map[string]int{"wrong": http.StatusUnauthorized, "right": http.StatusOK} {
		status, _, _ := ask(t, "GET", base+"/metrics", func(r *http.Request, _ *http.Transport) { r.SetBasicAuth("scraper", password) })
		if status != want {
			t.Errorf("with the %s password: %d, want %d", password, status, want)
		}
	}
}

func TestTLS(t *testing.T) {
	dir := t.TempDir()
	writeKeyPair(t, dir)
	path := filepath.Join(dir, "web.yml")
	if err := os.WriteFile(path, []byte("tls_server_config: {cert_file: tls.crt, key_file: tls.key}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := config()
	cfg.ConfigFile = path
	status, _, text := ask(t, "GET", "https://"+start(t, cfg)+"/healthz", func(_ *http.Request, tr *http.Transport) {
		tr.TLSClientConfig = &tls.Config{InsecureSkipVerify: true} //nolint:gosec // the certificate is the test's own
	})
	if status != http.StatusOK || strings.TrimSpace(text) != "ok" {
		t.Errorf("%d %q", status, text)
	}
}

func TestPortTaken(t *testing.T) {
	cfg := config()
	cfg.ListenAddress = start(t, config())
	if s, err := web.New(cfg); err == nil {
		s.Close()
		t.Error("a taken port was accepted")
	}
}
