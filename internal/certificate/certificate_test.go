package certificate

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net/url"
	"testing"
	"time"

	"svid-watchdog/internal/rotation"
)

var now = time.Now().Truncate(time.Second)

// ca is a CA of a test.
type ca struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func sign(t testing.TB, template, parent *x509.Certificate, public *ecdsa.PublicKey, key *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// newCA makes a CA, signed by parent or by itself.
func newCA(t testing.TB, name string, parent *ca, notAfter time.Time) *ca {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: now.Add(-time.Hour), NotAfter: notAfter, KeyUsage: x509.KeyUsageCertSign,
	}
	if parent == nil {
		return &ca{sign(t, template, template, &key.PublicKey, key), key}
	}
	return &ca{sign(t, template, parent.cert, &key.PublicKey, parent.key), key}
}

func (c *ca) leaf(t testing.TB, notAfter time.Time) *x509.Certificate {
	t.Helper()
	key := newKey(t)
	return sign(t, &x509.Certificate{
		SerialNumber: big.NewInt(0x0fedcba), NotBefore: now.Add(-time.Minute), NotAfter: notAfter,
		URIs: []*url.URL{{Scheme: "https", Host: "example.test"}, {Scheme: "spiffe", Host: "example.test", Path: "/a"}},
	}, c.cert, &key.PublicKey, c.key)
}

func block(certs ...*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

func TestFromPEM(t *testing.T) {
	root := newCA(t, "root", nil, now.Add(time.Hour))
	leaf := root.leaf(t, now.Add(time.Minute))
	key := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("never looked at")})
	oneBlock := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: append(bytes.Clone(leaf.Raw), root.cert.Raw...)})
	for name, data := range map[string][]byte{
		"two blocks":         block(leaf, root.cert),
		"one block":          oneBlock,
		"with a key between": append(append(block(leaf), key...), block(root.cert)...),
		"with words around":  append(append([]byte("subject=x\n"), block(leaf, root.cert)...), "the end\n"...),
	} {
		certs, err := FromPEM(data)
		if err != nil || len(certs) != 2 || !certs[0].Equal(leaf) || !certs[1].Equal(root.cert) {
			t.Errorf("%s: %d certificates, %v", name, len(certs), err)
		}
	}
	for name, data := range map[string][]byte{"empty": nil, "words": []byte("no PEM"), "only a key": key} {
		if _, err := FromPEM(data); !errors.Is(err, ErrNoCertificate) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := FromPEM(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("no DER")})); err == nil {
		t.Error("a block without a certificate was accepted")
	}
	if _, err := FromPEM(bytes.Repeat(block(leaf), maxCertificates+1)); !errors.Is(err, ErrTooMany) {
		t.Errorf("too many: %v", err)
	}
}

func TestFromDER(t *testing.T) {
	root := newCA(t, "root", nil, now.Add(time.Hour))
	leaf := root.leaf(t, now.Add(time.Minute))
	if certs, err := FromDER(append(bytes.Clone(leaf.Raw), root.cert.Raw...)); err != nil || len(certs) != 2 {
		t.Errorf("%d certificates, %v", len(certs), err)
	}
	if _, err := FromDER(nil); !errors.Is(err, ErrNoCertificate) {
		t.Errorf("empty: %v", err)
	}
	if _, err := FromDER(leaf.Raw[:len(leaf.Raw)-1]); err == nil {
		t.Error("a cut certificate was accepted")
	}
}

func TestLeaf(t *testing.T) {
	root := newCA(t, "root", nil, now.Add(time.Hour))
	cert := root.leaf(t, now.Add(time.Minute))
	c := Leaf([]*x509.Certificate{cert, root.cert})
	if c.SPIFFEID != "spiffe://example.test/a" || c.TrustDomain() != "example.test" || c.Serial != "fedcba" || c.Issuer != "CN=root" ||
		!c.NotAfter.Equal(now.Add(time.Minute)) || c.SHA256.IsZero() || len(c.Chain) != 2 {
		t.Errorf("%+v", c)
	}
}

