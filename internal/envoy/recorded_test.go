package envoy

import (
	"bytes"
	"compress/gzip"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	adminv3 "github.com/envoyproxy/go-control-plane/envoy/admin/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3" // for the resolver
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"svid-watchdog/internal/certificate"
	"svid-watchdog/internal/rotation"
)

// recordedVersions are the releases of which answers are kept. The recorder
// (internal/lab, TestRecord) has the same list.
var recordedVersions = []string{"1.36.4", "1.37.0", "1.38.3", "1.39.3", "1.40.0"}

// answer is one recorded answer.
type answer struct {
	version, step, question string
	body                    []byte
}

// recorded reads the answers to one question, oldest first.
func recorded(t testing.TB, version, question string) []answer {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join("testdata", "recorded", version, "*."+question+".*"))
	if err != nil {
		t.Fatal(err)
	}
	if len(paths) == 0 {
		t.Fatalf("no answer of Envoy %s to %s was recorded", version, question)
	}
	var out []answer
	for _, path := range paths { // sorted
		body, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(path, ".gz") {
			z, err := gzip.NewReader(bytes.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			if body, err = io.ReadAll(z); err != nil {
				t.Fatal(err)
			}
		}
		step, _, _ := strings.Cut(filepath.Base(path), ".")
		out = append(out, answer{version, step, question, body})
	}
	return out
}

// addRecorded adds the recorded answers to a fuzz target's seeds.
func addRecorded(f *testing.F, question string) {
	for _, version := range recordedVersions {
		for _, a := range recorded(f, version, question) {
			f.Add(a.body)
		}
	}
}

// eachRecorded calls a test with each answer to a question.
func eachRecorded(t *testing.T, question string, test func(*testing.T, answer)) {
	for _, version := range recordedVersions {
		for _, a := range recorded(t, version, question) {
			t.Run(version+"/"+a.step, func(t *testing.T) { test(t, a) })
		}
	}
}

// oracle decodes an answer with Envoy's own types.
func oracle(t *testing.T, a answer, into proto.Message) {
	t.Helper()
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(a.body, into); err != nil {
		t.Fatalf("admin/v3 cannot read it: %v", err)
	}
}

func dynamicSecrets(t *testing.T, a answer) (out []*adminv3.SecretsConfigDump_DynamicSecret) {
	t.Helper()
	dump := &adminv3.ConfigDump{}
	oracle(t, a, dump)
	for _, c := range dump.GetConfigs() {
		s := &adminv3.SecretsConfigDump_DynamicSecret{}
		if err := c.UnmarshalTo(s); err != nil {
			t.Fatal(err)
		}
		out = append(out, s)
	}
	return out
}

