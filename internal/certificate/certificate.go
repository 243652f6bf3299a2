// Package certificate turns bytes that come from outside (PEM, DER) into the
// vocabulary of package rotation, and verifies a leaf against a trust bundle.
// It is the only place where certificates are parsed; it never sees a private
// key.
package certificate

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"time"

	"svid-watchdog/internal/rotation"
)

// Errors of parsing.
var (
	ErrNoCertificate = errors.New("no certificate in it")
	ErrTooMany       = errors.New("too many certificates in it")
	ErrTooLarge      = errors.New("a certificate in it is too large")
)

// maxCertificates bounds a chain or a bundle. Federated bundles of large
// organisations hold some dozens.
const maxCertificates = 1024

// maxCertificate bounds one certificate, in bytes. They have some 600 bytes,
// with an RSA key 1,500; what a long key costs to verify grows with its square.
const maxCertificate = 32 << 10

// Bounds of the texts that are kept of a certificate.
const (
	maxSPIFFEID = 2048 // by the standard (SPIFFE-ID, section 2.3)
	maxSerial   = 128  // hex digits; 40 are the most (RFC 5280, section 4.1.2.2)
	maxIssuer   = 512
)

// FromPEM reads all CERTIFICATE blocks. A block may hold several certificates:
// tbot with issuer overrides wrote its whole chain into one block
// (gravitational/teleport#68867). Other blocks are skipped unread.
func FromPEM(data []byte) ([]*x509.Certificate, error) {
	var all []*x509.Certificate
	for {
		var block *pem.Block
		block, data = pem.Decode(data)
		if block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		var err error
		if all, err = parse(all, block.Bytes); err != nil {
			return nil, err
		}
	}
	if len(all) == 0 {
		return nil, ErrNoCertificate
	}
	return all, nil
}

// FromDER reads concatenated DER certificates, as the Workload API sends them.
func FromDER(data []byte) ([]*x509.Certificate, error) {
	certs, err := parse(nil, data)
	switch {
	case err != nil:
		return nil, err
	case len(certs) == 0:
		return nil, ErrNoCertificate
	}
	return certs, nil
}

// parse adds the certificates of concatenated DER one by one: a parsed one
// takes ten times the memory of its bytes.
func parse(all []*x509.Certificate, der []byte) ([]*x509.Certificate, error) {
	for len(der) > 0 {
		var one asn1.RawValue
		rest, err := asn1.Unmarshal(der, &one)
		if err != nil {
			return nil, fmt.Errorf("parse certificate %d: %w", len(all)+1, err)
		}
		switch {
		case len(one.FullBytes) > maxCertificate:
			return nil, ErrTooLarge
		case len(all) == maxCertificates:
			return nil, ErrTooMany
		}
		cert, err := x509.ParseCertificate(one.FullBytes)
		if err != nil {
			return nil, fmt.Errorf("parse certificate %d: %w", len(all)+1, err)
		}
		all, der = append(all, cert), rest
	}
	return all, nil
}

// Leaf describes the first certificate of a chain, and keeps the chain's bytes
// for [Verify].
func Leaf(chain []*x509.Certificate) rotation.Certificate {
	leaf := chain[0]
	c := rotation.Certificate{
		SPIFFEID:  spiffeID(leaf),
		Issuer:    cut(leaf.Issuer.String(), maxIssuer),
		NotBefore: leaf.NotBefore,
		NotAfter:  leaf.NotAfter,
		SHA256:    sha256.Sum256(leaf.Raw),
	}
	if leaf.SerialNumber != nil {
		c.Serial = Serial(leaf.SerialNumber.Text(16))
	}
	for _, cert := range chain {
		c.Chain = append(c.Chain, cert.Raw)
	}
	return c
}

// spiffeID is the URI SAN with the scheme spiffe; an X.509-SVID has exactly
// one URI SAN (X509-SVID, section 2).
func spiffeID(cert *x509.Certificate) string {
	for _, u := range cert.URIs {
		if id := u.String(); u.Scheme == "spiffe" && IsSPIFFEID(id) {
			return id
		}
	}
	return ""
}

// IsSPIFFEID tells whether a URI may be the ID of an SVID.
func IsSPIFFEID(uri string) bool {
	return strings.HasPrefix(uri, "spiffe://") && len(uri) <= maxSPIFFEID
}

// Serial is a serial number in hex, as it is kept and compared: lower case,
// without leading zeros, and of one that no certificate may have its beginning.
func Serial(hex string) string {
	return cut(strings.TrimLeft(strings.ToLower(hex), "0"), maxSerial)
}

// cut keeps the beginning of a long text.
func cut(text string, most int) string {
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most], "") + "…"
}

// Plausible tells whether a time can be one of a certificate: RFC 5280 and JSON
// know the years up to 9999.
func Plausible(t time.Time) bool {
	year := t.UTC().Year()
	return year >= 0 && year <= 9999
}

// Bundle describes the authorities of a trust domain.
func Bundle(trustDomain string, authorities []*x509.Certificate) rotation.TrustBundle {
	b := rotation.TrustBundle{TrustDomain: trustDomain}
	for _, a := range authorities {
		b.Authorities = append(b.Authorities, rotation.Authority{
			SHA256:   sha256.Sum256(a.Raw),
			NotAfter: a.NotAfter,
			DER:      a.Raw,
		})
	}
	return b
}

// Verify reports whether the leaf chains to an authority of the bundle. It is
// the [rotation.Config.Verify] of the running watchdog. Expiry is judged
// elsewhere and is no failure here.
func Verify(leaf rotation.Certificate, bundle rotation.TrustBundle, now time.Time) error {
	if len(leaf.Chain) == 0 {
		return ErrNoCertificate
	}
	cert, err := x509.ParseCertificate(leaf.Chain[0])
	if err != nil {
		return fmt.Errorf("parse leaf: %w", err)
	}
	options := x509.VerifyOptions{
		Roots:         x509.NewCertPool(),
		Intermediates: x509.NewCertPool(),
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
		CurrentTime:   within(now, cert.NotBefore, cert.NotAfter),
	}
	for _, der := range leaf.Chain[1:] {
		if c, err := x509.ParseCertificate(der); err == nil {
			options.Intermediates.AddCert(c)
		}
	}
	for _, a := range bundle.Authorities {
		if c, err := x509.ParseCertificate(a.DER); err == nil {
			options.Roots.AddCert(c)
		}
	}
	_, err = cert.Verify(options)
	if invalid := (x509.CertificateInvalidError{}); errors.As(err, &invalid) && invalid.Reason == x509.Expired {
		return nil
	}
	return err
}

// within returns t, moved into the interval if it lies outside.
func within(t, from, to time.Time) time.Time {
	if t.Before(from) {
		return from
	}
	if t.After(to) {
		return to
	}
	return t
}