func TestVerify(t *testing.T) {
	hour := now.Add(time.Hour)
	root, other := newCA(t, "root", nil, hour), newCA(t, "root", nil, hour) // the same name, another key
	intermediate := newCA(t, "intermediate", root, hour)
	dead := newCA(t, "dead", nil, now.Add(-time.Minute))
	bundle := func(cas ...*ca) rotation.TrustBundle {
		var certs []*x509.Certificate
		for _, c := range cas {
			certs = append(certs, c.cert)
		}
		return Bundle("example.test", certs)
	}
	chain := func(certs ...*x509.Certificate) rotation.Certificate { return Leaf(certs) }
	for _, tt := range []struct {
		name   string
		leaf   rotation.Certificate
		bundle rotation.TrustBundle
		good   bool
	}{
		{"direct", chain(root.leaf(t, hour)), bundle(root), true},
		{"one of two", chain(root.leaf(t, hour)), bundle(other, root), true},
		{"by an intermediate", chain(intermediate.leaf(t, hour), intermediate.cert), bundle(root), true},
		{"intermediate missing", chain(intermediate.leaf(t, hour)), bundle(root), false},
		{"another CA of the same name", chain(other.leaf(t, hour)), bundle(root), false},
		{"expired leaf", chain(root.leaf(t, now.Add(-time.Second))), bundle(root), true},
		{"expired CA", chain(dead.leaf(t, hour)), bundle(dead), true},
		{"expired CA of somebody else", chain(dead.leaf(t, hour)), bundle(root), false},
		{"empty bundle", chain(root.leaf(t, hour)), bundle(), false},
		{"no leaf", rotation.Certificate{}, bundle(root), false},
		{"no certificate", rotation.Certificate{Chain: [][]byte{[]byte("x")}}, bundle(root), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := Verify(tt.leaf, tt.bundle, now); (err == nil) != tt.good {
				t.Errorf("%v, want good %t", err, tt.good)
			}
		})
	}
}

func FuzzFromPEM(f *testing.F) {
	root := newCA(f, "root", nil, now.Add(time.Hour))
	f.Add(block(root.leaf(f, now.Add(time.Minute)), root.cert))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		certs, err := FromPEM(data)
		if (err == nil) != (len(certs) > 0) {
			t.Fatalf("%d certificates and %v", len(certs), err)
		}
		if err == nil {
			_ = Verify(Leaf(certs), Bundle("", certs), now)
		}
	})
}

// TestLeapSecond: a certificate whose validity begins or ends within a leap
// second says so by an error, and is not taken for another time.
func TestLeapSecond(t *testing.T) {
	root := newCA(t, "root", nil, time.Date(2016, 12, 31, 23, 59, 59, 0, time.UTC))
	der := root.cert.Raw
	if _, err := FromDER(der); err != nil {
		t.Fatal(err)
	}
	leap := bytes.Replace(der, []byte("161231235959Z"), []byte("161231235960Z"), 1)
	if bytes.Equal(leap, der) {
		t.Fatal("no such time in the certificate")
	}
	if certs, err := FromDER(leap); err == nil {
		t.Errorf("it is valid until %s", certs[0].NotAfter)
	}
}

// TestBounds: a certificate that is too large, too many of them, and what is
// kept of long names.
func TestBounds(t *testing.T) {
	root := newCA(t, "root", nil, now.Add(time.Hour))
	if _, err := FromDER(bytes.Repeat(root.cert.Raw, 100_000)); !errors.Is(err, ErrTooMany) {
		t.Errorf("a hundred thousand: %v", err)
	}
	if _, err := FromPEM(bytes.Repeat(block(root.cert), 2000)); !errors.Is(err, ErrTooMany) {
		t.Errorf("two thousand: %v", err)
	}
	large := newCA(t, string(bytes.Repeat([]byte("a"), 40<<10)), nil, now.Add(time.Hour))
	if _, err := FromDER(large.cert.Raw); !errors.Is(err, ErrTooLarge) {
		t.Errorf("forty kilobytes: %v", err)
	}
	long := newCA(t, string(bytes.Repeat([]byte("a"), 10<<10)), nil, now.Add(time.Hour))
	certs, err := FromDER(long.cert.Raw)
	if err != nil {
		t.Fatal(err)
	}
	if issuer := Leaf(certs).Issuer; len(issuer) > maxIssuer+10 {
		t.Errorf("an issuer of %d bytes is kept", len(issuer))
	}
	for hex, want := range map[string]string{"00AB": "ab", "": "", "0": ""} {
		if got := Serial(hex); got != want {
			t.Errorf("serial %q: %q, want %q", hex, got, want)
		}
	}
}
