package webconfig_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	toolkit "github.com/prometheus/exporter-toolkit/web"
	"go.uber.org/goleak"
	"golang.org/x/crypto/bcrypt"

	"svid-watchdog/internal/webconfig"
)

// The exporter-toolkit says what a web configuration means: in these tests it
// and we read the same files and are asked the same things.

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var quiet = slog.New(slog.DiscardHandler)

// authority signs certificates of the test.
type authority struct {
	t    testing.TB
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	next int64
}

func newAuthority(t testing.TB, dir, name string) *authority {
	a := &authority{t: t, dir: dir, next: 1}
	a.cert, a.key = a.make(name, &x509.Certificate{IsCA: true, BasicConstraintsValid: true}, nil)
	return a
}

// make writes name.crt and name.key, signed by parent or by itself.
func (a *authority) make(name string, template, parent *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	template.SerialNumber = big.NewInt(a.next)
	a.next++
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	signer := a.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	for suffix, block := range map[string]*pem.Block{
		".crt": {Type: "CERTIFICATE", Bytes: der}, ".key": {Type: "PRIVATE KEY", Bytes: keyDER},
	} {
		if err := os.WriteFile(filepath.Join(a.dir, name+suffix), pem.EncodeToMemory(block), 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert, key
}

func (a *authority) sign(name string, template *x509.Certificate) { a.make(name, template, a.cert) }

// files writes what the configurations of the tests name, and returns where.
func files(t testing.TB) string {
	dir := t.TempDir()
	ours, theirs := newAuthority(t, dir, "ca"), newAuthority(t, dir, "other-ca")
	spiffe := []*url.URL{{Scheme: "spiffe", Host: "example.test", Path: "/prometheus"}}
	ours.sign("server", &x509.Certificate{DNSNames: []string{"localhost"}})
	ours.sign("server2", &x509.Certificate{DNSNames: []string{"localhost"}})
	usage := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	ours.sign("client", &x509.Certificate{URIs: spiffe, ExtKeyUsage: usage})
	ours.sign("stranger", &x509.Certificate{
		DNSNames: []string{"stranger.test"}, EmailAddresses: []string{"a@b.test"}, IPAddresses: []net.IP{net.IPv4(192, 0, 2, 7)}, ExtKeyUsage: usage,
	})
	theirs.sign("forger", &x509.Certificate{URIs: spiffe, ExtKeyUsage: usage})
	return dir
}

func hash(t testing.TB, password string) string {
	t.Helper()
	h, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	return string(h)
}

func write(t testing.TB, path, text string) {
	t.Helper()
	// By a rename, as a mounted ConfigMap changes.
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// TestToolkitsExamples: each configuration that the toolkit brings along for
// its own tests is accepted or refused here as it is there.
func TestToolkitsExamples(t *testing.T) {
	out, err := exec.Command("go", "list", "-f", "{{.Dir}}", "github.com/prometheus/exporter-toolkit/web").Output()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(strings.TrimSpace(string(out)), "testdata")
	examples, err := filepath.Glob(filepath.Join(dir, "*.y*ml"))
	if err != nil || len(examples) < 30 {
		t.Fatalf("%d examples in %s: %v", len(examples), dir, err)
	}
	good, bad := 0, 0
	for _, path := range examples {
		want := toolkit.Validate(path)
		if want == nil {
			good++
		} else {
			bad++
		}
		if _, got := webconfig.Open(path, quiet); (got == nil) != (want == nil) {
			t.Errorf("%s: we say %v, the toolkit %v", filepath.Base(path), got, want)
		}
	}
	if good < 10 || bad < 10 {
		t.Errorf("%d good examples and %d bad ones prove little", good, bad)
	}
}

// FuzzSameAsToolkit: a file is accepted exactly when the toolkit accepts it.
func FuzzSameAsToolkit(f *testing.F) {
	dir := files(f)
	for _, text := range append(configs(f), "", "a", "{}", "null", "[]", "tls_server_config:", "tls_server_config: {}", "rate_limit: {interval: 1}",
		"rate_limit: {interval: 1h, burst: -1}", "rate_limit: {interval: [1]}", "basic_auth_users: {a: b}", "basic_auth_users: {a: }", "basic_auth_users: [a]",
		"http_server_config: {http2: 3}", "http_server_config: {headers: {X-Frame-Options: allow}}", "http_server_config: {headers: {Server: x}}",
		"http_server_config: {headers: {X-XSS-Protection: [1]}}", "tls_server_config: {min_version: 12}", "tls_server_config: {min_version: }",
		"tls_server_config: {cert: x}", "tls_server_config: {key: x}", "tls_server_config: {client_auth_type: x}", "tls_server_config: {client_ca: x}",
		"tls_server_config: {cert_file: server.crt, key_file: client.key}", "tls_server_config: {cert_file: server.crt, key_file: server.key, client_ca: x}",
		"tls_server_config: {cert_file: server.crt, key_file: server.key, client_ca_file: nowhere, client_auth_type: RequestClientCert}",
		"tls_server_config: {cert_file: server.crt, key_file: server.key, client_auth_type: Please}",
		"tls_server_config: {cert_file: server.crt, key_file: server.key, cipher_suites: [TLS_RSA_WITH_RC4_128_SHA]}",
		"tls_server_config: {cert_file: server.crt, key_file: server.key, cipher_suites: [null], curve_preferences: [~]}",
		"tls_server_config: {cert_file: server.crt, key_file: server.key, curve_preferences: [X25519MLKEM768]}",
		"tls_server_config: {cert_file: server.crt, cert_file: server.crt}", "tls_server_config: &a {cert: *a}", "a: &a [1]\nb: *a", "---\n---\n", "\t:",
	) {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		path := filepath.Join(dir, "web.yml")
		write(t, path, text)
		want := toolkit.Validate(path)
		if _, got := webconfig.Open(path, quiet); (got == nil) != (want == nil) {
			t.Errorf("%q: we say %v, the toolkit %v", text, got, want)
		}
	})
}

// configs are good configurations; relative paths are those of files.
func configs(t testing.TB) []string {
	const pair = "cert_file: server.crt, key_file: server.key"
	users := fmt.Sprintf("basic_auth_users:\n  scraper: %s\n  other: %s\n", hash(t, "right"), hash(t, "other's"))
	dir := files(t)
	inline := func(name string) string {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return strings.ReplaceAll(string(text), "\n", "\n    ")
	}
	return []string{
		"{}\n",
		users,
		"basic_auth_users: {}\n",
		"tls_server_config: {" + pair + "}\n",
		"tls_server_config: {" + pair + "}\n" + users,
		"tls_server_config: {" + pair + ", min_version: TLS13}\n",
		"tls_server_config: {" + pair + ", min_version: TLS10, max_version: TLS11, prefer_server_cipher_suites: false}\n",
		"tls_server_config: {" + pair + ", max_version: TLS12, cipher_suites: [TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384]}\nhttp_server_config: {http2: false}\n",
		"tls_server_config: {" + pair + ", curve_preferences: [CurveP256, CurveP384]}\n",
		"tls_server_config: {" + pair + ", curve_preferences: [CurveP521]}\n",
		"tls_server_config: {" + pair + ", curve_preferences: [X25519]}\n",
		"tls_server_config: {" + pair + ", client_auth_type: NoClientCert}\n",
		"tls_server_config: {" + pair + ", client_auth_type: RequestClientCert}\n",
		"tls_server_config: {" + pair + ", client_auth_type: RequestClientCert, client_allowed_sans: [\"spiffe://example.test/prometheus\"]}\n",
		"tls_server_config: {" + pair + ", client_auth_type: VerifyClientCertIfGiven, client_ca_file: ca.crt, client_allowed_sans: [stranger.test]}\n",
		"tls_server_config: {" + pair + ", client_allowed_sans: [stranger.test]}\n",
		"tls_server_config: {" + pair + ", client_auth_type: RequireClientCert}\n",
		"tls_server_config: {" + pair + ", client_auth_type: RequireAnyClientCert, client_allowed_sans: [stranger.test]}\n",
		"tls_server_config: {" + pair + ", client_auth_type: RequireAnyClientCert, client_allowed_sans: []}\n",
		"tls_server_config: {" + pair + ", client_auth_type: VerifyClientCertIfGiven, client_ca_file: ca.crt}\n",
		"tls_server_config: {" + pair + ", client_auth_type: RequireAndVerifyClientCert, client_ca_file: ca.crt}\n",
		"tls_server_config: {" + pair + ", client_auth_type: RequireAndVerifyClientCert, client_ca_file: server.key}\n", // nobody is admitted
		"tls_server_config: {" + pair + ", client_auth_type: RequireAndVerifyClientCert, client_ca_file: ca.crt, client_allowed_sans: [192.0.2.7]}\n",
		"tls_server_config: {" + pair + ", client_auth_type: RequireAndVerifyClientCert, client_ca_file: ca.crt, client_allowed_sans: [a@b.test, x]}\n",
		"tls_server_config: {" + pair + ", client_auth_type: RequireAndVerifyClientCert, client_ca_file: ca.crt, client_allowed_sans: [\"spiffe://example.test/prometheus\"]}\n" + users,
		"tls_server_config:\n  cert: |\n    " + inline("server.crt") + "\n  key: |\n    " + inline("server.key") + "\n  client_auth_type: RequireAnyClientCert\n",
		"http_server_config: {headers: {X-Frame-Options: deny, Strict-Transport-Security: max-age=1, X-Content-Type-Options: nosniff}}\n" + users,
		"http_server_config: {http2: false}\ntls_server_config: {" + pair + "}\n",
		"rate_limit: {interval: 1h, burst: 2}\n",
		"rate_limit: {interval: 1h}\n",
		"rate_limit: {interval: -1s}\n",
		"rate_limit: {burst: 1}\n",
	}
}

// hello is what both serve.
var hello = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Frame-Options-Before", w.Header().Get("X-Frame-Options"))
	fmt.Fprintf(w, "hello by %s", r.Proto)
})

