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

// errNoSVID: a message without any SVID. The specification forbids it
// (SPIFFE Workload API, section 5.2.1): the answer for a workload without an
// identity is PermissionDenied.
var errNoSVID = errors.New("the message holds no SVID")

// dropKeys overwrites the private keys of a message and lets go of them. It
// comes before anything else is done with a message.
func dropKeys(message *workload.X509SVIDResponse) {
	for _, s := range message.GetSvids() {
		clear(s.X509SvidKey)
		s.X509SvidKey = nil
	}
}

// parse translates a message. The first SVID is the default identity
// (SPIFFE Workload API, section 5.2.1), which both tbot and SPIRE also serve
// to Envoy as the secret "default".
func parse(message *workload.X509SVIDResponse, at time.Time) (rotation.Issuance, error) {
	out := rotation.Issuance{At: at}
	svids := message.GetSvids()
	if len(svids) == 0 {
		return out, errNoSVID
	}
	for i, s := range svids {
		id, err := spiffeid.FromString(s.GetSpiffeId())
		if err != nil {
			return out, fmt.Errorf("SVID %d: %w", i+1, err)
		}
		out.SPIFFEIDs = append(out.SPIFFEIDs, id.String())
		if i > 0 {
			continue
		}
		chain, err := certificate.FromDER(s.GetX509Svid())
		if err != nil {
			return out, fmt.Errorf("SVID of %s: %w", id, err)
		}
		out.Leaf = certificate.Leaf(chain)
		if out.Leaf.SPIFFEID != id.String() {
			return out, fmt.Errorf("the SVID of %s is a certificate of %q", id, out.Leaf.SPIFFEID)
		}
		authorities, err := certificate.FromDER(s.GetBundle())
		if err != nil {
			return out, fmt.Errorf("trust bundle of %s: %w", id.TrustDomain(), err)
		}
		out.Bundle = certificate.Bundle(id.TrustDomain().Name(), authorities)
	}
	return out, nil
}
