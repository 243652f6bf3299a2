package agent

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tls "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretservice "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"svid-watchdog/internal/e2e/neighbour"
	"svid-watchdog/internal/e2e/sidecar"
	"svid-watchdog/internal/lab"
	"svid-watchdog/internal/rotation"
)

func TestMain(m *testing.M) { os.Exit(sidecar.Main(m)) }

// deed is what the agent does.
type deed string

const (
	external    deed = "leaves the socket to its owner and runs"
	waits       deed = "runs and serves nobody"
	takes       deed = "serves the socket with certificates of istiod's CA"
	servesFiles deed = "serves the files on the socket"
	refuses     deed = "exits"
)

// situation is what the agent finds.
type situation struct {
	// socket is answering, none, dead, hung or regular.
	socket string
	// renamed: WORKLOAD_IDENTITY_SOCKET_FILE names another socket.
	renamed bool
	// writable: the directory of the socket is, as an emptyDir; else it is
	// mounted read-only, as by the SPIFFE CSI driver.
	writable bool
	files    []rotation.CredentialFile
	// metadata: PROXY_CONFIG.proxyMetadata names client certificates.
	metadata bool
}

func (s situation) String() string {
	words := []string{s.socket}
	for _, w := range []struct {
		holds bool
		word  string
	}{{s.renamed, "renamed"}, {s.writable, "writable"}, {!s.writable, "csi"}, {s.metadata, "metadata"}} {
		if w.holds {
			words = append(words, w.word)
		}
	}
	return strings.Join(append(words, []string{"none", "one", "two", "all"}[len(s.files)]), "-")
}

// TestNextStart: for each situation the watchdog foretells what the agent then
// does.
func TestNextStart(t *testing.T) {
	one, two, all := rotation.CredentialFileNames()[:1], rotation.CredentialFileNames()[1:], rotation.CredentialFileNames()
	const (
		leaves, waitsFor, takesPlace = rotation.StartLeavesSocket, rotation.StartWaits, rotation.StartTakesSocket
		needsSocket, needsCerts      = rotation.StartNeedsSocket, rotation.StartNeedsClientCertificates
		needsBoth                    = rotation.StartNeedsBoth
		sds, sdsFiles                = rotation.ModeExternalSDS, rotation.ModeExternalSDSWithFiles
		mounted, istiod              = rotation.ModeFileMounted, rotation.ModeIstiodCA
	)
	const (
		noRoot    = "failed to find root CA cert for XDS"
		noRemoval = "existing SDS socket could not be removed"
		noSocket  = "agent configured for non-default SDS socket path"
	)
	for _, tt := range []struct {
		situation
		mode rotation.IdentityMode
		next rotation.NextStart
		deed deed
		why  string // why it exits
	}{
		{situation{socket: "answering"}, sds, leaves, external, ""},
		{situation{socket: "answering", files: one}, sds, leaves, external, ""},
		{situation{socket: "answering", files: two}, sds, leaves, external, ""},
		{situation{socket: "answering", files: all}, sdsFiles, needsCerts, refuses, noRoot},
		{situation{socket: "answering", files: all, metadata: true}, sdsFiles, needsCerts, external, ""},
		{situation{socket: "answering", writable: true}, sds, leaves, external, ""},
		{situation{socket: "answering", writable: true, files: all}, sdsFiles, needsCerts, refuses, noRoot},
		{situation{socket: "answering", renamed: true}, sds, leaves, external, ""},
		{situation{socket: "answering", renamed: true, files: all}, sdsFiles, needsCerts, refuses, noRoot},

		{situation{socket: "none"}, sds, waitsFor, waits, ""},
		{situation{socket: "none", files: two}, sds, waitsFor, waits, ""},
		{situation{socket: "none", files: all}, sdsFiles, needsCerts, refuses, noRoot},
		{situation{socket: "none", files: all, metadata: true}, sdsFiles, needsCerts, waits, ""},
		{situation{socket: "none", writable: true}, istiod, takesPlace, takes, ""},
		{situation{socket: "none", writable: true, files: two}, istiod, takesPlace, takes, ""},
		{situation{socket: "none", writable: true, files: all}, mounted, needsCerts, refuses, noRoot},
		{situation{socket: "none", writable: true, files: all, metadata: true}, mounted, needsCerts, servesFiles, ""},

		{situation{socket: "dead"}, sds, needsSocket, refuses, noRemoval},
		{situation{socket: "dead", files: all}, sdsFiles, needsBoth, refuses, noRemoval},
		{situation{socket: "dead", files: all, metadata: true}, sdsFiles, needsBoth, refuses, noRemoval},
		{situation{socket: "dead", writable: true}, istiod, takesPlace, takes, ""},
		{situation{socket: "dead", writable: true, files: all}, mounted, needsCerts, refuses, noRoot},

		{situation{socket: "hung"}, sds, needsSocket, refuses, noRemoval},
		{situation{socket: "hung", writable: true}, istiod, takesPlace, takes, ""},

		{situation{socket: "regular"}, sds, waitsFor, waits, ""},
		{situation{socket: "regular", writable: true}, istiod, takesPlace, takes, ""},
		{situation{socket: "regular", writable: true, files: all}, mounted, needsCerts, refuses, noRoot},

		{situation{socket: "none", renamed: true}, sds, needsSocket, refuses, noSocket},
		{situation{socket: "none", renamed: true, writable: true}, sds, needsSocket, refuses, noSocket},
		{situation{socket: "dead", renamed: true, writable: true}, sds, needsSocket, refuses, noSocket},
		{situation{socket: "none", renamed: true, files: all}, sdsFiles, needsBoth, refuses, noSocket},
	} {
		t.Run(tt.String(), func(t *testing.T) {
			t.Parallel()
			p := tt.make(t)
			name := tt.socketName()

			report := p.look(name)
			v := report.Verdict
			if v.IdentityMode != tt.mode || v.NextStart != tt.next || report.NextStart != tt.next.Sentence() {
				t.Errorf("foretold %s, %s: %q; want %s, %s", v.IdentityMode, v.NextStart, report.NextStart, tt.mode, tt.next)
			}
			advised(t, tt.situation, v)

			a := p.start("localhost:15012", tt.clientCertificates(), tt.env()...)
			if got := a.watch(name, tt.situation); got != tt.deed {
				t.Fatalf("the agent %s, want: it %s\n%s", got, tt.deed, a)
			}
			if !follows(tt.next, tt.situation, tt.deed) {
				t.Errorf("foretold was %q, and the agent %s", report.NextStart, tt.deed)
			}
			if tt.deed != refuses {
				return
			}
			if code := a.Cmd.ProcessState.ExitCode(); code != 255 || !a.says(tt.why) {
				t.Errorf("exit code %d, and not for %q\n%s", code, tt.why, a)
			}
		})
	}
}

