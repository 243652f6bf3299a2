package lab

import (
	"crypto/rand"
	"fmt"
	"slices"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tls "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretservice "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"google.golang.org/protobuf/types/known/anypb"
)

// The secrets that Istio's Envoy asks for.
const (
	identitySecret = "default"
	bundleSecret   = "ROOTCA"
)

const secretType = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"

// StreamSecrets is an SDS stream (state of the world). An answer is sent to
// the first request, to changed names, and at each renewal; to an ACK or a
// NACK nothing is sent (teleport: lib/tbot/internal/sds/handler.go; spire:
// pkg/agent/endpoints/sdsv3/handler.go).
func (s *server) StreamSecrets(rpc secretservice.SecretDiscoveryService_StreamSecretsServer) (err error) {
	st := s.open(SDS)
	defer func() { s.closed(st, err) }()
	requests := make(chan *discovery.DiscoveryRequest)
	broken := make(chan struct{})
	ctx := rpc.Context()
	go func() {
		for {
			r, err := rpc.Recv()
			if err != nil {
				close(broken)
				return
			}
			select {
			case requests <- r:
			case <-ctx.Done():
				return
			}
		}
	}()

	var nonce, version string
	ticked := false
	for {
		send, err := s.due(st, ticked)
		if err != nil {
			return err
		}
		if send != nil {
			nonce, version = rand.Text(), s.issuer.versionInfo(st.sent, s.now())
			answer, err := s.sdsAnswer(st, send, version, nonce)
			if err != nil {
				return err
			}
			if err := rpc.Send(answer); err != nil {
				return err
			}
		}
		ticked = false
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-broken:
			return nil // the client is gone
		case <-st.wake:
		case <-st.timer.C:
			ticked = true
		case r := <-requests:
			s.request(st, r, nonce, version)
		}
	}
}

// request takes a client's request: its first one, new names, an ACK or a NACK.
func (s *server) request(st *stream, r *discovery.DiscoveryRequest, nonce, version string) {
	e := Event{Service: st.service, Stream: st.number, Version: version}
	switch {
	case !st.asked || !slices.Equal(st.names, r.GetResourceNames()):
		s.mu.Lock() // the other streams look at it
		st.names, st.asked, st.answered = r.GetResourceNames(), true, false
		s.mu.Unlock()
		e.Kind = StreamOpened
		e.Message = fmt.Sprintf("Envoy asks for the secrets %v.", st.names)
	case r.GetResponseNonce() != nonce:
		return // about an answer that was overtaken by a later one
	case r.GetErrorDetail() != nil:
		e.Kind = Refused
		e.Message = "Envoy refused an update: " + r.GetErrorDetail().GetMessage()
	default:
		e.Kind = Acknowledged
		e.Message = fmt.Sprintf("Envoy accepted an update of %v.", st.names)
	}
	s.timeline.add(e)
}

// sdsAnswer has the secrets that the stream asked for; all, if it named none.
func (s *server) sdsAnswer(st *stream, v *svid, version, nonce string) (*discovery.DiscoveryResponse, error) {
	answer := &discovery.DiscoveryResponse{VersionInfo: version, Nonce: nonce, TypeUrl: secretType}
	names := st.names
	if len(names) == 0 {
		names = []string{identitySecret, bundleSecret}
	}
	var unknown []string
	for _, name := range names {
		secret := &tls.Secret{Name: name}
		e := Event{Service: st.service, Stream: st.number, Version: version}
		switch name {
		case identitySecret:
			secret.Type = identity(v)
			e.Kind, e.Serial, e.Message = SVIDSent, v.serial(), "An SVID is sent to Envoy."
		case bundleSecret:
			bundle, err := s.bundle()
			if err != nil {
				return nil, err
			}
			secret.Type = bundle
			e.Kind, e.Message = BundleSent, "The trust bundle is sent to Envoy."
		default:
			unknown = append(unknown, name)
			continue
		}
		resource, err := anypb.New(secret)
		if err != nil {
			return nil, fmt.Errorf("encode the secret %s: %w", name, err)
		}
		answer.Resources = append(answer.Resources, resource)
		s.timeline.add(e)
	}
	if len(unknown) > 0 {
		return nil, s.issuer.unknownNames(unknown)
	}
	return answer, nil
}

func identity(v *svid) *tls.Secret_TlsCertificate {
	return &tls.Secret_TlsCertificate{TlsCertificate: &tls.TlsCertificate{
		CertificateChain: inline(certificatePEM(v.leaf)),
		PrivateKey:       inline(keyPEM(v.key)),
	}}
}

// bundle is the trust bundle in the form that names its trust domain. tbot
// always sends it so, SPIRE unless it is told otherwise (teleport:
// sds/handler.go, newTLSV3ValidationContext; spire: sdsv3/handler.go). Each
// renewal sends it again although it is the same.
func (s *server) bundle() (*tls.Secret_ValidationContext, error) {
	var bundle []byte
	for _, a := range s.authorities(SDS) {
		bundle = append(bundle, certificatePEM(a.certificate)...)
	}
	config, err := anypb.New(&tls.SPIFFECertValidatorConfig{
		TrustDomains: []*tls.SPIFFECertValidatorConfig_TrustDomain{{
			Name:        TrustDomain,
			TrustBundle: inline(bundle),
		}},
	})
	if err != nil {
		return nil, fmt.Errorf("encode the trust bundle: %w", err)
	}
	return &tls.Secret_ValidationContext{ValidationContext: &tls.CertificateValidationContext{
		CustomValidatorConfig: &core.TypedExtensionConfig{
			Name:        "envoy.tls.cert_validator.spiffe",
			TypedConfig: config,
		},
	}}, nil
}

func inline(data []byte) *core.DataSource {
	return &core.DataSource{Specifier: &core.DataSource_InlineBytes{InlineBytes: data}}
}
