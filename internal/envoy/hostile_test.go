package envoy

import (
	"bytes"
	"compress/gzip"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"svid-watchdog/internal/rotation"
)

// odd is a self-signed certificate that a template makes odd.
func odd(t testing.TB, template *x509.Certificate) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if template.SerialNumber == nil {
		template.SerialNumber = big.NewInt(1)
	}
	if template.NotBefore.IsZero() {
		template.NotBefore, template.NotAfter = time.Now(), time.Now().Add(time.Hour)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func uris(t testing.TB, text string) []*url.URL {
	t.Helper()
	u, err := url.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return []*url.URL{u}
}

// TestWhatIsKept: whatever an answer holds, what is kept of it is small, can be
// judged, and can be written as JSON.
func TestWhatIsKept(t *testing.T) {
	mega := strings.Repeat("a", 1<<19)
	leaf, ca := chain(t, testID)
	secret := func(pem []byte) string {
		return dumpOf(identityJSON("default", "1", "2026-11-23T20:16:04.645Z", pem), plainBundleJSON(pemOf(ca)))
	}
	context := func(from, to string) string {
		return `{"certificates":[` + strings.NewReplacer(from, to).Replace(contextJSON) + `]}`
	}
	hundredThousand := func() string {
		var b strings.Builder
		for i := range 100_000 {
			b.WriteString(strings.ReplaceAll(contextJSON, "0abc", fmt.Sprintf("%x", i+1)) + ",")
		}
		return `{"certificates":[` + b.String() + contextJSON + `]}`
	}
	for name, tt := range map[string]struct {
		question question
		answer   string
		// says is in the error, "" for none.
		says string
	}{
		"a version of half a megabyte":        {askServerInfo, `{"version":"x/` + mega + `/y","state":"LIVE","uptime_current_epoch":"100s"}`, ""},
		"a state of half a megabyte":          {askServerInfo, `{"version":"x/1.40.0/y","state":"` + mega + `","uptime_current_epoch":"100s"}`, ""},
		"an uptime of half a megabyte":        {askServerInfo, `{"version":"x/1.40.0/y","state":"LIVE","uptime_current_epoch":"` + mega + `"}`, "not a duration"},
		"an uptime of ages":                   {askServerInfo, `{"version":"x/1.40.0/y","state":"LIVE","uptime_current_epoch":"1e300s"}`, "not a duration"},
		"a version_info of half a megabyte":   {askSecrets, dumpOf(identityJSON("default", mega, "2026-11-23T20:16:04.645Z", pemOf(leaf)), plainBundleJSON(pemOf(ca))), ""},
		"a version_info beyond the years":     {askSecrets, dumpOf(identityJSON("default", "9999-12-31T23:59:59-23:59", "2026-11-23T20:16:04.645Z", pemOf(leaf)), plainBundleJSON(pemOf(ca))), ""},
		"a last_updated beyond the years":     {askSecrets, dumpOf(identityJSON("default", "1", "9999-12-31T23:59:59-23:59", pemOf(leaf)), plainBundleJSON(pemOf(ca))), ""},
		"a last_updated before the years":     {askSecrets, dumpOf(identityJSON("default", "1", "0000-01-01T00:00:00+23:59", pemOf(leaf)), plainBundleJSON(pemOf(ca))), ""},
		"an issuer of half a megabyte":        {askSecrets, secret(pemOf(odd(t, &x509.Certificate{Subject: pkix.Name{CommonName: mega}, URIs: uris(t, testID)}))), "too large"},
		"an issuer of some kilobytes":         {askSecrets, secret(pemOf(odd(t, &x509.Certificate{Subject: pkix.Name{CommonName: mega[:20_000]}, URIs: uris(t, testID)}))), ""},
		"a serial number of some kilobytes":   {askSecrets, secret(pemOf(odd(t, &x509.Certificate{SerialNumber: new(big.Int).Lsh(big.NewInt(1), 80_000), URIs: uris(t, testID)}))), ""},
		"a SPIFFE ID of some kilobytes":       {askSecrets, secret(pemOf(odd(t, &x509.Certificate{URIs: uris(t, testID+mega[:20_000])}))), ""},
		"a certificate of all times":          {askSecrets, secret(pemOf(odd(t, &x509.Certificate{NotBefore: time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC), NotAfter: time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), URIs: uris(t, testID)}))), ""},
		"a certificate that ends first":       {askSecrets, secret(pemOf(odd(t, &x509.Certificate{NotBefore: time.Date(2050, 1, 1, 0, 0, 0, 0, time.UTC), NotAfter: time.Date(1950, 1, 1, 0, 0, 0, 0, time.UTC), URIs: uris(t, testID)}))), ""},
		"four thousand certificates":          {askSecrets, secret(bytes.Repeat(pemOf(leaf), 4000)), "too large"},
		"a hundred thousand leaves":           {askContexts, hundredThousand(), "too many"},
		"a context's ID of half a megabyte":   {askContexts, context("spiffe://example.test/a", "spiffe://example.test/"+mega), ""},
		"a serial of half a megabyte":         {askContexts, context("0abc", mega), ""},
		"a context valid beyond the years":    {askContexts, context("2026-11-23T21:00:00Z", "9999-12-31T23:59:59-23:59"), "cannot be"},
		"a context valid before the years":    {askContexts, context("2026-11-23T20:00:00Z", "0000-01-01T00:00:00+23:59"), "cannot be"},
		"a context of a leap second":          {askContexts, context("2026-11-23T20:00:00Z", "2016-12-31T23:59:60Z"), "parsing time"},
		"a counter of half a megabyte":        {askClusters, `{"cluster_statuses":[{"name":"sds-grpc","host_statuses":[{"stats":[{"name":"rq_active","value":"` + strings.Repeat("1", 1<<19) + `"}]}]}]}`, "count"},
		"a stat of many digits":               {askStats, "sds.default.update_success: " + strings.Repeat("1", 60_000) + "\n", "count"},
		"strings that no terminal should see": {askServerInfo, `{"version":"x/\u001b[2J\n\u0000/y","state":"LIVE","uptime_current_epoch":"100s"}`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScripted(t)
			s.set(tt.question, says(tt.answer))
			o := newClient(t, config(serve(t, s))).Look(t.Context())
			said := o.Err + o.Incomplete
			if (said == "") != (tt.says == "") || !strings.Contains(said, tt.says) || len(said) > 600 {
				t.Errorf("the look says %.1000q, want %q", said, tt.says)
			}
			l := rotation.NewLedger(rotation.Config{Grace: time.Minute})
			l.RecordEnvoy(o)
			for _, later := range []time.Duration{0, time.Hour} {
				document, err := json.Marshal(l.Judge(o.At.Add(later)))
				if err != nil || len(document) > 40_000 {
					t.Errorf("a status of %d bytes, %v", len(document), err)
				}
			}
		})
	}
}