// follows tells whether a deed is what was foretold. What the mesh's metadata
// hold the watchdog does not know, and says so.
func follows(next rotation.NextStart, s situation, d deed) bool {
	switch next {
	case rotation.StartLeavesSocket:
		return d == external
	case rotation.StartWaits:
		return d == waits
	case rotation.StartTakesSocket:
		return d == takes
	case rotation.StartNeedsSocket, rotation.StartNeedsBoth:
		return d == refuses // the socket is as it was foretold from
	case rotation.StartNeedsClientCertificates:
		return s.metadata != (d == refuses)
	default:
		return false
	}
}

// advised holds the problems and their advice to what the agent will do.
func advised(t *testing.T, s situation, v rotation.Verdict) {
	t.Helper()
	for _, want := range []struct {
		problem rotation.ProblemName
		holds   bool
		advice  string
	}{
		{rotation.CredentialFilesComplete, len(s.files) == 3, "Remove the files before istio-proxy restarts"},
		{rotation.CredentialFilesPartial, len(s.files) == 1 || len(s.files) == 2, "Find who writes the files and stop it"},
		{rotation.WorkloadUnreachable, s.socket != "answering", "no istio-proxy restart"},
	} {
		p, holds := v.Find(want.problem)
		if holds != want.holds {
			t.Errorf("%s holds: %t", want.problem, holds)
		}
		if holds && !strings.Contains(p.Advice, want.advice) {
			t.Errorf("%s advises %q, and not %q", want.problem, p.Advice, want.advice)
		}
	}
}

func (s situation) socketName() string {
	if s.renamed {
		return "provider.sock"
	}
	return "socket"
}

func (s situation) env() []string {
	if s.renamed {
		return []string{"WORKLOAD_IDENTITY_SOCKET_FILE=" + s.socketName()}
	}
	return nil
}

func (s situation) clientCertificates() map[string]string {
	if !s.metadata {
		return nil
	}
	return map[string]string{
		"ISTIO_META_TLS_CLIENT_ROOT_CERT":  certsDir + "/" + string(rotation.RootCertFile),
		"ISTIO_META_TLS_CLIENT_CERT_CHAIN": certsDir + "/" + string(rotation.CertChainFile),
		"ISTIO_META_TLS_CLIENT_KEY":        certsDir + "/" + string(rotation.KeyFile),
	}
}

