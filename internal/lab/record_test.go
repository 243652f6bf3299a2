package lab

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"

	"svid-watchdog/internal/envoy"
	"svid-watchdog/internal/rotation"
)

// recordedVersions are the Envoys whose answers are kept. The tests of
// internal/envoy that read them have the same list.
var recordedVersions = []string{"1.36.4", "1.37.0", "1.38.3", "1.39.3", "1.40.0"}

const (
	// neutralDir stands in the recorded answers for the directory that a
	// recording was made in, so that each recording shows the same one.
	neutralDir = "/tmp/svid-record"
	statsName  = "sds_stats"
	// hiddenName is the question for the statistics, asked of an Envoy whose
	// stats matcher hides them.
	hiddenName = "sds_stats_hidden"
)

// TestRecord plays a script on each real Envoy and writes what Envoy answered
// to the directory that RECORD names. What the answers mean is for the tests of
// internal/envoy, which read them. Without RECORD it shows that they can be
// recorded anew: the same questions are answered as in what is kept.
func TestRecord(t *testing.T) {
	out := os.Getenv("RECORD")
	if out == "" {
		out = t.TempDir()
	}
	for _, version := range recordedVersions {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			path, err := filepath.Abs(filepath.Join("..", "..", ".neighbours", "envoy", version, "envoy"))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(path); err != nil {
				// Not skipped, unlike elsewhere: a recording with a version
				// missing is none.
				t.Fatalf("%v: run `make neighbours`", err)
			}
			files := make(map[string][]byte)
			recordScript(t, path, true, func(name string) bool { return name != hiddenName }, files)
			recordScript(t, path, false, func(name string) bool { return name == hiddenName }, files)
			writeRecording(t, filepath.Join(out, version), files)
			kept := filepath.Join("..", "envoy", "testdata", "recorded", version)
			if got, want := questions(t, filepath.Join(out, version)), questions(t, kept); !slices.Equal(got, want) {
				t.Errorf("recorded are answers to %v, kept are answers to %v", got, want)
			}
		})
	}
}

// questions are those that a directory has answers to.
func questions(t *testing.T, dir string) (out []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		_, rest, _ := strings.Cut(e.Name(), ".")
		question, _, _ := strings.Cut(rest, ".")
		if !slices.Contains(out, question) {
			out = append(out, question)
		}
	}
	slices.Sort(out)
	return out
}

// writeRecording replaces what was recorded before; nothing is touched unless
// the whole script went well.
func writeRecording(t *testing.T, dir string, files map[string][]byte) {
	t.Helper()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	total := 0
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
			t.Fatal(err)
		}
		total += len(content)
	}
	t.Logf("%d files with %d bytes in %s", len(files), total, dir)
}

// recorder stands between the watchdog's client and Envoy, so that what is
// recorded answers the very questions that the client asks.
type recorder struct {
	t     *testing.T
	stats string // the name of the question for the statistics
	dir   string // Envoy's, not to be seen in what is written
	keep  func(name string) bool
	files map[string][]byte

	mu   sync.Mutex
	last map[string][]byte // the latest answers, by question

	step    int
	written map[string][]byte // what was written last, by question
	state   string            // Envoy's, when server_info was written last
}

// question names what a path asks for, in the words of internal/envoy.
func (r *recorder) question(u *url.URL) string {
	switch u.Path {
	case "/server_info":
		return "server_info"
	case "/certs":
		return "certs"
	case "/clusters":
		return "clusters"
	case "/stats":
		return r.stats
	case "/config_dump":
		switch u.Query().Get("resource") {
		case "dynamic_active_secrets":
			return "active_secrets"
		case "dynamic_warming_secrets":
			return "warming_secrets"
		}
	}
	return ""
}

