package envoy

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"svid-watchdog/internal/rotation"
)

func body(s string) *boundedReader {
	return &boundedReader{r: strings.NewReader(s), total: 256 << 20, part: 256 << 20}
}

// chain makes a leaf and its CA, in DER.
func chain(t testing.TB, id string) (leaf, ca []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now().Truncate(time.Second)
	caTemplate := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: now.Add(-time.Minute), NotAfter: now.Add(24 * time.Hour),
	}
	uri, err := url.Parse(id)
	if err != nil {
		t.Fatal(err)
	}
	leafTemplate := &x509.Certificate{
		SerialNumber: big.NewInt(0x0abc), NotBefore: now.Add(-time.Minute), NotAfter: now.Add(time.Hour),
		URIs: []*url.URL{uri}, Subject: pkix.Name{CommonName: "leaf"},
	}
	if ca, err = x509.CreateCertificate(rand.Reader, caTemplate, caTemplate, &key.PublicKey, key); err != nil {
		t.Fatal(err)
	}
	if leaf, err = x509.CreateCertificate(rand.Reader, leafTemplate, caTemplate, &key.PublicKey, key); err != nil {
		t.Fatal(err)
	}
	return leaf, ca
}

func pemOf(ders ...[]byte) []byte {
	var out []byte
	for _, der := range ders {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	return out
}

func identityJSON(name, version, updated string, chain []byte) string {
	return fmt.Sprintf(`{"@type":"type.googleapis.com/envoy.admin.v3.SecretsConfigDump.DynamicSecret","name":%q,"version_info":%q,"last_updated":%q,
	"secret":{"@type":"type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret","name":"default",
	"tls_certificate":{"certificate_chain":{"inline_bytes":%q},"private_key":{"inline_bytes":"W3JlZGFjdGVkXQ=="}}}}`,
		name, version, updated, base64.StdEncoding.EncodeToString(chain))
}

func spiffeBundleJSON(bundle []byte) string {
	return fmt.Sprintf(`{"name":"ROOTCA","version_info":"1","last_updated":"2026-11-23T20:16:04.645Z",
	"secret":{"@type":"type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret","validation_context":{"trusted_ca":{},
	"custom_validator_config":{"name":"envoy.tls.cert_validator.spiffe","typed_config":{
	"@type":"type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig",
	"trust_domains":[{"name":"example.test","trust_bundle":{"inline_bytes":%q}}]}}}}}`, base64.StdEncoding.EncodeToString(bundle))
}

func plainBundleJSON(bundle []byte) string {
	return fmt.Sprintf(`{"name":"ROOTCA","version_info":"2","last_updated":"2026-11-23T20:16:04.645Z",
	"secret":{"@type":"type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
	"validation_context":{"trusted_ca":{"inline_bytes":%q}}}}`, base64.StdEncoding.EncodeToString(bundle))
}

func dumpOf(elements ...string) string { return `{"configs":[` + strings.Join(elements, ",") + `]}` }

const testID = "spiffe://example.test/ns/shop/sa/front-end"

func TestActiveSecrets(t *testing.T) {
	leaf, ca := chain(t, testID)
	const sent = "2026-11-23T20:16:04.644123456Z"
	for name, pemChain := range map[string][]byte{
		"blocks":    pemOf(leaf, ca),
		"one block": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: append(append([]byte(nil), leaf...), ca...)}),
	} {
		t.Run(name, func(t *testing.T) {
			s, err := readActiveSecrets(body(dumpOf(
				identityJSON("default", sent, "2026-11-23T20:16:04.645Z", pemChain),
				spiffeBundleJSON(pemOf(ca)))), "default", "ROOTCA")
			if err != nil {
				t.Fatal(err)
			}
			if len(s.Identity) != 1 || len(s.Bundle) != 1 {
				t.Fatalf("%d identities, %d bundles", len(s.Identity), len(s.Bundle))
			}
			id := s.Identity[0]
			if id.Err != "" || id.Leaf.SPIFFEID != testID || id.Leaf.Serial != "abc" || id.Leaf.Issuer != "CN=test CA" || len(id.Leaf.Chain) != 2 {
				t.Errorf("identity %+v", id)
			}
			if id.SentAt.IsZero() || id.LastUpdated.Sub(id.SentAt) > time.Millisecond {
				t.Errorf("sent %s, updated %s", id.SentAt, id.LastUpdated)
			}
			b := s.Bundle[0]
			if b.Err != "" || len(b.Bundles) != 1 || b.Bundles[0].TrustDomain != "example.test" || len(b.Bundles[0].Authorities) != 1 {
				t.Errorf("bundle %+v", b)
			}
			if !b.SentAt.IsZero() {
				t.Errorf("a counter was read as a time: %s", b.SentAt)
			}
		})
	}
}