// TestRecordedSecrets: our decoder and admin/v3 read the same.
func TestRecordedSecrets(t *testing.T) {
	eachRecorded(t, "active_secrets", func(t *testing.T, a answer) {
		ours, err := readActiveSecrets(bytes.NewReader(a.body), "default", "ROOTCA")
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(a.body, []byte("PRIVATE KEY")) {
			t.Fatal("a private key was recorded")
		}
		identities, bundles := ours.Identity, ours.Bundle
		for _, d := range dynamicSecrets(t, a) {
			secret := &tlsv3.Secret{}
			if err := d.GetSecret().UnmarshalTo(secret); err != nil {
				t.Fatal(err)
			}
			var meta rotation.SecretMeta
			switch d.GetName() {
			case "default":
				meta = identities[0].SecretMeta
				leaf := identities[0].Leaf
				identities = identities[1:]
				certs, err := certificate.FromPEM(secret.GetTlsCertificate().GetCertificateChain().GetInlineBytes())
				if err != nil {
					t.Fatal(err)
				}
				if want := certificate.Leaf(certs); !leaf.Same(want) || leaf.SPIFFEID != want.SPIFFEID || !leaf.NotAfter.Equal(want.NotAfter) || leaf.SHA256 != want.SHA256 {
					t.Errorf("leaf %+v, want %+v", leaf, want)
				}
				if secret.GetTlsCertificate().GetPrivateKey() != nil {
					t.Error("the mask lets the private key's place through")
				}
			case "ROOTCA":
				meta = bundles[0].SecretMeta
				got := bundles[0].Bundles
				bundles = bundles[1:]
				want, domain := secret.GetValidationContext().GetTrustedCa().GetInlineBytes(), ""
				if custom := secret.GetValidationContext().GetCustomValidatorConfig(); custom != nil {
					config := &tlsv3.SPIFFECertValidatorConfig{}
					if err := custom.GetTypedConfig().UnmarshalTo(config); err != nil {
						t.Fatal(err)
					}
					want, domain = config.GetTrustDomains()[0].GetTrustBundle().GetInlineBytes(), config.GetTrustDomains()[0].GetName()
				}
				certs, err := certificate.FromPEM(want)
				if err != nil {
					t.Fatal(err)
				}
				if len(got) != 1 || got[0].TrustDomain != domain || len(got[0].Authorities) != len(certs) || !bytes.Equal(got[0].Authorities[0].DER, certs[0].Raw) {
					t.Errorf("bundle %+v", got)
				}
			}
			if meta.Err != "" || meta.Version != d.GetVersionInfo() || !meta.LastUpdated.Equal(d.GetLastUpdated().AsTime()) {
				t.Errorf("%+v, want %s, %s", meta, d.GetVersionInfo(), d.GetLastUpdated().AsTime())
			}
			if sent, err := time.Parse(time.RFC3339Nano, d.GetVersionInfo()); err == nil && !meta.SentAt.Equal(sent) {
				t.Errorf("sent at %s, want %s", meta.SentAt, sent)
			}
		}
		if len(identities)+len(bundles) > 0 {
			t.Error("we read more than there is")
		}
	})
	eachRecorded(t, "warming_secrets", func(t *testing.T, a answer) {
		identity, bundle, err := readWarming(bytes.NewReader(a.body), "default", "ROOTCA")
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range dynamicSecrets(t, a) {
			if d.GetVersionInfo() != "uninitialized" {
				t.Errorf("%s is warming with version %s", d.GetName(), d.GetVersionInfo())
			}
			switch d.GetName() {
			case "default":
				identity--
			case "ROOTCA":
				bundle--
			}
		}
		if identity != 0 || bundle != 0 {
			t.Errorf("%d identities and %d bundles too many", identity, bundle)
		}
	})
}

func TestRecordedContexts(t *testing.T) {
	eachRecorded(t, "certs", func(t *testing.T, a answer) {
		ours, err := readContexts(body(string(a.body)))
		if err != nil {
			t.Fatal(err)
		}
		type key struct {
			serial, id string
			from, to   int64
		}
		count := make(map[key]int)
		for _, l := range ours.Leaves {
			count[key{l.Leaf.Serial, l.Leaf.SPIFFEID, l.Leaf.NotBefore.Unix(), l.Leaf.NotAfter.Unix()}] += l.Contexts
		}
		theirs := &adminv3.Certificates{}
		oracle(t, a, theirs)
		for _, c := range theirs.GetCertificates() {
			for _, d := range c.GetCertChain() {
				id := ""
				for _, n := range d.GetSubjectAltNames() {
					id = n.GetUri()
				}
				count[key{
					strings.TrimLeft(d.GetSerialNumber(), "0"), id, d.GetValidFrom().GetSeconds(), d.GetExpirationTime().GetSeconds(),
				}]--
			}
		}
		for k, n := range count {
			if n != 0 {
				t.Errorf("%+v: we count %d more", k, n)
			}
		}
	})
}

func TestRecordedClusters(t *testing.T) {
	eachRecorded(t, "clusters", func(t *testing.T, a answer) {
		ours, err := readSDSCluster(body(string(a.body)), "sds-grpc")
		if err != nil {
			t.Fatal(err)
		}
		theirs := &adminv3.Clusters{}
		oracle(t, a, theirs)
		// /clusters honours its filter from 1.38 on.
		if honoured := len(theirs.GetClusterStatuses()) == 1; honoured != (a.version >= "1.38") {
			t.Errorf("%d clusters", len(theirs.GetClusterStatuses()))
		}
		want := &rotation.SDSCluster{}
		for _, c := range theirs.GetClusterStatuses() {
			if c.GetName() != "sds-grpc" {
				continue
			}
			for _, h := range c.GetHostStatuses() {
				want.Found = true
				for _, s := range h.GetStats() {
					switch s.GetName() {
					case "cx_active":
						want.ActiveConnections += s.GetValue()
					case "rq_active":
						want.ActiveRequests += s.GetValue()
					case "cx_connect_fail":
						want.ConnectFailures += s.GetValue()
					case "rq_total":
						want.Requests += s.GetValue()
					case "rq_error":
						want.RequestErrors += s.GetValue()
					}
				}
			}
		}
		if *ours != *want || !want.Found {
			t.Errorf("%+v, want %+v", ours, want)
		}
	})
}

