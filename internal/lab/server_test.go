package lab

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	envoytls "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretservice "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

const (
	// never is a renewal that no test lives to see.
	never = time.Hour
	// patience bounds what should come at once.
	patience = 20 * time.Second
)

// fixture is a server with a client.
type fixture struct {
	*server
	t    *testing.T
	path string
	conn *grpc.ClientConn
	ctx  context.Context
}

func serve(t *testing.T, issuer Issuer, ttl, renewal time.Duration) *fixture {
	t.Helper()
	s, err := newServer(issuer, ttl, renewal, issuer.lead(), nil, newTimeline(slog.New(slog.DiscardHandler)))
	if err != nil {
		t.Fatal(err)
	}
	// t.TempDir's path may be too long for a socket.
	dir, err := os.MkdirTemp("", "svid-lab-")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "socket")
	if err := s.listen(path); err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(func() {
		cancel()
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
		if err := s.close(); err != nil {
			t.Error(err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return &fixture{server: s, t: t, path: path, conn: conn, ctx: ctx}
}

func eachIssuer(t *testing.T, test func(*testing.T, Issuer)) {
	for _, issuer := range Issuers() {
		t.Run(string(issuer), func(t *testing.T) {
			t.Parallel()
			test(t, issuer)
		})
	}
}

type apiStream = grpc.ServerStreamingClient[workload.X509SVIDResponse]

func (f *fixture) openAPI() apiStream {
	f.t.Helper()
	ctx := metadata.AppendToOutgoingContext(f.ctx, "workload.spiffe.io", "true")
	stream, err := workload.NewSpiffeWorkloadAPIClient(f.conn).FetchX509SVID(ctx, &workload.X509SVIDRequest{})
	if err != nil {
		f.t.Fatal(err)
	}
	return stream
}

// issued is the next leaf on a Workload API stream.
func (f *fixture) issued(stream apiStream) *x509.Certificate {
	f.t.Helper()
	answer, err := stream.Recv()
	if err != nil {
		f.t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(answer.GetSvids()[0].GetX509Svid())
	if err != nil {
		f.t.Fatal(err)
	}
	return leaf
}

// sds is an SDS stream of a client that acknowledges only when told to.
type sds struct {
	f      *fixture
	names  []string
	stream secretservice.SecretDiscoveryService_StreamSecretsClient
}

func (f *fixture) openSDS(names ...string) *sds {
	f.t.Helper()
	stream, err := secretservice.NewSecretDiscoveryServiceClient(f.conn).StreamSecrets(f.ctx)
	if err != nil {
		f.t.Fatal(err)
	}
	s := &sds{f, names, stream}
	s.send(&discovery.DiscoveryRequest{})
	return s
}

func (s *sds) send(r *discovery.DiscoveryRequest) {
	s.f.t.Helper()
	r.TypeUrl, r.ResourceNames = secretType, s.names
	if err := s.stream.Send(r); err != nil {
		s.f.t.Fatal(err)
	}
}

func (s *sds) receive() *discovery.DiscoveryResponse {
	s.f.t.Helper()
	answer, err := s.stream.Recv()
	if err != nil {
		s.f.t.Fatal(err)
	}
	return answer
}

// answer replies to an answer; a text makes it a NACK.
func (s *sds) answer(a *discovery.DiscoveryResponse, refusal string) {
	s.f.t.Helper()
	r := &discovery.DiscoveryRequest{VersionInfo: a.GetVersionInfo(), ResponseNonce: a.GetNonce()}
	if refusal != "" {
		r.ErrorDetail = &rpcstatus.Status{Code: int32(codes.InvalidArgument), Message: refusal}
	}
	s.send(r)
}

// secrets decodes an answer.
func secrets(t *testing.T, a *discovery.DiscoveryResponse) map[string]*envoytls.Secret {
	t.Helper()
	all := make(map[string]*envoytls.Secret)
	for _, resource := range a.GetResources() {
		secret := &envoytls.Secret{}
		if err := resource.UnmarshalTo(secret); err != nil {
			t.Fatal(err)
		}
		all[secret.GetName()] = secret
	}
	return all
}

// leafOf is the identity in an answer, without a look at its key.
func leafOf(t *testing.T, a *discovery.DiscoveryResponse) *x509.Certificate {
	t.Helper()
	chain := secrets(t, a)[identitySecret].GetTlsCertificate().GetCertificateChain()
	return parsePEM(t, chain)
}

func parsePEM(t *testing.T, source *core.DataSource) *x509.Certificate {
	t.Helper()
	block, rest := pem.Decode(source.GetInlineBytes())
	if block == nil || len(rest) > 0 {
		t.Fatalf("want one PEM block: %q", source.GetInlineBytes())
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// await returns the first event of the timeline that fits.
func (f *fixture) await(fits func(Event) bool) Event {
	f.t.Helper()
	return awaitEvent(f.ctx, f.t, f.timeline.snapshot, fits)
}

func awaitEvent(ctx context.Context, t *testing.T, snapshot func() ([]Event, <-chan struct{}), fits func(Event) bool) Event {
	t.Helper()
	for {
		events, changed := snapshot()
		for _, e := range events {
			if fits(e) {
				return e
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			t.Fatalf("it never happens; what did:\n%+v", events)
		}
	}
}

func (f *fixture) count(kind EventKind, service Service) int {
	events, _ := f.timeline.snapshot()
	n := 0
	for _, e := range events {
		if e.Kind == kind && e.Service == service {
			n++
		}
	}
	return n
}

func wantCode(t *testing.T, err error, code codes.Code, text string) {
	t.Helper()
	if status.Code(err) != code || !strings.Contains(err.Error(), text) {
		t.Errorf("error %v, want code %s and %q", err, code, text)
	}
}

// TestWorkloadAPI: the SVID is a good one, and its renewal comes by itself.
func TestWorkloadAPI(t *testing.T) {
	eachIssuer(t, func(t *testing.T, issuer Issuer) {
		const ttl = time.Minute
		f := serve(t, issuer, ttl, 300*time.Millisecond)
		stream := f.openAPI()
		before := time.Now()
		answer, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		got := answer.GetSvids()[0]
		leaf, err := x509.ParseCertificate(got.GetX509Svid())
		if err != nil {
			t.Fatal(err)
		}
		bundle, err := x509.ParseCertificate(got.GetBundle())
		if err != nil {
			t.Fatal(err)
		}
		roots := x509.NewCertPool()
		roots.AddCert(bundle)
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
			t.Error(err)
		}
		if leaf.URIs[0].String() != SPIFFEID || got.GetSpiffeId() != SPIFFEID {
			t.Errorf("SPIFFE IDs %v and %s", leaf.URIs, got.GetSpiffeId())
		}
		key, err := x509.ParsePKCS8PrivateKey(got.GetX509SvidKey())
		if err != nil {
			t.Fatal(err)
		}
		if !key.(*ecdsa.PrivateKey).PublicKey.Equal(leaf.PublicKey) {
			t.Error("the key does not match")
		}
		if lead := before.Sub(leaf.NotBefore); (lead - issuer.lead()).Abs() > 3*time.Second {
			t.Errorf("back-dated by %s, want %s", lead, issuer.lead())
		}
		if life := leaf.NotAfter.Sub(leaf.NotBefore); life != ttl+issuer.lead() {
			t.Errorf("lives %s, want %s", life, ttl+issuer.lead())
		}
		for range 3 {
			next := f.issued(stream)
			if next.SerialNumber.Cmp(leaf.SerialNumber) == 0 {
				t.Error("renewed with the same serial")
			}
			leaf = next
		}
	})
}

// TestWorkloadAPIWithoutHeader: a request that may come from a tricked client
// is refused.
func TestWorkloadAPIWithoutHeader(t *testing.T) {
	f := serve(t, Tbot, time.Minute, never)
	stream, err := workload.NewSpiffeWorkloadAPIClient(f.conn).FetchX509SVID(f.ctx, &workload.X509SVIDRequest{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = stream.Recv()
	wantCode(t, err, codes.InvalidArgument, "security header missing")
}

// TestSharing: tbot issues for each stream, SPIRE shares.
func TestSharing(t *testing.T) {
	eachIssuer(t, func(t *testing.T, issuer Issuer) {
		f := serve(t, issuer, time.Minute, never)
		a, b := f.issued(f.openAPI()), f.issued(f.openAPI())
		delivered := leafOf(t, f.openSDS(identitySecret).receive())
		shared := a.Equal(b) && a.Equal(delivered)
		distinct := !a.Equal(b) && !a.Equal(delivered) && !b.Equal(delivered)
		if issuer == SPIRE && !shared || issuer == Tbot && !distinct {
			t.Errorf("serials %x, %x and %x", a.SerialNumber, b.SerialNumber, delivered.SerialNumber)
		}
	})
}

// TestSDS: what the secrets hold, how versions go, and that nothing is sent in
// answer to an ACK or a NACK.
func TestSDS(t *testing.T) {
	eachIssuer(t, func(t *testing.T, issuer Issuer) {
		f := serve(t, issuer, time.Minute, never)
		identity, bundle := f.openSDS(identitySecret), f.openSDS(bundleSecret)
		first, authority := identity.receive(), bundle.receive()

		certificate := secrets(t, first)[identitySecret].GetTlsCertificate()
		if _, err := tls.X509KeyPair(certificate.GetCertificateChain().GetInlineBytes(), certificate.GetPrivateKey().GetInlineBytes()); err != nil {
			t.Error(err)
		}
		custom := secrets(t, authority)[bundleSecret].GetValidationContext().GetCustomValidatorConfig()
		spiffe := &envoytls.SPIFFECertValidatorConfig{}
		if err := custom.GetTypedConfig().UnmarshalTo(spiffe); err != nil {
			t.Fatal(err)
		}
		domain := spiffe.GetTrustDomains()[0]
		if custom.GetName() != "envoy.tls.cert_validator.spiffe" || domain.GetName() != TrustDomain {
			t.Errorf("validator %s for %s", custom.GetName(), domain.GetName())
		}
		if err := leafOf(t, first).CheckSignatureFrom(parsePEM(t, domain.GetTrustBundle())); err != nil {
			t.Error(err)
		}

		identity.answer(first, "")
		ack := f.await(func(e Event) bool { return e.Kind == Acknowledged })
		identity.answer(first, "no, thank you")
		refused := f.await(func(e Event) bool { return e.Kind == Refused })
		if ack.Version != first.GetVersionInfo() || !strings.Contains(refused.Message, "no, thank you") {
			t.Errorf("noted %+v and %+v", ack, refused)
		}
		if n := f.count(SVIDSent, SDS); n != 1 {
			t.Errorf("%d answers, want only the first", n)
		}

		f.push(SDS)
		second, again := identity.receive(), bundle.receive()
		if issuer == SPIRE {
			if first.GetVersionInfo() != "1" || second.GetVersionInfo() != "2" {
				t.Errorf("versions %s and %s", first.GetVersionInfo(), second.GetVersionInfo())
			}
		} else {
			a, errA := time.Parse(time.RFC3339Nano, first.GetVersionInfo())
			b, errB := time.Parse(time.RFC3339Nano, second.GetVersionInfo())
			if errA != nil || errB != nil || !b.After(a) {
				t.Errorf("versions %s and %s are not times in order", first.GetVersionInfo(), second.GetVersionInfo())
			}
		}
		if first.GetNonce() == second.GetNonce() {
			t.Error("a nonce is used twice")
		}
		old, fresh := secrets(t, authority)[bundleSecret], secrets(t, again)[bundleSecret]
		if old.String() != fresh.String() {
			t.Error("the bundle has changed")
		}
	})
}

// TestSDSNames: no names are all names, and unknown ones an error.
func TestSDSNames(t *testing.T) {
	eachIssuer(t, func(t *testing.T, issuer Issuer) {
		f := serve(t, issuer, time.Minute, never)
		if all := secrets(t, f.openSDS().receive()); len(all) != 2 {
			t.Errorf("got %v, want both secrets", all)
		}
		code := map[Issuer]codes.Code{Tbot: codes.Unknown, SPIRE: codes.InvalidArgument}[issuer]
		_, err := f.openSDS("nobody").stream.Recv()
		wantCode(t, err, code, "nobody")
	})
}

// TestRenewalOfSDS: each stream is renewed in its time; an SPIRE update goes
// out on every stream and is one SVID for all.
func TestRenewalOfSDS(t *testing.T) {
	eachIssuer(t, func(t *testing.T, issuer Issuer) {
		f := serve(t, issuer, time.Minute, 300*time.Millisecond)
		stream := f.openSDS(identitySecret)
		leaf := leafOf(t, stream.receive())
		for range 3 {
			next := leafOf(t, stream.receive())
			if next.Equal(leaf) {
				t.Error("renewed with the same leaf")
			}
			leaf = next
		}
	})
}

// TestConduct: what each way of misbehaving does to a client.
func TestConduct(t *testing.T) {
	eachIssuer(t, func(t *testing.T, issuer Issuer) {
		set := func(f *fixture, service Service, c conduct) { f.behave(map[Service]conduct{service: c}) }

		t.Run("resend", func(t *testing.T) {
			f := serve(t, issuer, time.Minute, never)
			stream := f.openSDS(identitySecret)
			first := stream.receive()
			set(f, SDS, conduct{resend: true})
			if err := f.renewShared(); err != nil {
				t.Fatal(err)
			}
			f.push(SDS)
			second := stream.receive()
			if !leafOf(t, first).Equal(leafOf(t, second)) || first.GetVersionInfo() == second.GetVersionInfo() {
				t.Error("want the same leaf under a new version")
			}
		})
		t.Run("not entitled", func(t *testing.T) {
			f := serve(t, issuer, time.Minute, never)
			set(f, SDS, conduct{noIdentity: true})
			code := map[Issuer]codes.Code{Tbot: codes.Unknown, SPIRE: codes.InvalidArgument}[issuer]
			_, err := f.openSDS(identitySecret).stream.Recv()
			wantCode(t, err, code, identitySecret)
			f.openSDS(bundleSecret).receive()
			set(f, WorkloadAPI, conduct{noIdentity: true})
			_, err = f.openAPI().Recv()
			wantCode(t, err, codes.PermissionDenied, "")
		})
		t.Run("withhold", func(t *testing.T) {
			f := serve(t, issuer, time.Minute, never)
			set(f, SDS, conduct{withhold: true})
			stream := f.openSDS(identitySecret)
			f.openSDS(bundleSecret).receive()
			f.await(func(e Event) bool {
				return e.Kind == StreamOpened && strings.Contains(e.Message, identitySecret)
			})
			if n := f.count(SVIDSent, SDS); n != 0 {
				t.Errorf("%d SVIDs were sent", n)
			}
			set(f, SDS, conduct{})
			leafOf(t, stream.receive())
		})
		t.Run("cut and refuse", func(t *testing.T) {
			f := serve(t, issuer, time.Minute, never)
			stream := f.openSDS(identitySecret)
			stream.receive()
			set(f, SDS, conduct{refuse: status.Error(codes.PermissionDenied, "go away")})
			_, err := stream.stream.Recv()
			wantCode(t, err, codes.PermissionDenied, "go away")
			api := f.openAPI()
			f.issued(api)
			f.cut(WorkloadAPI, status.Error(codes.Unavailable, "restarting"))
			_, err = api.Recv()
			wantCode(t, err, codes.Unavailable, "restarting")
		})
		t.Run("frozen", func(t *testing.T) {
			f := serve(t, issuer, time.Minute, 100*time.Millisecond)
			f.behave(map[Service]conduct{WorkloadAPI: {frozen: true}, SDS: {frozen: true}})
			a := f.issued(f.openAPI())
			// Three renewals would have come in this time.
			time.Sleep(350 * time.Millisecond)
			if b := f.issued(f.openAPI()); !a.Equal(b) {
				t.Error("something was renewed")
			}
			if n := f.count(SVIDSent, WorkloadAPI); n != 2 {
				t.Errorf("%d SVIDs were sent, want 2", n)
			}
		})
		t.Run("spoiled", func(t *testing.T) {
			f := serve(t, issuer, time.Minute, never)
			set(f, SDS, conduct{foreign: true})
			if err := leafOf(t, f.openSDS(identitySecret).receive()).CheckSignatureFrom(f.ca.certificate); err == nil {
				t.Error("the leaf is not foreign")
			}
			set(f, SDS, conduct{otherID: true})
			if id := leafOf(t, f.openSDS(identitySecret).receive()).URIs[0].String(); id != otherSPIFFEID {
				t.Errorf("SPIFFE ID %s", id)
			}
			set(f, SDS, conduct{expired: true})
			if leaf := leafOf(t, f.openSDS(identitySecret).receive()); leaf.NotAfter.After(time.Now()) || !leaf.NotBefore.Before(leaf.NotAfter) {
				t.Errorf("valid from %s to %s", leaf.NotBefore, leaf.NotAfter)
			}
			set(f, SDS, conduct{badKey: true})
			c := secrets(t, f.openSDS(identitySecret).receive())[identitySecret].GetTlsCertificate()
			if _, err := tls.X509KeyPair(c.GetCertificateChain().GetInlineBytes(), c.GetPrivateKey().GetInlineBytes()); err == nil {
				t.Error("the key matches")
			}
		})
	})
}

// TestSocket: the socket is open to all, a stop leaves the file behind, and a
// new start replaces it.
func TestSocket(t *testing.T) {
	f := serve(t, Tbot, time.Minute, never)
	info, err := os.Stat(f.path)
	if err != nil || info.Mode().Perm() != 0o777 || info.Mode().Type() != os.ModeSocket {
		t.Fatalf("%v, %v", info.Mode(), err)
	}
	stream := f.openAPI()
	f.issued(stream)
	if err := f.stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err == nil {
		t.Error("the stream goes on")
	}
	if _, err := os.Stat(f.path); err != nil {
		t.Error(err)
	}
	if err := f.listen(f.path); err != nil {
		t.Fatal(err)
	}
	f.conn.ResetConnectBackoff()
	f.issued(f.openAPI())
}

// TestStopAtOnce: a server may be stopped before it has begun to serve, by
// somebody who interrupts the lab as soon as it runs.
func TestStopAtOnce(t *testing.T) {
	f := serve(t, Tbot, time.Minute, never)
	for range 200 {
		if err := f.stop(); err != nil {
			t.Fatal(err)
		}
		if err := f.listen(f.path); err != nil {
			t.Fatal(err)
		}
	}
	f.conn.ResetConnectBackoff()
	f.issued(f.openAPI())
}
