package lab

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	"svid-watchdog/internal/e2e/neighbour"
	"svid-watchdog/internal/envoy"
	"svid-watchdog/internal/lab/standin"
	"svid-watchdog/internal/rotation"
)

// script is an SDS server that does what a test says, and nothing by itself.
type script struct {
	secretv3.UnimplementedSecretDiscoveryServiceServer
	t      *testing.T
	socket string

	mu      sync.Mutex
	refuse  bool
	streams map[string]secretv3.SecretDiscoveryService_StreamSecretsServer // the latest, by secret
	asked   map[string]int                                                 // streams opened, by secret
	nonce   int
	answers chan *discoveryv3.DiscoveryRequest
	server  *grpc.Server
	served  chan struct{}
}

func newScript(t *testing.T, socket string) *script {
	s := &script{
		t: t, socket: socket, answers: make(chan *discoveryv3.DiscoveryRequest, 100),
		streams: make(map[string]secretv3.SecretDiscoveryService_StreamSecretsServer), asked: make(map[string]int),
	}
	t.Cleanup(s.stop)
	return s
}

func (s *script) listen() {
	s.t.Helper()
	listener, err := net.Listen("unix", s.socket)
	if err != nil {
		s.t.Fatal(err)
	}
	s.server, s.served = grpc.NewServer(), make(chan struct{})
	secretv3.RegisterSecretDiscoveryServiceServer(s.server, s)
	go func(server *grpc.Server, served chan struct{}) {
		defer close(served)
		_ = server.Serve(listener)
	}(s.server, s.served)
}

func (s *script) stop() {
	if s.server != nil {
		s.server.Stop()
		<-s.served
		s.server = nil
	}
}

func (s *script) StreamSecrets(stream secretv3.SecretDiscoveryService_StreamSecretsServer) error {
	s.mu.Lock()
	refuse := s.refuse
	s.mu.Unlock()
	if refuse {
		return status.Error(codes.PermissionDenied, "not entitled")
	}
	for {
		request, err := stream.Recv()
		if err != nil {
			return nil //nolint:nilerr // the client is gone
		}
		if request.GetResponseNonce() != "" {
			s.answers <- request
			continue
		}
		s.mu.Lock()
		name := request.GetResourceNames()[0]
		s.streams[name] = stream
		s.asked[name]++
		s.mu.Unlock()
	}
}

// send sends a secret on its stream, once there is one that was opened after
// the given number, and waits for the ACK or NACK.
func (s *script) send(secret *tlsv3.Secret, after int) string {
	s.t.Helper()
	name := secret.GetName()
	s.until("a stream for "+name, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.asked[name] > after
	})
	packed, err := anypb.New(secret)
	if err != nil {
		s.t.Fatal(err)
	}
	// last_updated has milliseconds: what happens within one cannot be seen to move.
	last := time.Now().UnixMilli()
	s.until("the next millisecond", func() bool { return time.Now().UnixMilli() > last })
	s.mu.Lock()
	s.nonce++
	nonce, stream := fmt.Sprint(s.nonce), s.streams[name]
	s.mu.Unlock()
	err = stream.Send(&discoveryv3.DiscoveryResponse{
		VersionInfo: time.Now().UTC().Format(time.RFC3339Nano), Nonce: nonce, TypeUrl: secretType, Resources: []*anypb.Any{packed},
	})
	if err != nil {
		s.t.Fatal(err)
	}
	deadline := time.NewTimer(10 * time.Second)
	defer deadline.Stop()
	for {
		select {
		case answer := <-s.answers:
			switch {
			case answer.GetResponseNonce() != nonce:
			case answer.GetErrorDetail() != nil:
				return "NACK"
			default:
				return "ACK"
			}
		case <-deadline.C:
			s.t.Fatalf("no answer to the secret %s", name)
		}
	}
}

func (s *script) streamsOf(name string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked[name]
}

// until waits for a condition. An Envoy's backoff may take half a minute.
func (s *script) until(what string, satisfied func() bool) {
	s.t.Helper()
	deadline := time.NewTimer(time.Minute)
	defer deadline.Stop()
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	for !satisfied() {
		select {
		case <-look.C:
		case <-deadline.C:
			s.t.Fatalf("waited in vain for %s", what)
		}
	}
}

// secrets of the script.
func identityOf(chain, key []byte) *tlsv3.Secret {
	return &tlsv3.Secret{Name: identitySecret, Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
		CertificateChain: dataSource(chain), PrivateKey: dataSource(key),
	}}}
}

func dataSource(b []byte) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: b}}
}

