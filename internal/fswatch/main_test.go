package fswatch

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"svid-watchdog/internal/rotation"
)

func TestMain(m *testing.M) {
	if os.Getenv(exhaustedChild) != "" {
		os.Exit(runExhausted())
	}
	goleak.VerifyTestMain(m)
}

// chainPEM returns a certificate with that serial number.
func chainPEM(t testing.TB, serial int64) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial),
		Subject:      pkix.Name{CommonName: "a test"},
		NotBefore:    time.Unix(1_700_000_000, 0),
		NotAfter:     time.Unix(1_700_003_600, 0),
		URIs:         []*url.URL{{Scheme: "spiffe", Host: "example.test", Path: "/ns/a/sa/b"}},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func write(t testing.TB, data []byte, path ...string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(path...), data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func mkdir(t testing.TB, path ...string) string {
	t.Helper()
	dir := filepath.Join(path...)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

func symlink(t testing.TB, to, path string) {
	t.Helper()
	if err := os.Symlink(to, path); err != nil {
		t.Fatal(err)
	}
}

func rename(t testing.TB, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

func remove(t testing.TB, path string) {
	t.Helper()
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
}

// present names the present files by their first letters: c, k, r.
func present(f rotation.CredentialFiles) string {
	s := ""
	for _, name := range rotation.CredentialFileNames() {
		if f.Present[name] {
			s += string(name[0])
		}
	}
	return s
}

func serial(f rotation.CredentialFiles) string {
	if f.Leaf == nil {
		return ""
	}
	return f.Leaf.Serial
}
