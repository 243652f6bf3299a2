package lab

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/url"
	"time"
)

// The names of the lab. The ID has the shape of Istio's.
const (
	TrustDomain = "lab.test"
	SPIFFEID    = "spiffe://lab.test/ns/shop/sa/front-end"

	// otherSPIFFEID is what the fault other-identity hands out.
	otherSPIFFEID = "spiffe://lab.test/ns/shop/sa/checkout"
)

const (
	// authorityLife is much longer than a run of the lab; the CA lives in
	// memory and ends with the process.
	authorityLife = 7 * 24 * time.Hour
	// authorityLead back-dates the CA further than any leaf.
	authorityLead = time.Hour
)

// authority is a CA that signs leaves directly.
type authority struct {
	certificate *x509.Certificate
	key         crypto.Signer
}

// newAuthority makes a CA with a fresh key.
func newAuthority(name string, now time.Time) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the key of %s: %w", name, err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    now.Add(-authorityLead),
		NotAfter:     now.Add(authorityLife),
		// The trust domain's own ID (SPIFFE X.509-SVID, section 4.1).
		URIs:                  []*url.URL{{Scheme: "spiffe", Host: TrustDomain}},
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("sign %s: %w", name, err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("read %s back: %w", name, err)
	}
	return &authority{certificate: certificate, key: key}, nil
}

func newSerial() (*big.Int, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("draw a serial number: %w", err)
	}
	return serial, nil
}

// svid is a leaf with its private key.
type svid struct {
	leaf *x509.Certificate
	// key is PKCS#8 in DER, as both tbot and SPIRE hand it out.
	key []byte
}

// serial is the serial number as the watchdog and Envoy show it.
func (s *svid) serial() string { return s.leaf.SerialNumber.Text(16) }

// issue signs a leaf with a fresh key.
func (a *authority) issue(id string, notBefore, notAfter time.Time) (*svid, error) {
	uri, err := url.Parse(id)
	if err != nil {
		return nil, fmt.Errorf("read the SPIFFE ID %q: %w", id, err)
	}
	key, pkcs8, err := newKey()
	if err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		NotBefore:             notBefore,
		NotAfter:              notAfter,
		URIs:                  []*url.URL{uri},
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, key.Public(), a.key)
	if err != nil {
		return nil, fmt.Errorf("sign a leaf for %s: %w", id, err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("read the leaf for %s back: %w", id, err)
	}
	return &svid{leaf: leaf, key: pkcs8}, nil
}

func newKey() (crypto.Signer, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make a key: %w", err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("encode a key: %w", err)
	}
	return key, pkcs8, nil
}

func certificatePEM(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}

func keyPEM(pkcs8 []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
}
