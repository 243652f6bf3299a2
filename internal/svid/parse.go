package svid

import (
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"svid-watchdog/internal/certificate"
	"svid-watchdog/internal/rotation"
)

// maxSVIDs bounds the identities of one workload. Most have one.
const maxSVIDs = 64

// dropKeys overwrites the private keys of a message and forgets them.
func dropKeys(m *workload.X509SVIDResponse) {
	for _, svid := range m.GetSvids() {
		if svid != nil {
			clear(svid.X509SvidKey)
			svid.X509SvidKey = nil
		}
	}
}

// parse reads a message that came at a time. The error says what is malformed,
// in words that hold no content but names. The private keys are dropped in any
// case.
//
// Like go-spiffe, with which the workloads of the pod read the same message,
// it takes a message in which one part is malformed for malformed as a whole.
func parse(m *workload.X509SVIDResponse, now time.Time) (rotation.Issuance, error) {
	dropKeys(m)
	// A workload without identity gets PermissionDenied, never an empty list
	// (SPIFFE Workload API, section 4.3).
	if len(m.GetSvids()) == 0 {
		return rotation.Issuance{}, errors.New("the message holds no SVID")
	}
	if len(m.Svids) > maxSVIDs {
		return rotation.Issuance{}, fmt.Errorf("the message holds more than %d SVIDs", maxSVIDs)
	}
	issuance := rotation.Issuance{At: now}
	for i, svid := range m.Svids {
		id, err := spiffeid.FromString(svid.GetSpiffeId())
		if err != nil {
			return rotation.Issuance{}, fmt.Errorf("the SPIFFE ID of SVID %d: %w", i+1, err)
		}
		if !certificate.IsSPIFFEID(id.String()) {
			return rotation.Issuance{}, fmt.Errorf("the SPIFFE ID of SVID %d is too long", i+1)
		}
		issuance.SPIFFEIDs = append(issuance.SPIFFEIDs, id.String())
	}

	// The first SVID is the default identity (SPIFFE Workload API,
	// section 5.2.1). It is what tbot and SPIRE send as SDS secret "default".
	first := m.Svids[0]
	chain, err := certificate.FromDER(first.GetX509Svid())
	if err != nil {
		return rotation.Issuance{}, fmt.Errorf("the first SVID: %w", err)
	}
	issuance.Leaf = certificate.Leaf(chain)
	if issuance.Leaf.SPIFFEID != issuance.SPIFFEIDs[0] {
		return rotation.Issuance{}, fmt.Errorf("the first SVID is announced as %s and its certificate says %q",
			issuance.SPIFFEIDs[0], issuance.Leaf.SPIFFEID)
	}
	authorities, err := certificate.FromDER(first.GetBundle())
	if err != nil {
		return rotation.Issuance{}, fmt.Errorf("the trust bundle of the first SVID: %w", err)
	}
	issuance.Bundle = certificate.Bundle(issuance.Leaf.TrustDomain(), authorities)
	return issuance, nil
}
