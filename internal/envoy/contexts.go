package envoy

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
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

// key tells leaves apart.
type key struct {
	serial, id string
	notAfter   int64
}

// readContexts reads /certs as a stream and keeps each distinct leaf once:
// with Istio there are thousands of equal entries. Leaves without a SPIFFE ID
// (a DestinationRule's client certificate, a gateway's) are not identities of
// the mesh and are left out.
func readContexts(body io.Reader) (*rotation.Contexts, error) {
	index := make(map[key]int)
	contexts := &rotation.Contexts{}
	var known repeats
	err := eachElement(body, "certificates", func(element []byte) error {
		leaves, ok := known.find(element)
		if !ok {
			var err error
			if leaves, err = contextLeaves(element, index, contexts); err != nil {
				return err
			}
			known.remember(element, leaves)
		}
		for _, i := range leaves {
			contexts.Leaves[i].Contexts++
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return contexts, nil
}

// contextLeaves decodes one context, adds the leaves that are new, and returns
// where its leaves are.
func contextLeaves(element []byte, index map[key]int, contexts *rotation.Contexts) (leaves []int, err error) {
	var context tlsContext
	if err := json.Unmarshal(element, &context); err != nil {
		return nil, err
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
			return nil, errNotATime
		}
		k := key{serial, id, cert.ExpirationTime.Unix()}
		i, known := index[k]
		if !known {
			if len(contexts.Leaves) == maxDistinctLeaves {
				return nil, errTooManyLeaves
			}
			i = len(contexts.Leaves)
			index[k] = i
			contexts.Leaves = append(contexts.Leaves, rotation.LoadedLeaf{Leaf: rotation.Certificate{
				SPIFFEID: id, Serial: serial, NotBefore: cert.ValidFrom, NotAfter: cert.ExpirationTime,
			}})
		}
		leaves = append(leaves, i)
	}
	return leaves, nil
}

// repeats remembers the latest elements that differ. All contexts of a sidecar
// show the same certificates, so one is decoded and the others are recognised.
type repeats struct {
	next    int
	entries [4]struct {
		element []byte
		leaves  []int
	}
}

func (r *repeats) find(element []byte) ([]int, bool) {
	for _, e := range r.entries {
		if e.element != nil && bytes.Equal(e.element, element) {
			return e.leaves, true
		}
	}
	return nil, false
}

func (r *repeats) remember(element []byte, leaves []int) {
	if len(element) > maxRepeat {
		return
	}
	e := &r.entries[r.next]
	e.element, e.leaves = append(e.element[:0], element...), leaves
	r.next = (r.next + 1) % len(r.entries)
}
