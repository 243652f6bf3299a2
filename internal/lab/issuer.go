package lab

import (
	"fmt"
	"strconv"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Issuer is the identity provider that the lab imitates.
type Issuer string

// The identity providers.
const (
	// Tbot issues a fresh SVID, with a key of its own, for each stream and
	// renews it by a timer of that stream (teleport:
	// lib/tbot/internal/sds/handler.go and
	// lib/tbot/services/workloadidentity/workload_api.go).
	Tbot Issuer = "tbot"
	// SPIRE shares one cached SVID among all streams of a workload and
	// renews it at half of its life (spire: pkg/agent/manager/cache,
	// pkg/agent/endpoints/sdsv3/handler.go; measured on a real agent).
	SPIRE Issuer = "spire"
)

// Issuers returns the identity providers.
func Issuers() []Issuer { return []Issuer{Tbot, SPIRE} }

// Service is one of the two services on the socket.
type Service string

// The services.
const (
	WorkloadAPI Service = "workload_api"
	SDS         Service = "sds"
)

// lead is by how much not-before is back-dated: tbot by a minute (the leaf of
// the incident was valid 61 minutes), SPIRE by ten seconds (measured).
func (i Issuer) lead() time.Duration {
	if i == SPIRE {
		return 10 * time.Second
	}
	return time.Minute
}

// renewal is the issuer's own rule. tbot's defaults are 60 minutes of life
// and a renewal every 20; SPIRE renews when half of the time between not-before
// and not-after has passed (measured: every 25 s with a TTL of 60 s).
func (i Issuer) renewal(ttl time.Duration) time.Duration {
	if i == SPIRE {
		return max((ttl+i.lead())/2-i.lead(), ttl/10)
	}
	return ttl / 3
}

// versionInfo is the version of the n-th answer on a stream: the send time
// with tbot (seen in the incident's dump), a counter with SPIRE (measured).
func (i Issuer) versionInfo(n int, now time.Time) string {
	if i == SPIRE {
		return strconv.Itoa(n)
	}
	return now.UTC().Format(time.RFC3339Nano)
}

// notEntitled is what a workload without an identity is told on the Workload
// API.
func (i Issuer) notEntitled() error {
	if i == SPIRE {
		return status.Error(codes.PermissionDenied, "no identity issued")
	}
	return status.Error(codes.PermissionDenied, "workload did not pass attestation for any SVIDs")
}

// unknownNames is what SDS answers to names that it does not serve this
// workload. tbot returns a plain error, which gRPC makes code Unknown; the
// stream of the trust bundle goes on, with both issuers.
func (i Issuer) unknownNames(names []string) error {
	if i == SPIRE {
		return status.Errorf(codes.InvalidArgument, "workload is not authorized for the requested identities %q", names)
	}
	return fmt.Errorf("unknown resource names: %v", names)
}
