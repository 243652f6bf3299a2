package svid

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"go.uber.org/goleak"
	"google.golang.org/grpc"

	"svid-watchdog/internal/rotation"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(stoppedChild); path != "" {
		os.Exit(runStopped(path))
	}
	goleak.VerifyTestMain(m)
}

const (
	idA = "spiffe://example.test/ns/a/sa/a"
	idB = "spiffe://example.test/ns/a/sa/b"
)

// newCert returns a self-signed certificate in DER.
func newCert(t testing.TB, id string, serial int64) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial),
		Subject:      pkix.Name{CommonName: "a test"},
		NotBefore:    time.Unix(1_700_000_000, 0),
		NotAfter:     time.Unix(1_700_003_600, 0),
	}
	if id != "" {
		u, err := url.Parse(id)
		if err != nil {
			t.Fatal(err)
		}
		template.URIs = []*url.URL{u}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func newSVID(t testing.TB, id string, serial int64) *workload.X509SVID {
	t.Helper()
	return &workload.X509SVID{
		SpiffeId:    id,
		X509Svid:    newCert(t, id, serial),
		X509SvidKey: []byte("the secret key"),
		Bundle:      newCert(t, "", 1000+serial),
	}
}

func message(t testing.TB, serial int64) *workload.X509SVIDResponse {
	t.Helper()
	return &workload.X509SVIDResponse{Svids: []*workload.X509SVID{newSVID(t, idA, serial)}}
}

// handler answers one stream.
type handler func(n int, stream grpc.ServerStreamingServer[workload.X509SVIDResponse]) error

// server is a Workload API on a real socket.
type server struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
	grpc *grpc.Server
	done chan struct{}

	mu      sync.Mutex
	streams int
	handle  handler
}

func (s *server) FetchX509SVID(_ *workload.X509SVIDRequest, stream grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
	s.mu.Lock()
	s.streams++
	n, handle := s.streams, s.handle
	s.mu.Unlock()
	return handle(n, stream)
}

// opened is the number of streams that clients have opened.
func (s *server) opened() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.streams
}

// stop ends the server as if it were killed, but for the socket, which goes.
func (s *server) stop() {
	s.grpc.Stop()
	<-s.done
}

// serve starts a server. It ends with the test.
func serve(t testing.TB, l net.Listener, handle handler, options ...grpc.ServerOption) *server {
	t.Helper()
	s := &server{grpc: grpc.NewServer(options...), done: make(chan struct{}), handle: handle}
	workload.RegisterSpiffeWorkloadAPIServer(s.grpc, s)
	go func() {
		defer close(s.done)
		if err := s.grpc.Serve(l); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			t.Errorf("serve: %v", err)
		}
	}()
	t.Cleanup(s.stop)
	return s
}

// socketPath returns a path that is short enough for a socket, which
// t.TempDir's need not be.
func socketPath(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "svid")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return filepath.Join(dir, "socket")
}

func listenUnix(t testing.TB, path string) *net.UnixListener {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// sendAndStay sends messages and keeps the stream open.
func sendAndStay(messages ...*workload.X509SVIDResponse) handler {
	return func(_ int, stream grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
		for _, m := range messages {
			if err := stream.Send(m); err != nil {
				return err
			}
		}
		<-stream.Context().Done()
		return nil
	}
}

// client runs a client and holds what it tells.
type client struct {
	t      *testing.T
	states chan rotation.WorkloadAPI
	issued chan rotation.Issuance
	log    *syncBuffer
	stop   func()
	// under may be looked into after stop.
	under *Client
}

const (
	// atOnce bounds what should come at once, and ends no test that goes well.
	atOnce = 20 * time.Second
	// busy is how long a busy machine may take to open a stream. Tests that
	// wait for a silence to be told wait as long.
	busy = time.Second
)

// run starts a client, with short times unless the configuration has others.
func run(t *testing.T, cfg Config) *client {
	t.Helper()
	c := &client{
		t:      t,
		states: make(chan rotation.WorkloadAPI, 10_000),
		issued: make(chan rotation.Issuance, 10_000),
		log:    &syncBuffer{},
	}
	cfg.Log = slog.New(slog.NewTextHandler(c.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	cfg.State = func(s rotation.WorkloadAPI) { c.states <- s }
	cfg.Issued = func(i rotation.Issuance) { c.issued <- i }
	if cfg.AnswerTimeout == 0 {
		cfg.AnswerTimeout = atOnce
	}
	if cfg.BackoffMin == 0 {
		cfg.BackoffMin = 5 * time.Millisecond
	}
	if cfg.BackoffMax == 0 {
		cfg.BackoffMax = 20 * time.Millisecond
	}
	under, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	c.under = under
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- under.Run(ctx) }()
	c.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run = %v, want nil", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("Run does not end with its context")
		}
	})
	t.Cleanup(c.stop)
	if first := c.state(); first.State != rotation.WorkloadAPIConnecting || first.At.IsZero() {
		t.Errorf("first state %+v, want connecting", first)
	}
	return c
}

const patienceOfTests = 30 * time.Second

// state returns the next state.
func (c *client) state() rotation.WorkloadAPI {
	c.t.Helper()
	select {
	case s := <-c.states:
		return s
	case <-time.After(patienceOfTests):
		c.t.Fatalf("no state is told; log:\n%s", c.log)
		panic("unreachable")
	}
}

// issuance returns the next issuance.
func (c *client) issuance() rotation.Issuance {
	c.t.Helper()
	select {
	case i := <-c.issued:
		return i
	case <-time.After(patienceOfTests):
		c.t.Fatalf("nothing is issued; log:\n%s", c.log)
		panic("unreachable")
	}
}

// until returns the first state of that kind, however many others come before.
func (c *client) until(state rotation.WorkloadAPIState, reason rotation.Reason) rotation.WorkloadAPI {
	c.t.Helper()
	deadline := time.After(patienceOfTests)
	var last rotation.WorkloadAPI
	for {
		select {
		case last = <-c.states:
			if last.State == state && last.Reason == reason {
				return last
			}
		case <-deadline:
			c.t.Fatalf("never %s %s; last %s; log:\n%s", state, reason, show(last), c.log)
		}
	}
}

// want checks a state. Neither of answers and detail is checked if empty.
func want(t *testing.T, got rotation.WorkloadAPI, state rotation.WorkloadAPIState, reason rotation.Reason, answers string) {
	t.Helper()
	if got.State != state || got.Reason != reason || answers != "" && show(got).answers != answers {
		t.Errorf("state %+v, want %s %s, socket answers %s", show(got), state, reason, answers)
	}
	if got.State != rotation.WorkloadAPIServing && got.Detail == "" {
		t.Errorf("state %+v has no detail", show(got))
	}
	if got.At.IsZero() || time.Since(got.At) > time.Hour {
		t.Errorf("state %+v at %v", show(got), got.At)
	}
}

type shown struct {
	state           rotation.WorkloadAPIState
	reason          rotation.Reason
	detail, answers string
}

func show(w rotation.WorkloadAPI) shown {
	s := shown{w.State, w.Reason, w.Detail, "unknown"}
	if w.SocketAnswers != nil {
		s.answers = fmt.Sprint(*w.SocketAnswers)
	}
	return s
}

// syncBuffer is a log that is written and read at the same time.
type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