func bundleOf(t *testing.T, ca []byte, spiffe bool) *tlsv3.Secret {
	t.Helper()
	validation := &tlsv3.CertificateValidationContext{TrustedCa: dataSource(ca)}
	if spiffe {
		config, err := anypb.New(&tlsv3.SPIFFECertValidatorConfig{TrustDomains: []*tlsv3.SPIFFECertValidatorConfig_TrustDomain{{
			Name: TrustDomain, TrustBundle: dataSource(ca),
		}}})
		if err != nil {
			t.Fatal(err)
		}
		validation = &tlsv3.CertificateValidationContext{CustomValidatorConfig: &corev3.TypedExtensionConfig{
			Name: "envoy.tls.cert_validator.spiffe", TypedConfig: config,
		}}
	}
	return &tlsv3.Secret{Name: bundleSecret, Type: &tlsv3.Secret_ValidationContext{ValidationContext: validation}}
}

// row is what internal/envoy makes of one step, without what differs from run
// to run.
type row struct {
	step, answer, state              string
	active, warming                  string
	leaf, updated, version           string
	bundle, bundleUpdated            string
	contexts                         string
	connections, streams             uint64
	failuresRose                     bool
	stats, trustDomain, contextCount string
}

func moved(same bool) string {
	if same {
		return "stays"
	}
	return "MOVES"
}

// compare makes the row of a look and the look before it.
func compare(step, answer string, before, now rotation.Envoy, counters bool) row {
	r := row{step: step, answer: answer, state: now.State, streams: now.SDSCluster.ActiveRequests, connections: now.SDSCluster.ActiveConnections}
	r.active = fmt.Sprintf("%d+%d", len(now.Secrets.Identity), len(now.Secrets.Bundle))
	r.warming = fmt.Sprintf("%d+%d", now.Secrets.IdentityWarming, now.Secrets.BundleWarming)
	if len(now.Secrets.Identity) > 0 {
		is, was := now.Secrets.Identity[0], rotation.DeliveredIdentity{}
		if before.Secrets != nil && len(before.Secrets.Identity) > 0 {
			was = before.Secrets.Identity[0]
		}
		r.leaf = moved(is.Leaf.SHA256 == was.Leaf.SHA256)
		r.updated = moved(is.LastUpdated.Equal(was.LastUpdated))
		r.version = moved(is.Version == was.Version)
		loaded := now.Contexts.Leaves
		switch {
		case len(loaded) == 0:
			r.contexts = "none"
		case len(loaded) > 1:
			r.contexts = "mixed"
		case loaded[0].Leaf.Same(is.Leaf):
			r.contexts = "the dump's"
		default:
			r.contexts = "another"
		}
		if len(loaded) > 0 {
			r.contextCount = fmt.Sprint(loaded[0].Contexts)
		}
		if is.Err != "" {
			r.leaf = is.Err
		}
	}
	if len(now.Secrets.Bundle) > 0 {
		is, was := now.Secrets.Bundle[0], rotation.DeliveredBundle{}
		if before.Secrets != nil && len(before.Secrets.Bundle) > 0 {
			was = before.Secrets.Bundle[0]
		}
		r.bundle = moved(is.Content == was.Content)
		r.bundleUpdated = moved(is.LastUpdated.Equal(was.LastUpdated))
		if len(is.Bundles) > 0 {
			r.trustDomain = is.Bundles[0].TrustDomain
		}
		if is.Err != "" {
			r.bundle = is.Err
		}
	}
	if counters && before.SDSCluster != nil {
		r.failuresRose = now.SDSCluster.ConnectFailures > before.SDSCluster.ConnectFailures
	}
	switch {
	case now.Stats == nil:
		r.stats = "hidden"
	case before.Stats == nil:
		r.stats = fmt.Sprintf("%d/%d", now.Stats.UpdateSuccess, now.Stats.UpdateRejected)
	default:
		r.stats = fmt.Sprintf("+%d/+%d", now.Stats.UpdateSuccess-before.Stats.UpdateSuccess, now.Stats.UpdateRejected-before.Stats.UpdateRejected)
	}
	return r
}

