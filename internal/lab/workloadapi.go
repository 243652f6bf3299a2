package lab

import (
	"context"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// FetchX509SVID is the stream of the Workload API on which an X.509-SVID and
// its renewals come (SPIFFE Workload API, section 5.2.1).
func (s *server) FetchX509SVID(_ *workload.X509SVIDRequest, rpc grpc.ServerStreamingServer[workload.X509SVIDResponse]) (err error) {
	if !hasSecurityHeader(rpc.Context()) {
		return status.Error(codes.InvalidArgument, "security header missing from request")
	}
	st := s.open(WorkloadAPI)
	st.asked = true
	defer func() { s.closed(st, err) }()
	s.timeline.add(Event{Kind: StreamOpened, Service: st.service, Stream: st.number,
		Message: "A client opened a Workload API stream."})
	ticked := false
	for {
		send, err := s.due(st, ticked)
		if err != nil {
			return err
		}
		if send != nil {
			s.timeline.add(Event{Kind: SVIDSent, Service: st.service, Stream: st.number,
				Serial: send.serial(), Message: "An SVID is sent on the Workload API."})
			if err := rpc.Send(s.workloadAnswer(send)); err != nil {
				return err
			}
		}
		ticked = false
		select {
		case <-rpc.Context().Done():
			return rpc.Context().Err()
		case <-st.wake:
		case <-st.timer.C:
			ticked = true
		}
	}
}

// hasSecurityHeader tells whether the client shows that it is a Workload API
// client (SPIFFE Workload Endpoint, section 6.1); both issuers insist on it.
func hasSecurityHeader(ctx context.Context) bool {
	md, _ := metadata.FromIncomingContext(ctx)
	values := md.Get("workload.spiffe.io")
	return len(values) == 1 && values[0] == "true"
}

func (s *server) workloadAnswer(v *svid) *workload.X509SVIDResponse {
	var bundle []byte
	for _, a := range s.authorities(WorkloadAPI) {
		bundle = append(bundle, a.certificate.Raw...)
	}
	return &workload.X509SVIDResponse{Svids: []*workload.X509SVID{{
		SpiffeId:    v.leaf.URIs[0].String(),
		X509Svid:    v.leaf.Raw,
		X509SvidKey: v.key,
		Bundle:      bundle,
	}}}
}
