package rotation

import (
	"fmt"
	"strings"
	"time"
)

// Stage is one of the four places at which a certificate can be seen.
type Stage string

// The stages, in the order in which a certificate passes them.
const (
	// Issued is what the identity provider hands out on the Workload API.
	Issued Stage = "issued"
	// Delivered is what Envoy holds as the SDS secret of its identity.
	Delivered Stage = "delivered"
	// Loaded is what Envoy's live TLS contexts use.
	Loaded Stage = "loaded"
	// Served is what a peer is shown in a TLS handshake.
	Served Stage = "served"
)

// Stages returns all stages in the order in which a certificate passes them.
func Stages() []Stage { return []Stage{Issued, Delivered, Loaded, Served} }

// Fingerprint is a SHA-256 digest. The zero value means "not known": Envoy's
// /certs, for example, tells a certificate's serial number but not its bytes.
type Fingerprint [32]byte

// IsZero reports whether the digest is unknown.
func (f Fingerprint) IsZero() bool { return f == Fingerprint{} }

// String returns the digest in lower-case hexadecimal, or "" when unknown.
func (f Fingerprint) String() string {
	if f.IsZero() {
		return ""
	}
	return fmt.Sprintf("%x", f[:])
}

// Certificate is what is known of a leaf certificate (an X.509-SVID). It never
// holds a private key.
type Certificate struct {
	// SPIFFEID is the URI SAN, for example spiffe://example.test/ns/a/sa/b;
	// empty when the certificate has none.
	SPIFFEID string
	// Serial is the serial number in lower-case hexadecimal without leading
	// zeros.
	Serial string
	// Issuer is the issuer's distinguished name; empty where it is not shown
	// (Envoy's /certs).
	Issuer string
	// NotBefore and NotAfter bound the validity (RFC 5280, section 4.1.2.5).
	// Issuers back-date NotBefore: tbot by a minute, SPIRE by ten seconds.
	NotBefore, NotAfter time.Time
	// SHA256 is the digest of the leaf's DER, zero where it is not shown.
	SHA256 Fingerprint
	// Chain is the certificate in DER, leaf first, where its bytes were seen.
	// It is handed to [Config.Verify] and to nothing else.
	Chain [][]byte
}

// TrustDomain is the trust domain of the SPIFFE ID (SPIFFE-ID, section 2.1),
// or "" when there is no SPIFFE ID.
func (c Certificate) TrustDomain() string {
	rest, ok := strings.CutPrefix(c.SPIFFEID, "spiffe://")
	if !ok {
		return ""
	}
	domain, _, _ := strings.Cut(rest, "/")
	return domain
}

// Same reports whether both are the same leaf: by digest where both have one,
// else by serial number and not-after, which is all that Envoy's /certs tells.
func (c Certificate) Same(other Certificate) bool {
	if !c.SHA256.IsZero() && !other.SHA256.IsZero() {
		return c.SHA256 == other.SHA256
	}
	return c.key() == other.key()
}

// certificateKey identifies a leaf at every stage, also where its bytes are
// not shown.
type certificateKey struct {
	serial   string
	notAfter int64
}

func (c Certificate) key() certificateKey {
	return certificateKey{serial: c.Serial, notAfter: c.NotAfter.Unix()}
}

// Authority is a CA certificate of a trust bundle.
type Authority struct {
	// SHA256 is the digest of the CA's DER.
	SHA256 Fingerprint
	// NotAfter is the end of its validity.
	NotAfter time.Time
	// DER is the certificate itself, for [Config.Verify].
	DER []byte
}

// TrustBundle is the set of authorities that vouch for a trust domain
// (SPIFFE Trust Domain and Bundle, section 4).
type TrustBundle struct {
	// TrustDomain is empty where the source does not say it: the plain
	// trusted_ca form of an SDS secret.
	TrustDomain string
	Authorities []Authority
}

// fingerprint identifies the set of authorities; their order does not matter.
func (b TrustBundle) fingerprint() Fingerprint {
	var sum Fingerprint
	for _, a := range b.Authorities {
		for i, octet := range a.SHA256 {
			sum[i] ^= octet
		}
	}
	return sum
}

// NotAfter is the end of the validity of the authority that expires first,
// or the zero time for an empty bundle.
func (b TrustBundle) NotAfter() time.Time {
	var first time.Time
	for _, a := range b.Authorities {
		if first.IsZero() || a.NotAfter.Before(first) {
			first = a.NotAfter
		}
	}
	return first
}