// TestBundleForms: both forms of a validation context are the same bundle,
// but for the trust domain that only one of them names.
func TestBundleForms(t *testing.T) {
	_, ca := chain(t, testID)
	for _, element := range []string{spiffeBundleJSON(pemOf(ca)), plainBundleJSON(pemOf(ca))} {
		s, err := readActiveSecrets(body(dumpOf(element)), "default", "ROOTCA")
		if err != nil {
			t.Fatal(err)
		}
		if b := s.Bundle[0]; b.Err != "" || len(b.Bundles) != 1 || len(b.Bundles[0].Authorities) != 1 {
			t.Errorf("bundle %+v", b)
		}
	}
}

// TestSameNameTwice: two providers of one name are two elements.
func TestSameNameTwice(t *testing.T) {
	a, _ := chain(t, testID)
	b, _ := chain(t, testID)
	s, err := readActiveSecrets(body(dumpOf(
		identityJSON("default", "1", "2026-11-23T20:16:04.645Z", pemOf(a)),
		identityJSON("default", "1", "2026-11-23T20:16:04.645Z", pemOf(b)),
		identityJSON("file-cert:x~y", "1", "2026-11-23T20:16:04.645Z", pemOf(b)))), "default", "ROOTCA")
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Identity) != 2 || s.Identity[0].Leaf.Same(s.Identity[1].Leaf) {
		t.Errorf("%d identities", len(s.Identity))
	}
}

// TestOneBadSecret: a secret that cannot be read does not hide the others.
func TestOneBadSecret(t *testing.T) {
	leaf, ca := chain(t, testID)
	bad := []string{
		`{"name":"default","version_info":"1","last_updated":"yesterday","secret":{}}`,
		`{"name":"default","secret":{"tls_certificate":{"certificate_chain":{"inline_bytes":"!!"}}}}`,
		`{"name":"default","secret":{"tls_certificate":{"certificate_chain":{"filename":"/etc/x"}}}}`,
		identityJSON("default", "1", "2026-11-23T20:16:04.645Z", []byte("no PEM")),
		identityJSON("default", "1", "2026-11-23T20:16:04.645Z", pemOf([]byte("no DER"))),
		`{"name":"ROOTCA","secret":{"validation_context":{"custom_validator_config":{"name":"x","typed_config":{"@type":"type.googleapis.com/unheard.Of"}}}}}`,
	}
	good := []string{identityJSON("default", "1", "2026-11-23T20:16:04.645Z", pemOf(leaf)), plainBundleJSON(pemOf(ca))}
	s, err := readActiveSecrets(body(dumpOf(append(bad, good...)...)), "default", "ROOTCA")
	if err != nil {
		t.Fatal(err)
	}
	failed, worked := 0, 0
	for _, id := range s.Identity {
		if id.Err != "" {
			failed++
		} else if id.Leaf.SPIFFEID == testID {
			worked++
		}
	}
	for _, b := range s.Bundle {
		if b.Err != "" {
			failed++
		} else {
			worked++
		}
	}
	if failed != len(bad) || worked != len(good) {
		t.Errorf("%d failed and %d worked, want %d and %d", failed, worked, len(bad), len(good))
	}
}