// server serves one file, here or there.
type server struct{ address string }

func serve(t *testing.T, run func(net.Listener, *http.Server) error) server {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: hello, ReadHeaderTimeout: 5 * time.Second, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)}
	ended := make(chan error, 1)
	go func() { ended <- run(l, s) }()
	t.Cleanup(func() {
		if err := s.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	return server{l.Addr().String()}
}

// both serves the file by the toolkit and by us.
func both(t *testing.T, path string) (theirs, ours server) {
	t.Helper()
	f, err := webconfig.Open(path, quiet)
	if err != nil {
		t.Fatal(err)
	}
	no := false
	theirs = serve(t, func(l net.Listener, s *http.Server) error {
		return toolkit.Serve(l, s, &toolkit.FlagConfig{WebSystemdSocket: &no, WebListenAddresses: &[]string{l.Addr().String()}, WebConfigFile: &path}, quiet)
	})
	return theirs, serve(t, f.Serve)
}

// probe is one way to ask.
type probe struct {
	tls                    bool
	min, max               uint16
	client, user, password string
	protocols              []string
}

// ask asks once on a connection of its own, and says what came of it.
func (s server) ask(t *testing.T, dir string, p probe) string {
	t.Helper()
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", s.address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	said := "plain"
	if p.tls {
		config := &tls.Config{InsecureSkipVerify: true, MinVersion: p.min, MaxVersion: p.max, NextProtos: p.protocols}
		if p.client != "" {
			pair, err := tls.LoadX509KeyPair(filepath.Join(dir, p.client+".crt"), filepath.Join(dir, p.client+".key"))
			if err != nil {
				t.Fatal(err)
			}
			// Sent whatever authorities the server names.
			config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
		}
		secure := tls.Client(conn, config)
		if err := secure.Handshake(); err != nil {
			return "no handshake"
		}
		state := secure.ConnectionState()
		said = fmt.Sprintf("%s, %s, curve %s, protocol %q, serial %s",
			tls.VersionName(state.Version), tls.CipherSuiteName(state.CipherSuite), state.CurveID, state.NegotiatedProtocol, state.PeerCertificates[0].SerialNumber)
		conn = secure
	}
	request := "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
	if p.user != "" {
		request += "Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(p.user+":"+p.password)) + "\r\n"
	}
	if _, err := io.WriteString(conn, request+"\r\n"); err != nil {
		return said + ", nothing was sent"
	}
	// With TLS 1.3 a client learns only here that it was refused.
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return said + ", no answer"
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	response.Header.Del("Date")
	return fmt.Sprintf("%s, %s, %v, %q", said, response.Status, response.Header, body)
}

func probes() []probe {
	all := []probe{
		{}, {user: "scraper", password: "right"}, {user: "scraper", password: "wrong"}, {user: "nobody", password: "right"},
		{user: "other", password: "right"}, {user: "other", password: "other's"}, {user: "scraper", password: "right"},
	}
	for _, v := range []uint16{tls.VersionTLS10, tls.VersionTLS11, tls.VersionTLS12, tls.VersionTLS13} {
		all = append(all, probe{tls: true, min: v, max: v, protocols: []string{"http/1.1"}})
	}
	for _, client := range []string{"", "client", "stranger", "forger"} {
		for _, password := range []string{"right", "wrong"} {
			all = append(all, probe{tls: true, client: client, user: "scraper", password: password})
		}
	}
	return all
}

// TestSameAnswers: whoever asks gets from us what the toolkit gives, whatever
// the configuration.
func TestSameAnswers(t *testing.T) {
	dir := files(t)
	distinct := make(map[string]bool)
	for i, text := range configs(t) {
		path := filepath.Join(dir, fmt.Sprintf("web%d.yml", i))
		write(t, path, text)
		theirs, ours := both(t, path)
		for _, p := range probes() {
			want, got := theirs.ask(t, dir, p), ours.ask(t, dir, p)
			if got != want {
				t.Errorf("%s%+v\nwe:          %s\nthe toolkit: %s", text, p, got, want)
			}
			distinct[got] = true
		}
	}
	if len(distinct) < 20 {
		t.Errorf("only %d distinct answers prove little", len(distinct))
	}
}

// TestReload: a file that changes holds for the next request and the next
// handshake, whether it became better or worse.
func TestReload(t *testing.T) {
	dir := files(t)
	const pair = "tls_server_config: {cert_file: server.crt, key_file: server.key}\n"
	users := func(password string) string { return "basic_auth_users: {scraper: " + hash(t, password) + "}\n" }
	for name, steps := range map[string][]string{
		"plain": {"{}", users("right"), users("wrong"), "junk", users("right"), "basic_auth_users: {scraper: no hash}", ""},
		"TLS": {
			pair, pair + users("right"), "tls_server_config: {cert_file: server2.crt, key_file: server2.key}", "junk: 1", pair,
			"tls_server_config: {cert_file: nowhere, key_file: nowhere}", pair,
			"tls_server_config: {cert_file: server.crt, key_file: server.key, client_auth_type: RequireAndVerifyClientCert, client_ca_file: ca.crt}",
			"tls_server_config: {cert_file: server.crt, key_file: server.key, client_auth_type: RequireAndVerifyClientCert, client_ca_file: other-ca.crt}",
			"tls_server_config: {cert_file: server.crt, key_file: server.key, max_version: TLS12}", "{}", pair, users("right"), pair,
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(dir, name+".yml")
			write(t, path, steps[0])
			theirs, ours := both(t, path)
			before := ""
			for i, text := range steps {
				write(t, path, text)
				all := ""
				for _, p := range probes() {
					want, got := theirs.ask(t, dir, p), ours.ask(t, dir, p)
					if got != want {
						t.Errorf("step %d, %s\n%+v\nwe:          %s\nthe toolkit: %s", i, text, p, got, want)
					}
					all += got
				}
				if all == before {
					t.Errorf("step %d changed nothing", i)
				}
				before = all
			}
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			for _, p := range probes() {
				if want, got := theirs.ask(t, dir, p), ours.ask(t, dir, p); got != want || strings.Contains(got, "200 OK") {
					t.Errorf("without the file: we %s, the toolkit %s", got, want)
				}
			}
		})
	}
}

