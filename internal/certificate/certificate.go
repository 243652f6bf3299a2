// Package certificate turns bytes that come from outside (PEM, DER) into the
// vocabulary of package rotation, and verifies a leaf against a trust bundle.
// It is the only place where certificates are parsed; it never sees a private
// key.
package certificate

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"svid-watchdog/internal/rotation"
)

// Errors of parsing.
var (
	ErrNoCertificate = errors.New("no certificate in it")
	ErrTooMany       = errors.New("too many certificates in it")
)

// maxCertificates bounds a chain or a bundle. Federated bundles of large
// organisations hold some dozens.
const maxCertificates = 1024

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
		certs, err := x509.ParseCertificates(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("parse certificate %d: %w", len(all)+1, err)
		}
		if all = append(all, certs...); len(all) > maxCertificates {
			return nil, ErrTooMany
		}
	}
	if len(all) == 0 {
		return nil, ErrNoCertificate
	}
	return all, nil
}

// FromDER reads concatenated DER certificates, as the Workload API sends them.
func FromDER(data []byte) ([]*x509.Certificate, error) {
	certs, err := x509.ParseCertificates(data)
	switch {
	case err != nil:
		return nil, fmt.Errorf("parse certificates: %w", err)
	case len(certs) == 0:
		return nil, ErrNoCertificate
	case len(certs) > maxCertificates:
		return nil, ErrTooMany
	}
	return certs, nil
}

// Leaf describes the first certificate of a chain, and keeps the chain's bytes
// for [Verify].
func Leaf(chain []*x509.Certificate) rotation.Certificate {
	leaf := chain[0]
	c := rotation.Certificate{
		SPIFFEID:  spiffeID(leaf),
		Issuer:    leaf.Issuer.String(),
		NotBefore: leaf.NotBefore,
		NotAfter:  leaf.NotAfter,
		SHA256:    sha256.Sum256(leaf.Raw),
	}
	if leaf.SerialNumber != nil {
		c.Serial = leaf.SerialNumber.Text(16)
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
		if u.Scheme == "spiffe" {
			return u.String()
		}
	}
	return ""
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