// play plays the script on an Envoy and returns a row for each step.
func play(t *testing.T, build func(socket, dir string) (Envoy, error)) []row {
	t.Helper()
	dir, err := os.MkdirTemp("", "svid-conf-") // short: a socket's path is
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := newScript(t, filepath.Join(dir, "socket"))
	ca, err := newAuthority(TrustDomain, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	issue := func(life time.Duration) *svid {
		id, err := ca.issue(SPIFFEID, time.Now().Add(-time.Minute), time.Now().Add(life))
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	good := func() *tlsv3.Secret {
		id := issue(time.Hour)
		return identityOf(certificatePEM(id.leaf), keyPEM(id.key))
	}
	spiffe, plain := bundleOf(t, certificatePEM(ca.certificate), true), bundleOf(t, certificatePEM(ca.certificate), false)

	e, err := build(s.socket, dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	if err := e.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	client, err := envoy.New(envoy.Config{
		Address: e.AdminAddress(), SDSCluster: "sds-grpc", IdentitySecret: identitySecret, BundleSecret: bundleSecret,
		PollInterval: time.Second, BudgetPercent: 100,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	look := func() rotation.Envoy {
		o := client.Look(ctx)
		if o.Err+o.Incomplete != "" {
			t.Fatal(o.Err + o.Incomplete)
		}
		return o
	}
	var rows []row
	var before rotation.Envoy
	noteOf := func(now rotation.Envoy, step, answer string, counters bool) {
		rows = append(rows, compare(step, answer, before, now, counters))
		before = now
	}
	note := func(step, answer string) { noteOf(look(), step, answer, false) }
	// noteWhen notes the look itself that shows what was waited for: the next
	// may fall into another attempt of Envoy to connect.
	noteWhen := func(step, what string, counters bool, satisfied func(*rotation.SDSCluster) bool) {
		var now rotation.Envoy
		s.until(what, func() bool {
			now = look()
			return satisfied(now.SDSCluster)
		})
		noteOf(now, step, "", counters)
	}
	send := func(step string, secret *tlsv3.Secret) {
		t.Helper()
		note(step, s.send(secret, 0))
	}

	noteWhen("start without socket", "a failed connect", false, func(c *rotation.SDSCluster) bool { return c.ConnectFailures > 0 })

	s.listen()
	s.until("a stream for each secret", func() bool { return s.streamsOf(identitySecret) > 0 && s.streamsOf(bundleSecret) > 0 })
	send("ROOTCA only", spiffe)
	send("healthy", good())
	// The state follows the listener's start, a moment after the secrets.
	s.until("Envoy to be live", func() bool { return look().State == "LIVE" })
	renewed := good()
	send("renewal", renewed)
	send("identical re-send", renewed)
	bad := identityOf(certificatePEM(issue(time.Hour).leaf), keyPEM(issue(time.Hour).key))
	send("rejected update", bad)
	send("rejected again", bad)
	send("healed", good())
	send("ROOTCA as trusted_ca", plain)
	send("ROOTCA as SPIFFE validator", spiffe)
	send("ROOTCA again", spiffe)
	expired := issue(-time.Second)
	send("expired leaf", identityOf(certificatePEM(expired.leaf), keyPEM(expired.key)))
	send("good again", good())

	s.stop()
	gone := before.SDSCluster.ConnectFailures
	noteWhen("server gone", "Envoy to notice", true, func(c *rotation.SDSCluster) bool {
		return c.ActiveRequests == 0 && c.ConnectFailures > gone
	})

	s.mu.Lock()
	s.refuse = true
	s.mu.Unlock()
	s.listen()
	denied := before.SDSCluster.Requests
	noteWhen("denied", "Envoy to be refused", false, func(c *rotation.SDSCluster) bool {
		return c.ActiveRequests == 0 && c.ActiveConnections == 1 && c.Requests > denied
	})

	s.mu.Lock()
	s.refuse = false
	identities, bundles := s.asked[identitySecret], s.asked[bundleSecret]
	s.mu.Unlock()
	s.until("both streams again", func() bool {
		return s.streamsOf(identitySecret) > identities && s.streamsOf(bundleSecret) > bundles
	})
	note("back", s.send(spiffe, bundles))
	note("back with a new leaf", s.send(good(), identities))
	return rows
}

func table(rows []row) string {
	var b strings.Builder
	for _, r := range rows {
		fmt.Fprintf(&b, "%+v\n", r)
	}
	return b.String()
}

// TestConformance plays one script on real Envoys and on the stand-in, and
// compares what internal/envoy makes of the answers. Where they differ, the
// stand-in is wrong.
func TestConformance(t *testing.T) {
	for version, generation := range map[string]string{
		"1.36.4": "1.36", "1.37.0": "1.37", "1.38.3": "1.37", "1.39.3": "1.37", "1.40.0": "1.37",
	} {
		for _, stats := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/stats=%t", version, stats), func(t *testing.T) {
				t.Parallel()
				path := neighbour.Envoy(t, version)
				realRows := play(t, func(socket, dir string) (Envoy, error) {
					return NewRealEnvoy(RealEnvoyConfig{Path: path, SDSSocket: socket, Dir: dir, SDSStats: stats})
				})
				standInRows := play(t, func(socket, _ string) (Envoy, error) {
					return standin.New(standin.Config{Generation: generation, SDSSocket: socket, SDSStats: stats})
				})
				t.Logf("Envoy %s:\n%s", version, table(realRows))
				for i := range realRows {
					if realRows[i] != standInRows[i] {
						t.Errorf("they differ:\n  Envoy    %+v\n  stand-in %+v", realRows[i], standInRows[i])
					}
				}
			})
		}
	}
}
