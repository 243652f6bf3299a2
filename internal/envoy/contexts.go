package envoy

import (
	"encoding/json"
	"errors"
	"time"

	"svid-watchdog/internal/certificate"
	"svid-watchdog/internal/rotation"
)

// maxContexts bounds /certs: 10,000 contexts take 7.4 MB.
const maxContexts = 256 << 20

// maxDistinctLeaves bounds what is kept of /certs. A pod has one leaf, or two
// while contexts are mixed.
const maxDistinctLeaves = 256

// errTooManyLeaves: /certs shows more distinct identities than any pod has.
var errTooManyLeaves = errors.New("too many distinct certificates")

// errNotATime: /certs shows a time that no certificate has.
var errNotATime = errors.New("a certificate in it is valid at times that cannot be")

// tlsContext is an element of envoy.admin.v3.Certificates: one TLS context.
// It has neither a name nor a link to the secret.
type tlsContext struct {
	CertChain []struct {
		SerialNumber    string `json:"serial_number"`
		SubjectAltNames []struct {
			URI string `json:"uri"`
		} `json:"subject_alt_names"`
		ValidFrom      time.Time `json:"valid_from"`
		ExpirationTime time.Time `json:"expiration_time"`
	} `json:"cert_chain"`
}

// readContexts reads /certs as a stream and keeps each distinct leaf once:
// with Istio there are thousands of equal entries. Leaves without a SPIFFE ID
// (a DestinationRule's client certificate, a gateway's) are not identities of
// the mesh and are left out.
func readContexts(body *boundedReader) (*rotation.Contexts, error) {
	type key struct {
		serial, id string
		notAfter   int64
	}
	index := make(map[key]int)
	contexts := &rotation.Contexts{}
	err := eachElement(body, "certificates", func(dec *json.Decoder) error {
		var context tlsContext
		if err := dec.Decode(&context); err != nil {
			return err
		}
		for _, cert := range context.CertChain {
			id := ""
			for _, san := range cert.SubjectAltNames {
				if certificate.IsSPIFFEID(san.URI) {
					id = san.URI
				}
			}
			if id == "" {
				continue
			}
			// Envoy prints whole bytes; a serial number is compared as a number.
			serial := certificate.Serial(cert.SerialNumber)
			if !certificate.Plausible(cert.ValidFrom) || !certificate.Plausible(cert.ExpirationTime) {
				return errNotATime
			}
			k := key{serial, id, cert.ExpirationTime.Unix()}
			i, known := index[k]
			if !known {
				if len(contexts.Leaves) == maxDistinctLeaves {
					return errTooManyLeaves
				}
				i = len(contexts.Leaves)
				index[k] = i
				contexts.Leaves = append(contexts.Leaves, rotation.LoadedLeaf{Leaf: rotation.Certificate{
					SPIFFEID: id, Serial: serial, NotBefore: cert.ValidFrom, NotAfter: cert.ExpirationTime,
				}})
			}
			contexts.Leaves[i].Contexts++
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return contexts, nil
}