// TestNoHTTP2 is the one difference: the toolkit speaks HTTP/2 over TLS, we
// never do, however the program was built.
func TestNoHTTP2(t *testing.T) {
	dir := files(t)
	path := filepath.Join(dir, "web.yml")
	write(t, path, "tls_server_config: {cert_file: server.crt, key_file: server.key}\nhttp_server_config: {http2: true}\n")
	theirs, ours := both(t, path)
	p := probe{tls: true, protocols: []string{"h2", "http/1.1"}}
	if got := ours.ask(t, dir, p); !strings.Contains(got, `protocol "http/1.1"`) || !strings.Contains(got, "200 OK") {
		t.Error(got)
	}
	if got := theirs.ask(t, dir, p); !strings.Contains(got, `protocol "h2"`) {
		t.Errorf("the toolkit changed, and so should the package comment: %s", got)
	}
}

// TestNoResumption: a client whose certificate is not admitted any more does
// not come in by a session from when it was.
func TestNoResumption(t *testing.T) {
	dir := files(t)
	path := filepath.Join(dir, "web.yml")
	const text = "tls_server_config: {cert_file: server.crt, key_file: server.key, client_auth_type: RequireAnyClientCert, client_allowed_sans: [%q]}"
	write(t, path, fmt.Sprintf(text, "stranger.test"))
	_, ours := both(t, path)
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "stranger.crt"), filepath.Join(dir, "stranger.key"))
	if err != nil {
		t.Fatal(err)
	}
	config := &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{pair}, ClientSessionCache: tls.NewLRUClientSessionCache(1)}
	get := func() error {
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}}
		response, err := client.Get("https://" + ours.address)
		if err != nil {
			return err
		}
		defer response.Body.Close()
		_, err = io.Copy(io.Discard, response.Body)
		return err
	}
	if err := get(); err != nil {
		t.Fatal(err)
	}
	write(t, path, fmt.Sprintf(text, "somebody.else"))
	if err := get(); err == nil {
		t.Error("a session was resumed that is not admitted any more")
	}
}