// make makes a pod in the situation.
func (s situation) make(t *testing.T) *pod {
	t.Helper()
	neighbour.Need(t, "bin", "pilot-agent")
	var node string
	if s.socket == "answering" {
		box, err := lab.Start(t.Context(), lab.Config{Issuer: lab.Tbot, TTL: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := box.Close(); err != nil {
				t.Error(err)
			}
		})
		node = filepath.Dir(box.SocketPath())
		if s.renamed {
			if err := os.Symlink(filepath.Base(box.SocketPath()), filepath.Join(node, s.socketName())); err != nil {
				t.Fatal(err)
			}
		}
	} else {
		var err error
		if node, err = os.MkdirTemp("", "svid-node-"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(node) })
		s.leave(t, filepath.Join(node, s.socketName()))
	}
	p := newPod(t, node, s.writable)
	chain, key := keyPair(t)
	p.write("var/run/secrets/istio/root-cert.pem", chain)
	for _, name := range s.files {
		text := chain
		if name == rotation.KeyFile {
			text = key
		}
		p.write(filepath.Join(certsDir, string(name)), text)
	}
	p.own(p.dir)
	return p
}

// leave puts a socket there that does not answer.
func (s situation) leave(t *testing.T, path string) {
	t.Helper()
	switch s.socket {
	case "none":
	case "regular":
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	case "dead", "hung":
		// Nobody accepts: what the kernel does for a stopped process.
		l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: path})
		if err != nil {
			t.Fatal(err)
		}
		l.SetUnlinkOnClose(false)
		if s.socket == "dead" {
			l.Close()
		} else {
			t.Cleanup(func() { l.Close() })
		}
		if err := os.Chmod(path, 0o777); err != nil { //nolint:gosec // as providers do
			t.Fatal(err)
		}
	default:
		t.Fatalf("no such socket: %s", s.socket)
	}
}

// watch sees what the agent does.
func (a *proxy) watch(name string, s situation) deed {
	t := a.pod.t
	t.Helper()
	socket := filepath.Join(a.pod.node, name)
	var done deed
	neighbour.Until(t, 30*time.Second, "the agent to decide", func() bool {
		switch {
		case a.exited():
			done = refuses
		case a.says("will only serve files") && listener(t, a.pod.path(filesDir+"/files-socket")) == "pilot-agent":
			done = external
		case a.says("failed to set up UDS") && a.says("read-only file system"):
			done = waits
		case s.socket == "hung" && a.pod.node != "" && !a.says("will listen on"):
			return false // its dial would only fill the queue
		case listener(t, socket) == "pilot-agent" && a.says("Workload is using file mounted certificates"):
			done = servesFiles
		case listener(t, socket) == "pilot-agent" && a.says("CA Endpoint localhost:15012"):
			done = takes
		}
		return done != ""
	}, a)
	if done == refuses {
		return done
	}
	// It tells of a socket that it cannot have before it gives up for want of
	// a certificate.
	neighbour.Until(t, 30*time.Second, "Envoy to run", func() bool { return a.exited() || a.envoyRuns() }, a)
	if a.exited() {
		return refuses
	}
	switch owner := listener(t, socket); done {
	case external:
		if self, err := os.Executable(); err != nil || owner != filepath.Base(self) {
			t.Errorf("%q listens on the socket", owner)
		}
	case waits:
		if owner != "" {
			t.Errorf("%q listens on the socket", owner)
		}
	case servesFiles:
		if leaf := deliveredBy(t, socket); !strings.Contains(leaf, fileID) {
			t.Errorf("the agent serves %s", leaf)
		}
	}
	if a.exited() {
		t.Errorf("it has exited since\n%s", a)
	}
	return done
}

const fileID = "spiffe://files.test/ns/shop/sa/front-end"

// keyPair is a self-signed certificate and its key, for the files.
func keyPair(t *testing.T) (chain, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	id, err := url.Parse(fileID)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "the files"}, URIs: []*url.URL{id},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
}

// deliveredBy is the SPIFFE ID of the certificate that an SDS server sends as
// Envoy's identity.
func deliveredBy(t *testing.T, socket string) string {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	stream, err := secretservice.NewSecretDiscoveryServiceClient(conn).StreamSecrets(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&discovery.DiscoveryRequest{
		Node: &core.Node{Id: "test"}, ResourceNames: []string{"default"},
		TypeUrl: "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
	}); err != nil {
		t.Fatal(err)
	}
	response, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	var secret tls.Secret
	if len(response.GetResources()) != 1 {
		t.Fatalf("%d secrets", len(response.GetResources()))
	}
	if err := response.GetResources()[0].UnmarshalTo(&secret); err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(secret.GetTlsCertificate().GetCertificateChain().GetInlineBytes())
	if block == nil {
		t.Fatal("the secret is no certificate")
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return leaf.URIs[0].String()
}