// proxy forwards to Envoy's admin address and keeps the answers.
func (r *recorder) proxy(address string) *httptest.Server {
	target, err := url.Parse(address)
	if err != nil {
		r.t.Fatal(err)
	}
	forward := &httputil.ReverseProxy{
		// The question goes on exactly as it came.
		Rewrite:   func(p *httputil.ProxyRequest) { p.Out.URL.Scheme, p.Out.URL.Host = target.Scheme, target.Host },
		Transport: &http.Transport{DisableCompression: true, DisableKeepAlives: true},
		ModifyResponse: func(response *http.Response) error {
			name := r.question(response.Request.URL)
			if name == "" || response.StatusCode != http.StatusOK {
				r.t.Errorf("%s is answered with status %d", response.Request.URL, response.StatusCode)
				return nil
			}
			body, err := io.ReadAll(response.Body)
			response.Body.Close()
			if err != nil {
				return err
			}
			r.mu.Lock()
			r.last[name] = body
			r.mu.Unlock()
			response.Body = io.NopCloser(bytes.NewReader(body))
			return nil
		},
	}
	server := httptest.NewServer(forward)
	r.t.Cleanup(server.Close)
	return server
}

// write keeps the answers of the latest look as those of the next step, but
// for those that are the same as in the step before.
func (r *recorder) write(step string, seen rotation.Envoy) {
	r.t.Helper()
	r.step++
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, raw := range r.last {
		if !r.keep(name) {
			continue
		}
		body := bytes.ReplaceAll(raw, []byte(r.dir), []byte(neutralDir))
		extension := ".json"
		switch name {
		case statsName, hiddenName:
			extension = ".txt"
		case "server_info":
			// Its uptime always differs and the rest never does.
			if seen.State == r.state {
				continue
			}
			r.state, extension = seen.State, ".json.gz"
		}
		if before, known := r.written[name]; known && bytes.Equal(before, body) {
			continue
		}
		r.written[name] = body
		file := fmt.Sprintf("%02d-%s.%s%s", r.step, step, name, extension)
		r.check(file, body)
		if extension == ".json.gz" {
			body = r.compress(body)
		}
		r.files[file] = body
	}
}

// check fails on what must not be published.
func (r *recorder) check(file string, body []byte) {
	r.t.Helper()
	here, err := os.Getwd()
	if err != nil {
		r.t.Fatal(err)
	}
	root := filepath.Dir(filepath.Dir(here))
	switch {
	case showsKey(body):
		r.t.Fatalf("%s shows a private key", file)
	case bytes.Contains(body, []byte(root)):
		r.t.Fatalf("%s shows the path %s", file, root)
	}
}

// showsKey looks for the label of a PEM private key, in clear and in Base64,
// where it looks different at each of three alignments. Envoy shows inline
// bytes in Base64.
func showsKey(body []byte) bool {
	const label = "PRIVATE KEY"
	if bytes.Contains(body, []byte(label)) {
		return true
	}
	for shift := range 3 {
		encoded := base64.RawStdEncoding.EncodeToString([]byte(strings.Repeat("-", shift) + label))
		// Without the characters that hold bits of the label's neighbours.
		encoded = encoded[(shift*8+5)/6 : (shift+len(label))*8/6]
		if bytes.Contains(body, []byte(encoded)) {
			return true
		}
	}
	return false
}

// TestShowsKey: the guard of the recorder finds a key wherever it begins.
func TestShowsKey(t *testing.T) {
	_, pkcs8, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	for shift := range 3 {
		text := append(bytes.Repeat([]byte{'\n'}, shift), keyPEM(pkcs8)...)
		if !showsKey(text) || !showsKey([]byte(base64.StdEncoding.EncodeToString(text))) {
			t.Errorf("a key %d bytes into the text is not found", shift)
		}
	}
	if ca, err := newAuthority(TrustDomain, time.Now()); err != nil || showsKey(certificatePEM(ca.certificate)) {
		t.Errorf("a certificate is taken for a key (%v)", err)
	}
}

func (r *recorder) compress(body []byte) []byte {
	var out bytes.Buffer
	w, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
	if err != nil {
		r.t.Fatal(err)
	}
	if _, err := w.Write(body); err != nil {
		r.t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		r.t.Fatal(err)
	}
	return out.Bytes()
}

