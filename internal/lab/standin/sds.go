package standin

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

const secretType = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"

// host counts what Envoy counts for the host behind the SDS cluster
// (Upstream::Host, not in the stats store).
type host struct {
	conn                                               *grpc.ClientConn
	connectFail, total                                 uint64
	rqError, rqSuccess, rqTotal, rqActive, connections uint64
}

// secret is one SDS subscription.
type secret struct {
	name    string
	active  bool
	hash    [32]byte
	content *tlsv3.Secret
	version string
	updated time.Time

	attempts, successes, rejections, failures uint64
	statVersion                               string
	statTime                                  time.Time
}

// Backoff of a stream (envoy: grpc_stream.h): jittered, 500 ms doubling up to
// 30 s, reset by the first message.
const (
	backoffFirst = 500 * time.Millisecond
	backoffMost  = 30 * time.Second
)

// subscribe keeps one stream open for one secret: a source of its own for
// each, as with Istio's configuration.
func (l *life) subscribe(ctx context.Context, s *secret) {
	step := backoffFirst
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		if l.pass(ctx) != nil {
			return
		}
		if l.stream(ctx, s) {
			step = backoffFirst
		}
		l.count(func(*host) { s.failures++ })
		timer.Reset(rand.N(step) + time.Millisecond)
		step = min(backoffMost, 2*step)
	}
}

func (l *life) count(change func(*host)) {
	l.state.Lock()
	defer l.state.Unlock()
	change(&l.host)
}

// connection is the one HTTP/2 connection that all streams share.
func (l *life) connection(ctx context.Context) (*grpc.ClientConn, error) {
	l.dialing.Lock()
	defer l.dialing.Unlock()
	l.state.Lock()
	conn := l.host.conn
	l.state.Unlock()
	if conn != nil && conn.GetState() == connectivity.Ready {
		return conn, nil
	}
	l.closeConnection()
	socket, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "unix", l.cfg.SDSSocket)
	if err != nil {
		return nil, err
	}
	once := make(chan net.Conn, 1)
	once <- socket
	conn, err = grpc.NewClient("passthrough:///sds",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
			select {
			case c := <-once:
				return c, nil
			default:
				return nil, errors.New("the connection has ended")
			}
		}))
	if err != nil {
		socket.Close()
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second) // Istio's connect_timeout
	defer cancel()
	conn.Connect()
	for state := conn.GetState(); state != connectivity.Ready; state = conn.GetState() {
		if state == connectivity.TransientFailure || !conn.WaitForStateChange(ctx, state) {
			conn.Close()
			socket.Close()
			return nil, errors.New("no HTTP/2 on the connection")
		}
	}
	l.count(func(h *host) { h.conn = conn; h.total++ })
	return conn, nil
}

func (l *life) closeConnection() {
	l.state.Lock()
	conn := l.host.conn
	l.host.conn = nil
	l.state.Unlock()
	if conn != nil {
		conn.Close()
	}
}

// stream opens one stream and follows it to its end. It tells whether the
// stream brought a message.
func (l *life) stream(ctx context.Context, s *secret) (answered bool) {
	conn, err := l.connection(ctx)
	if err != nil {
		l.count(func(h *host) { h.connectFail++; h.rqError++ })
		return false
	}
	l.count(func(h *host) { h.rqTotal++; h.rqActive++ })
	answered, err = l.follow(ctx, secretv3.NewSecretDiscoveryServiceClient(conn), s)
	l.count(func(h *host) {
		h.rqActive--
		// A stream that the server finished counts as a success, whatever its
		// status; one that broke with its connection as an error.
		if code := status.Code(err); code == codes.Unavailable || code == codes.Canceled {
			h.rqError++
		} else {
			h.rqSuccess++
		}
	})
	return answered
}

func (l *life) follow(ctx context.Context, client secretv3.SecretDiscoveryServiceClient, s *secret) (answered bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := client.StreamSecrets(ctx)
	if err != nil {
		return false, err
	}
	var version, nonce string
	send := func(refusal error) error {
		l.count(func(*host) { s.attempts++ })
		request := &discoveryv3.DiscoveryRequest{
			Node:          l.node(),
			TypeUrl:       secretType,
			ResourceNames: []string{s.name},
			VersionInfo:   version,
			ResponseNonce: nonce,
		}
		if refusal != nil {
			request.ErrorDetail = &rpcstatus.Status{Code: int32(codes.Internal), Message: refusal.Error()}
		}
		return stream.Send(request)
	}
	if err := send(nil); err != nil {
		return false, err
	}
	for {
		response, err := stream.Recv()
		if err != nil {
			return answered, err
		}
		answered = true
		if err := l.pass(ctx); err != nil {
			return answered, err
		}
		nonce = response.GetNonce()
		refusal := l.take(s, response)
		if refusal == nil {
			version = response.GetVersionInfo()
		} else {
			l.cfg.Log.Warn("SDS update refused", "secret", s.name, "error", refusal)
		}
		if err := send(refusal); err != nil {
			return answered, err
		}
	}
}