func TestRecordedServerInfo(t *testing.T) {
	eachRecorded(t, "server_info", func(t *testing.T, a answer) {
		ours, err := readServerInfo(body(string(a.body)))
		if err != nil {
			t.Fatal(err)
		}
		theirs := &adminv3.ServerInfo{}
		oracle(t, a, theirs)
		if ours.version != a.version || !strings.Contains(theirs.GetVersion(), "/"+ours.version+"/") ||
			ours.state != theirs.GetState().String() || ours.uptime != theirs.GetUptimeCurrentEpoch().AsDuration() {
			t.Errorf("%+v", ours)
		}
	})
}

// TestRecordedStory: what the five releases do with updates, as the judgement
// relies on it.
func TestRecordedStory(t *testing.T) {
	for _, version := range recordedVersions {
		t.Run(version, func(t *testing.T) {
			steps := make(map[string]rotation.DeliveredIdentity)
			stats := make(map[string]rotation.SDSStats)
			var identity rotation.DeliveredIdentity
			var counted rotation.SDSStats
			secrets, counts := recorded(t, version, "active_secrets"), recorded(t, version, "sds_stats")
			for _, step := range []string{"03-first-secrets", "04-renewal", "05-same-again", "06-rejected", "07-rejected-again", "08-healed"} {
				for _, a := range secrets {
					if a.step == step {
						s, err := readActiveSecrets(bytes.NewReader(a.body), "default", "ROOTCA")
						if err != nil || len(s.Identity) != 1 {
							t.Fatalf("%s: %v", step, err)
						}
						identity = s.Identity[0]
					}
				}
				for _, a := range counts {
					if a.step == step {
						s, err := readSDSStats(body(string(a.body)), "default")
						if err != nil || s == nil {
							t.Fatalf("%s: %v", step, err)
						}
						counted = *s
					}
				}
				steps[step], stats[step] = identity, counted
			}
			modern := version != "1.36.4"
			for _, tt := range []struct {
				from, to             string
				leaf, update, sent   bool
				successes, rejection uint64
			}{
				{"03-first-secrets", "04-renewal", true, true, true, 1, 0},
				{"04-renewal", "05-same-again", false, !modern, !modern, 1, 0},
				{"05-same-again", "06-rejected", true, false, modern, 0, 1},
				{"06-rejected", "07-rejected-again", false, !modern, !modern, 1, 0},
				{"07-rejected-again", "08-healed", true, true, true, 1, 0},
			} {
				from, to := steps[tt.from], steps[tt.to]
				if changed := from.Leaf.SHA256 != to.Leaf.SHA256; changed != tt.leaf {
					t.Errorf("%s: the leaf changed: %t", tt.to, changed)
				}
				if moved := !from.LastUpdated.Equal(to.LastUpdated); moved != tt.update {
					t.Errorf("%s: last_updated moved: %t", tt.to, moved)
				}
				if moved := !from.SentAt.Equal(to.SentAt); moved != tt.sent {
					t.Errorf("%s: the version moved: %t", tt.to, moved)
				}
				if n := stats[tt.to].UpdateSuccess - stats[tt.from].UpdateSuccess; n != tt.successes {
					t.Errorf("%s: %d updates accepted", tt.to, n)
				}
				if n := stats[tt.to].UpdateRejected - stats[tt.from].UpdateRejected; n != tt.rejection {
					t.Errorf("%s: %d updates rejected", tt.to, n)
				}
			}
			for _, a := range recorded(t, version, "sds_stats_hidden") {
				if s, err := readSDSStats(body(string(a.body)), "default"); err != nil || s != nil {
					t.Errorf("hidden statistics are read as %+v, %v", s, err)
				}
			}
		})
	}
}