// recordScript plays the script of the recordings on an Envoy and adds the
// answers that keep names to files.
func recordScript(t *testing.T, path string, stats bool, keep func(name string) bool, files map[string][]byte) {
	t.Helper()
	// Not TMPDIR's directory: it would be seen in the answers.
	dir, err := os.MkdirTemp("/tmp", "svid-record-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	ca, err := newAuthority(TrustDomain, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	issue := func() *svid {
		id, err := ca.issue(SPIFFEID, time.Now().Add(-time.Minute), time.Now().Add(time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	good := func() *tlsv3.Secret {
		id := issue()
		return identityOf(certificatePEM(id.leaf), keyPEM(id.key))
	}

	s := newScript(t, filepath.Join(dir, "socket"))
	s.listen()
	e, err := NewRealEnvoy(RealEnvoyConfig{Path: path, SDSSocket: s.socket, Dir: dir, SDSStats: stats})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	if err := e.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	r := &recorder{
		t: t, stats: statsName, dir: dir, keep: keep, files: files,
		last: make(map[string][]byte), written: make(map[string][]byte),
	}
	if !stats {
		r.stats = hiddenName
	}
	client, err := envoy.New(envoy.Config{
		Address: r.proxy(e.AdminAddress()).URL, SDSCluster: "sds-grpc", IdentitySecret: identitySecret, BundleSecret: bundleSecret,
		PollInterval: time.Second, BudgetPercent: 100,
	})
	if err != nil {
		t.Fatal(err)
	}
	var seen rotation.Envoy
	look := func() rotation.Envoy {
		seen = client.Look(t.Context())
		if seen.Err+seen.Incomplete != "" {
			t.Fatal(seen.Err + seen.Incomplete)
		}
		return seen
	}
	// What is written is what was looked at last: a further look could come
	// in the middle of a reconnect.
	await := func(step, what string, satisfied func(rotation.Envoy) bool) {
		t.Helper()
		s.until(what, func() bool { return satisfied(look()) })
		r.write(step, seen)
	}
	send := func(step, want string, secret *tlsv3.Secret) {
		t.Helper()
		if got := s.send(secret, 0); got != want {
			t.Fatalf("%s: Envoy answers with %s, want %s", step, got, want)
		}
		// Each of these steps leaves Envoy either waiting or live.
		await(step, "Envoy's state", func(o rotation.Envoy) bool {
			waits := o.Secrets.IdentityWarming+o.Secrets.BundleWarming > 0
			return waits != (o.State == "LIVE")
		})
	}

	await("warming", "a stream for each secret", func(o rotation.Envoy) bool {
		return s.streamsOf(identitySecret) > 0 && s.streamsOf(bundleSecret) > 0 && o.SDSCluster.ActiveRequests == 2
	})
	bundle := certificatePEM(ca.certificate)
	send("bundle-only", "ACK", bundleOf(t, bundle, true))
	send("first-secrets", "ACK", good())
	renewed := good()
	send("renewal", "ACK", renewed)
	send("same-again", "ACK", renewed)
	bad := identityOf(certificatePEM(issue().leaf), keyPEM(issue().key))
	send("rejected", "NACK", bad)
	// Envoy compares an answer with the one before, which it keeps although it
	// could not use it: the second time it finds nothing new and accepts.
	send("rejected-again", "ACK", bad)
	send("healed", "ACK", good())
	send("plain-bundle", "ACK", bundleOf(t, bundle, false))

	s.stop()
	s.mu.Lock()
	s.refuse = true
	s.mu.Unlock()
	denied := seen.SDSCluster.Requests
	s.listen()
	await("refused", "Envoy to be refused", func(o rotation.Envoy) bool {
		c := o.SDSCluster
		return c.ActiveRequests == 0 && c.ActiveConnections == 1 && c.Requests > denied
	})

	s.stop()
	failed := seen.SDSCluster.ConnectFailures
	await("server-gone", "Envoy to notice", func(o rotation.Envoy) bool {
		c := o.SDSCluster
		return c.ActiveConnections == 0 && c.ConnectFailures > failed
	})
}