func TestEmptyDump(t *testing.T) {
	s, err := readActiveSecrets(body(`{}`), "default", "ROOTCA")
	if err != nil || len(s.Identity)+len(s.Bundle) != 0 {
		t.Errorf("%+v, %v", s, err)
	}
	i, b, err := readWarming(body(dumpOf(`{"name":"default","version_info":"uninitialized","last_updated":"2026-11-23T20:16:04.645Z"}`)), "default", "ROOTCA")
	if err != nil || i != 1 || b != 0 {
		t.Errorf("warming %d, %d, %v", i, b, err)
	}
}

// TestBundleContentIsASet: tbot's order of federated bundles is random.
func TestBundleContentIsASet(t *testing.T) {
	_, a := chain(t, testID)
	_, b := chain(t, testID)
	read := func(bundle []byte) [32]byte {
		s, err := readActiveSecrets(body(dumpOf(plainBundleJSON(bundle))), "default", "ROOTCA")
		if err != nil {
			t.Fatal(err)
		}
		return s.Bundle[0].Content
	}
	if read(pemOf(a, b)) != read(pemOf(b, a)) {
		t.Error("the order of the authorities changes the content")
	}
	if read(pemOf(a, b)) == read(pemOf(a)) {
		t.Error("a missing authority does not change the content")
	}
}

const contextJSON = `{"ca_cert":[],"cert_chain":[{"path":"<inline>","serial_number":"0abc","subject_alt_names":[{"uri":"spiffe://example.test/a"}],
 "days_until_expiration":"0","valid_from":"2026-11-23T20:00:00Z","expiration_time":"2026-11-23T21:00:00Z"}]}`

func TestContexts(t *testing.T) {
	other := strings.ReplaceAll(contextJSON, "0abc", "ff")
	fileCert := strings.ReplaceAll(contextJSON, `{"uri":"spiffe://example.test/a"}`, `{"dns":"example.test"}`)
	caOnly := `{"ca_cert":[],"cert_chain":[]}`
	c, err := readContexts(body(`{"certificates":[` + strings.Repeat(contextJSON+",", 5000) + fileCert + "," + caOnly + "," + other + `]}`))
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Leaves) != 2 || c.Leaves[0].Contexts != 5000 || c.Leaves[0].Leaf.Serial != "abc" || c.Leaves[1].Leaf.Serial != "ff" {
		t.Errorf("%+v", c.Leaves)
	}
}

const clusterJSON = `{"name":"sds-grpc","observability_name":"sds-grpc;","host_statuses":[{"address":{"pipe":{"path":"/x"}},"stats":[
 {"name":"cx_connect_fail"},{"value":"3","name":"cx_total"},{"name":"rq_error","value":"1"},{"name":"rq_success"},{"name":"rq_timeout"},{"value":"7","name":"rq_total"},
 {"type":"GAUGE","value":"1","name":"cx_active"},{"type":"GAUGE","value":2,"name":"rq_active"}],"health_status":{"eds_health_status":"HEALTHY"}}]}`