// node says who asks; both tbot and SPIRE look at the version.
func (l *life) node() *corev3.Node {
	minor := uint32(36)
	if l.modern {
		minor = 40
	}
	return &corev3.Node{
		Id: "sidecar~lab", Cluster: "front-end.shop", UserAgentName: "envoy",
		UserAgentVersionType: &corev3.Node_UserAgentBuildVersion{UserAgentBuildVersion: &corev3.BuildVersion{
			Version: &typev3.SemanticVersion{MajorNumber: 1, MinorNumber: minor},
		}},
	}
}

// take is what Envoy does with an answer (envoy: source/common/secret/
// sds_api.cc), as measured on both generations. A secret with a new digest
// replaces the old one in the dump before the contexts are rebuilt, so that a
// refused one stays there, and an identical one after it is no change.
func (l *life) take(s *secret, response *discoveryv3.DiscoveryResponse) error {
	l.mu.Lock()
	stuck, half := l.stuck, l.half
	l.mu.Unlock()
	l.state.Lock()
	defer l.state.Unlock()
	refuse := func(err error) error {
		s.rejections++
		return err
	}
	var content *tlsv3.Secret
	for _, r := range response.GetResources() {
		candidate := &tlsv3.Secret{}
		if err := r.UnmarshalTo(candidate); err != nil {
			return refuse(err)
		}
		if candidate.GetName() == s.name {
			content = candidate
		}
	}
	if content == nil {
		return refuse(errors.New("Missing SDS resources")) //nolint:staticcheck // Envoy's words
	}
	wire, err := proto.MarshalOptions{Deterministic: true}.Marshal(content)
	if err != nil {
		return refuse(err)
	}
	hash := sha256.Sum256(wire)
	changed := !s.active || hash != s.hash
	if changed {
		s.hash, s.content, s.active = hash, content, true
		if l.modern {
			s.version = response.GetVersionInfo()
		}
		if !stuck {
			old := l.contexts
			if err := l.rebuild(); err != nil {
				return refuse(err)
			}
			if half && len(old) > 1 {
				l.contexts = append(slices.Clone(l.contexts[:1]), old[1:]...)
				return refuse(errors.New("a callback failed"))
			}
		}
	}
	if changed || !l.modern {
		s.updated, s.version = time.Now(), response.GetVersionInfo()
	}
	s.successes++
	s.statVersion, s.statTime = response.GetVersionInfo(), time.Now()
	return nil
}

// rebuild makes the contexts anew, one for the listener and one for each
// cluster, once both secrets are there.
func (l *life) rebuild() error {
	id, bundle := l.secrets[identitySecret].content, l.secrets[bundleSecret].content
	if id == nil {
		return nil
	}
	pair, err := tls.X509KeyPair(
		id.GetTlsCertificate().GetCertificateChain().GetInlineBytes(),
		id.GetTlsCertificate().GetPrivateKey().GetInlineBytes())
	if err != nil {
		return fmt.Errorf("Failed to load private key from <inline>: KEY_VALUES_MISMATCH: %w", err) //nolint:staticcheck // Envoy's words
	}
	if bundle == nil {
		return nil
	}
	authorities, path, err := trusted(bundle.GetValidationContext())
	if err != nil {
		return err
	}
	context := tlsContext{certificate: &pair, authorities: authorities, caPath: path}
	l.contexts = slices.Repeat([]tlsContext{context}, 1+l.cfg.Clusters)
	return nil
}

// trusted reads both forms of a validation context, and how /certs names it.
func trusted(context *tlsv3.CertificateValidationContext) ([]*x509.Certificate, string, error) {
	pemBytes, path := context.GetTrustedCa().GetInlineBytes(), "<inline>"
	if custom := context.GetCustomValidatorConfig(); custom != nil {
		config := &tlsv3.SPIFFECertValidatorConfig{}
		if err := custom.GetTypedConfig().UnmarshalTo(config); err != nil {
			return nil, "", err
		}
		for _, d := range config.GetTrustDomains() {
			pemBytes, path = d.GetTrustBundle().GetInlineBytes(), d.GetName()+": <inline>"
		}
	}
	var out []*x509.Certificate
	for block, rest := pem.Decode(pemBytes); block != nil; block, rest = pem.Decode(rest) {
		ca, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, "", err
		}
		out = append(out, ca)
	}
	if len(out) == 0 {
		return nil, "", errors.New("Failed to load trusted CA certificates from <inline>") //nolint:staticcheck // Envoy's words
	}
	return out, path, nil
}