// TestEndlessAndSlow: an answer that drips for ever ends with the timeout.
func TestEndlessAndSlow(t *testing.T) {
	for _, q := range []question{askServerInfo, askStats, askSecrets, askContexts, askClusters} {
		t.Run(string(q), func(t *testing.T) {
			t.Parallel()
			s := newScripted(t)
			s.set(q, func(w http.ResponseWriter) {
				drop := "{"
				for {
					if _, err := io.WriteString(w, drop); err != nil {
						return
					}
					if err := http.NewResponseController(w).Flush(); err != nil {
						return
					}
					time.Sleep(5 * time.Millisecond)
					drop = " "
				}
			})
			cfg := config(serve(t, s))
			cfg.Timeout = 200 * time.Millisecond
			o := newClient(t, cfg).Look(t.Context())
			if said := o.Err + o.Incomplete; !strings.Contains(said, "no answer within 200ms") {
				t.Errorf("the look says %q", said)
			}
		})
	}
}

// TestNoBombs: compressed answers are not asked for, and not unpacked when they
// come.
func TestNoBombs(t *testing.T) {
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	for range 64 {
		if _, err := z.Write(make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	for _, encoding := range []string{"gzip", "deflate", "br"} {
		s := newScripted(t)
		s.set(askServerInfo, func(w http.ResponseWriter) {
			w.Header().Set("Content-Encoding", encoding)
			_, _ = w.Write(bomb.Bytes())
		})
		var asked atomic.Value
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			asked.Store(r.Header.Get("Accept-Encoding"))
			s.ServeHTTP(w, r)
		}))
		o := newClient(t, config(server.URL)).Look(t.Context())
		if !strings.Contains(o.Err, "invalid character") {
			t.Errorf("the look says %q", o.Err)
		}
		if asked.Load() != "" {
			t.Errorf("compression was asked for: %v", asked.Load())
		}
		server.Close()
	}
}

// TestNotLedElsewhere: a redirect is an error, and nobody else is asked.
func TestNotLedElsewhere(t *testing.T) {
	var elsewhere atomic.Int64
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { elsewhere.Add(1) }))
	defer other.Close()
	for _, status := range []int{301, 302, 303, 307, 308} {
		for _, q := range []question{askServerInfo, askStats, askSecrets, askContexts, askClusters} {
			s := newScripted(t)
			s.set(q, func(w http.ResponseWriter) {
				w.Header().Set("Location", other.URL+"/server_info")
				w.WriteHeader(status)
			})
			o := newClient(t, config(serve(t, s))).Look(t.Context())
			if said := o.Err + o.Incomplete; !strings.Contains(said, "redirect") {
				t.Errorf("%d to %s: the look says %q", status, q, said)
			}
		}
	}
	if n := elsewhere.Load(); n > 0 {
		t.Errorf("somebody else was asked %d times", n)
	}
}

// FuzzTimes: whatever stands where times do, what is kept can be judged and
// written as JSON.
func FuzzTimes(f *testing.F) {
	leaf, ca := chain(f, testID)
	for _, v := range []string{"2026-11-23T20:16:04.644123456Z", "2016-12-31T23:59:60Z", "9999-12-31T23:59:59-23:59", "0000-01-01T00:00:00+23:59", "1", "", "2026-11-23T20:16:04.644Z-1"} {
		f.Add(v, v, v)
	}
	f.Fuzz(func(t *testing.T, version, updated, until string) {
		o := rotation.Envoy{At: time.Date(2026, 11, 23, 20, 17, 0, 0, time.UTC)}
		var err error
		o.Secrets, err = readActiveSecrets(strings.NewReader(dumpOf(identityJSON("default", version, updated, pemOf(leaf)), plainBundleJSON(pemOf(ca)))), "default", "ROOTCA")
		if err == nil {
			o.Secrets.At = o.At
		}
		text, err := json.Marshal(until)
		if err != nil {
			t.Fatal(err)
		}
		o.Contexts, err = readContexts(fuzzBody([]byte(`{"certificates":[` + strings.ReplaceAll(contextJSON, `"2026-11-23T21:00:00Z"`, string(text)) + `]}`)))
		if err == nil {
			o.Contexts.At = o.At
		}
		l := rotation.NewLedger(rotation.Config{Grace: time.Minute})
		l.RecordEnvoy(o)
		if _, err := json.Marshal(l.Judge(o.At)); err != nil {
			t.Fatal(err)
		}
	})
}