func TestClusters(t *testing.T) {
	noise := strings.ReplaceAll(clusterJSON, `"sds-grpc"`, `"outbound|80||a"`)
	for _, answer := range []string{
		`{"cluster_statuses":[` + clusterJSON + `]}`, // Envoy 1.38 honours the filter
		`{"other":{"a":[1,{"b":null}]},"cluster_statuses":[` + strings.Repeat(noise+",", 3000) + clusterJSON + `]}`,
	} {
		c, err := readSDSCluster(body(answer), "sds-grpc")
		if err != nil {
			t.Fatal(err)
		}
		if !c.Found || c.ActiveConnections != 1 || c.ActiveRequests != 2 || c.ConnectFailures != 0 || c.Requests != 7 || c.RequestErrors != 1 {
			t.Errorf("%+v", c)
		}
	}
	if c, err := readSDSCluster(body(`{}`), "sds-grpc"); err != nil || c.Found {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestStats(t *testing.T) {
	s, err := readSDSStats(strings.NewReader("sds.default.update_rejected: 1\nsds.default.update_success: 12\nsds.default.version_text: \"a: b\"\n"), "default")
	if err != nil || s == nil || s.UpdateSuccess != 12 || s.UpdateRejected != 1 {
		t.Errorf("%+v, %v", s, err)
	}
	if s, err := readSDSStats(strings.NewReader("\n"), "default"); s != nil || err != nil {
		t.Errorf("hidden statistics are %+v, %v", s, err)
	}
	if _, err := readSDSStats(strings.NewReader("sds.default.update_success: -1\n"), "default"); err == nil {
		t.Error("a negative count was accepted")
	}
}

func TestServerInfo(t *testing.T) {
	info, err := readServerInfo(body(`{"version":"9e55/1.40.0/Clean/RELEASE/BoringSSL","state":"PRE_INITIALIZING","uptime_current_epoch":"11.5s","node":{"extensions":[` +
		strings.Repeat(`{"a":"b"},`, 10000) + `{}]}}`))
	if err != nil || info.version != "1.40.0" || info.state != "PRE_INITIALIZING" || info.uptime != 11500*time.Millisecond {
		t.Errorf("%+v, %v", info, err)
	}
	// The zero values of state (LIVE) and uptime may be left out.
	if info, err := readServerInfo(body(`{"version":"1.36.4"}`)); err != nil || info.state != "LIVE" || info.version != "1.36.4" {
		t.Errorf("%+v, %v", info, err)
	}
	// The wall clock was set back since Envoy started.
	if info, err := readServerInfo(body(`{"version":"1.36.4","uptime_current_epoch":"-120s"}`)); err != nil || info.uptime != -2*time.Minute {
		t.Errorf("%+v, %v", info, err)
	}
	for _, bad := range []string{`{"uptime_current_epoch":"NaNs"}`, `{"uptime_current_epoch":"1e99s"}`, ``, `[]`, `{"version":3}`, `{"version":"a","state":"LIVE","uptime_current_epoch":"soon"}`, `{"version"`} {
		if _, err := readServerInfo(body(bad)); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

// endless gives a JSON prefix and then the same bytes for ever.
type endless struct {
	prefix io.Reader
	fill   byte
}

func (e *endless) Read(p []byte) (int, error) {
	if n, err := e.prefix.Read(p); err == nil {
		return n, nil
	}
	for i := range p {
		p[i] = e.fill
	}
	return len(p), nil
}

// TestEndlessElement: one element of a streamed answer cannot fill the memory.
func TestEndlessElement(t *testing.T) {
	for _, prefix := range []string{
		`{"certificates":[{"cert_chain":[{"path":"`,
		`{"`,
		`{"other":"`,
		`{"certificates":[{"x":`,
	} {
		fill := byte('a')
		if strings.HasSuffix(prefix, ":") {
			fill = ' '
		}
		b := &boundedReader{r: &endless{strings.NewReader(prefix), fill}, total: 1 << 40, part: 1 << 40}
		if _, err := readContexts(b); !errors.Is(err, ErrTooLarge) {
			t.Errorf("%q: %v", prefix, err)
		}
		if read := 1<<40 - b.total; read > 4*maxElement {
			t.Errorf("%q: %d bytes were read", prefix, read)
		}
	}
}

func TestTooManyLeaves(t *testing.T) {
	var answer bytes.Buffer
	answer.WriteString(`{"certificates":[`)
	for i := range 1000 {
		if i > 0 {
			answer.WriteByte(',')
		}
		answer.WriteString(strings.ReplaceAll(contextJSON, "0abc", fmt.Sprintf("%x", i+1)))
	}
	answer.WriteString(`]}`)
	if _, err := readContexts(body(answer.String())); !errors.Is(err, errTooManyLeaves) {
		t.Errorf("%v", err)
	}
}

func TestTooManySecrets(t *testing.T) {
	leaf, _ := chain(t, testID)
	element := identityJSON("default", "1", "2026-11-23T20:16:04.645Z", pemOf(leaf))
	if s, err := readActiveSecrets(body(dumpOf(slices.Repeat([]string{element}, maxProviders)...)), "default", "ROOTCA"); err != nil || len(s.Identity) != maxProviders {
		t.Errorf("%d secrets: %v", maxProviders, err)
	}
	if _, err := readActiveSecrets(body(dumpOf(slices.Repeat([]string{element}, maxProviders+1)...)), "default", "ROOTCA"); !errors.Is(err, errTooManySecrets) {
		t.Errorf("%v", err)
	}
}

func fuzzBody(data []byte) *boundedReader {
	return &boundedReader{r: bytes.NewReader(data), total: 1 << 20, part: 1 << 20}
}

func FuzzActiveSecrets(f *testing.F) {
	addRecorded(f, "active_secrets")
	leaf, ca := chain(f, testID)
	f.Add([]byte(dumpOf(identityJSON("default", "1", "2026-11-23T20:16:04.645Z", pemOf(leaf, ca)), spiffeBundleJSON(pemOf(ca)), plainBundleJSON(pemOf(ca)))))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := readActiveSecrets(fuzzBody(data), "default", "ROOTCA")
		if err != nil {
			return
		}
		for _, id := range s.Identity {
			if id.Err == "" && id.Leaf.SHA256.IsZero() {
				t.Error("an identity without leaf and without error")
			}
		}
		for _, b := range s.Bundle {
			if b.Err == "" && len(b.Bundles) == 0 {
				t.Error("a bundle without authorities and without error")
			}
		}
	})
}

func FuzzContexts(f *testing.F) {
	addRecorded(f, "certs")
	f.Add([]byte(`{"certificates":[` + contextJSON + `]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := readContexts(fuzzBody(data))
		if err == nil && len(c.Leaves) > maxDistinctLeaves {
			t.Errorf("%d leaves", len(c.Leaves))
		}
		if elements, broken := elementsPlainly(data, "certificates"); broken == nil && len(data) < maxElement {
			plain, index := &rotation.Contexts{}, make(map[key]int)
			for _, e := range elements {
				leaves, bad := contextLeaves(e, index, plain)
				if bad != nil {
					return
				}
				for _, i := range leaves {
					plain.Leaves[i].Contexts++
				}
			}
			if !reflect.DeepEqual(c, plain) {
				t.Errorf("%+v, %v, want %+v", c, err, plain)
			}
		}
	})
}

func FuzzClusters(f *testing.F) {
	addRecorded(f, "clusters")
	f.Add([]byte(`{"cluster_statuses":[` + clusterJSON + `]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := readSDSCluster(fuzzBody(data), "sds-grpc")
		if err == nil && !c.Found && c.Requests > 0 {
			t.Error("requests of a host that was not found")
		}
		if elements, broken := elementsPlainly(data, "cluster_statuses"); broken == nil && len(data) < maxElement {
			plain := &rotation.SDSCluster{}
			for _, e := range elements {
				before := *plain
				if bad := addCluster(plain, e, "sds-grpc"); bad != nil {
					return
				}
				if *plain != before && isAnother(e, []byte("sds-grpc")) {
					return // it has two names
				}
			}
			if !reflect.DeepEqual(c, plain) {
				t.Errorf("%+v, %v, want %+v", c, err, plain)
			}
		}
	})
}

func FuzzServerInfo(f *testing.F) {
	addRecorded(f, "server_info")
	f.Add([]byte(`{"version":"a/1.40.0/b","state":"LIVE","uptime_current_epoch":"11s"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if info, err := readServerInfo(fuzzBody(data)); err == nil && info.uptime.Abs() > maxUptime*time.Second {
			t.Errorf("uptime %s", info.uptime)
		}
	})
}

func FuzzStats(f *testing.F) {
	addRecorded(f, "sds_stats")
	f.Add([]byte("sds.default.update_success: 12\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if s, err := readSDSStats(fuzzBody(data), "default"); err != nil && s != nil {
			t.Error("both an answer and an error")
		}
	})
}
