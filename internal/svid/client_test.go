package svid

import (
	"bufio"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"svid-watchdog/internal/rotation"
)

func TestAddresses(t *testing.T) {
	long := strings.Repeat("a", maxSocketPath-1)
	for address, test := range map[string]struct {
		want endpoint
		err  string
	}{
		"unix:///run/socket":    {want: endpoint{"unix", "/run/socket"}},
		"unix:///a%20b":         {want: endpoint{"unix", "/a b"}},
		"unix:///" + long:       {want: endpoint{"unix", "/" + long}},
		"unix:///" + long + "a": {err: "108 bytes"},
		"unix:run/socket":       {err: "opaque"},
		"unix://run/socket":     {err: "absolute"},
		"unix://":               {err: "path"},
		"unix:///a?b":           {err: "query"},
		"tcp://127.0.0.1:8081":  {want: endpoint{"tcp", "127.0.0.1:8081"}},
		"tcp://[::1]:8081":      {want: endpoint{"tcp", "[::1]:8081"}},
		"tcp://localhost:8081":  {err: "IP:port"},
		"tcp://127.0.0.1":       {err: "port"},
		"/run/socket":           {err: "scheme"},
		"http://127.0.0.1:80":   {err: "scheme"},
		"":                      {err: "scheme"},
		"unix:///%zz":           {err: "valid URI"},
	} {
		c, err := New(Config{Address: address})
		switch {
		case test.err != "":
			if err == nil || !strings.Contains(err.Error(), test.err) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%q: error %v, want a line with %q", address, err, test.err)
			}
		case err != nil:
			t.Errorf("%q: %v", address, err)
		case c.endpoint != test.want:
			t.Errorf("%q: %v, want %v", address, c.endpoint, test.want)
		}
	}
}

func TestDefaults(t *testing.T) {
	c, err := New(Config{Address: "unix:///run/socket"})
	if err != nil {
		t.Fatal(err)
	}
	if c.cfg.AnswerTimeout != 10*time.Second || c.cfg.BackoffMin != time.Second || c.cfg.BackoffMax != 30*time.Second {
		t.Errorf("defaults: %+v", c.cfg)
	}
	// Servers refuse more frequent pings by closing the connection.
	if keepaliveTime < 5*time.Minute {
		t.Errorf("keepalive every %v, want at least 5 min", keepaliveTime)
	}
}

func TestServing(t *testing.T) {
	t.Parallel()
	headers := make(chan metadata.MD, 10)
	path := socketPath(t)
	s := serve(t, listenUnix(t, path), func(n int, stream grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
		md, _ := metadata.FromIncomingContext(stream.Context())
		headers <- md
		return sendAndStay(message(t, 1), message(t, 2))(n, stream)
	})
	c := run(t, Config{Address: "unix://" + path})
	for i := 1; i <= 2; i++ {
		want(t, c.state(), rotation.WorkloadAPIServing, "", "true")
		got := c.issuance()
		if got.Leaf.Serial != fmt.Sprint(i) || got.Stream != 1 || got.At.IsZero() {
			t.Errorf("issuance %+v, want serial %d of stream 1", got, i)
		}
	}
	md := <-headers
	if got := md.Get("workload.spiffe.io"); len(got) != 1 || got[0] != "true" {
		t.Errorf("header workload.spiffe.io: %v, want true once", got)
	}
	if got := md.Get(":authority"); len(got) != 1 || got[0] != "localhost" {
		t.Errorf("authority: %v, want localhost", got)
	}
	c.stop()
	if s.opened() != 1 {
		t.Errorf("%d streams, want 1", s.opened())
	}
}

func TestServingOverTCP(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serve(t, l, sendAndStay(message(t, 1)))
	c := run(t, Config{Address: "tcp://" + l.Addr().String()})
	want(t, c.state(), rotation.WorkloadAPIServing, "", "true")
}

func TestNoSocket(t *testing.T) {
	t.Parallel()
	path := socketPath(t)
	c := run(t, Config{Address: "unix://" + path})
	for range 3 { // The state is told at each attempt.
		want(t, c.state(), rotation.WorkloadAPIUnreachable, rotation.ReasonNoSocket, "false")
	}
	// The directory is missing, or a file is in its place.
	dir := filepath.Dir(path)
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	c.until(rotation.WorkloadAPIUnreachable, rotation.ReasonNoSocket)
	if err := os.WriteFile(dir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		want(t, c.state(), rotation.WorkloadAPIUnreachable, rotation.ReasonNoSocket, "false")
	}
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	// Then the server comes.
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	serve(t, listenUnix(t, path), sendAndStay(message(t, 1)))
	c.until(rotation.WorkloadAPIServing, "")
	if got := c.issuance(); got.Stream != 1 {
		t.Errorf("stream %d, want 1: only opened streams count", got.Stream)
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	path := socketPath(t)
	l := listenUnix(t, path)
	l.SetUnlinkOnClose(false) // As when the server is killed.
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	c := run(t, Config{Address: "unix://" + path})
	want(t, c.state(), rotation.WorkloadAPIUnreachable, rotation.ReasonRefused, "false")
}

func TestRefusedOverTCP(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	c := run(t, Config{Address: "tcp://" + l.Addr().String()})
	want(t, c.state(), rotation.WorkloadAPIUnreachable, rotation.ReasonRefused, "false")
}

// The server hangs before its first byte. The kernel accepts for it.
func TestSilentBeforeHTTP2(t *testing.T) {
	t.Parallel()
	path := socketPath(t)
	listenUnix(t, path) // Nobody accepts.
	c := run(t, Config{Address: "unix://" + path, AnswerTimeout: 50 * time.Millisecond})
	for range 2 {
		got := c.state()
		want(t, got, rotation.WorkloadAPIUnreachable, rotation.ReasonSilent, "false")
		if !strings.Contains(got.Detail, "HTTP/2") {
			t.Errorf("detail %q", got.Detail)
		}
	}
}

// The stream is open and nothing comes. It is kept for a while, since another
// one would make tbot issue anew.
func TestSilentStream(t *testing.T) {
	t.Parallel()
	path := socketPath(t)
	release := make(chan struct{})
	s := serve(t, listenUnix(t, path), func(n int, stream grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
		select {
		case <-release:
			return sendAndStay(message(t, 1))(n, stream)
		case <-stream.Context().Done():
			return nil
		}
	})
	c := run(t, Config{Address: "unix://" + path, AnswerTimeout: busy})
	for range 2 {
		got := c.state()
		want(t, got, rotation.WorkloadAPIUnreachable, rotation.ReasonSilent, "true")
		if !strings.Contains(got.Detail, "no answer") {
			t.Errorf("detail %q", got.Detail)
		}
	}
	if n := s.opened(); n != 1 {
		t.Errorf("%d streams, want 1", n)
	}
	close(release)
	c.until(rotation.WorkloadAPIServing, "")
	if got := c.issuance(); got.Stream != 1 {
		t.Errorf("the late answer came on stream %d, want 1", got.Stream)
	}
}

func TestASilentStreamIsGivenUpInTheEnd(t *testing.T) {
	t.Parallel()
	path := socketPath(t)
	s := serve(t, listenUnix(t, path), func(n int, stream grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
		if n == 1 {
			<-stream.Context().Done()
			return nil
		}
		return sendAndStay(message(t, 1))(n, stream)
	})
	c := run(t, Config{Address: "unix://" + path, AnswerTimeout: busy})
	for range patience {
		want(t, c.state(), rotation.WorkloadAPIUnreachable, rotation.ReasonSilent, "true")
	}
	want(t, c.state(), rotation.WorkloadAPIServing, "", "true")
	if got := c.issuance(); got.Stream != 2 || s.opened() != 2 {
		t.Errorf("served on stream %d of %d, want 2 of 2", got.Stream, s.opened())
	}
}

// A stream that has brought something may be silent for as long as it likes.
func TestAStreamAtRestIsNotSilent(t *testing.T) {
	t.Parallel()
	path := socketPath(t)
	s := serve(t, listenUnix(t, path), sendAndStay(message(t, 1)))
	c := run(t, Config{Address: "unix://" + path, AnswerTimeout: 50 * time.Millisecond})
	c.until(rotation.WorkloadAPIServing, "")
	before := s.opened() // on a busy machine the first answer may come too late
	select {
	case got := <-c.states:
		t.Errorf("state %+v, want none", show(got))
	case <-time.After(10 * 50 * time.Millisecond):
	}
	if s.opened() != before {
		t.Errorf("%d streams, want %d", s.opened(), before)
	}
}

// Each answer of a server that is no SVID, and the one that follows: no code
// ends the loop for good.
func TestServerErrors(t *testing.T) {
	t.Parallel()
	for _, code := range []codes.Code{
		codes.OK, codes.Canceled, codes.Unknown, codes.InvalidArgument, codes.DeadlineExceeded, codes.ResourceExhausted,
		codes.Unimplemented, codes.Internal, codes.Unavailable, codes.Unauthenticated, codes.PermissionDenied,
	} {
		t.Run(code.String(), func(t *testing.T) {
			t.Parallel()
			path := socketPath(t)
			serve(t, listenUnix(t, path), func(n int, stream grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
				if n <= 2 {
					return status.Error(code, "the server says no")
				}
				return sendAndStay(message(t, 1))(n, stream)
			})
			c := run(t, Config{Address: "unix://" + path})
			for range 2 {
				got := c.state()
				state, reason := rotation.WorkloadAPIUnreachable, rotation.ReasonServerError
				if code == codes.PermissionDenied {
					state, reason = rotation.WorkloadAPIDenied, rotation.ReasonNone
				}
				want(t, got, state, reason, "true")
				detail := code.String() + ": the server says no"
				if code == codes.OK {
					detail = "the server closed the stream"
				}
				if got.Detail != detail {
					t.Errorf("detail %q, want %q", got.Detail, detail)
				}
			}
			want(t, c.state(), rotation.WorkloadAPIServing, "", "true")
			if got := c.issuance(); got.Stream != 3 {
				t.Errorf("stream %d, want 3", got.Stream)
			}
			c.stop()
			if got := strings.Count(c.log.String(), "brings no SVID"); got != 1 {
				t.Errorf("the failure is logged %d times, want once:\n%s", got, c.log)
			}
			if got := strings.Count(c.log.String(), "serves again"); got != 1 {
				t.Errorf("the recovery is logged %d times, want once:\n%s", got, c.log)
			}
		})
	}
}

// What is accepted and does not speak HTTP/2 is no Workload API.
func TestNotAnHTTP2Server(t *testing.T) {
	t.Parallel()
	for name, talk := range map[string]func(net.Conn){
		"hangs up": func(net.Conn) {},
		"HTTP/1": func(c net.Conn) {
			_, _ = bufio.NewReader(c).ReadString('\n')
			_, _ = io.WriteString(c, "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := socketPath(t)
			l := listenUnix(t, path)
			done := make(chan struct{})
			go func() {
				defer close(done)
				for {
					conn, err := l.Accept()
					if err != nil {
						return
					}
					talk(conn)
					_ = conn.Close()
				}
			}()
			c := run(t, Config{Address: "unix://" + path})
			for range 2 {
				want(t, c.state(), rotation.WorkloadAPIUnreachable, rotation.ReasonServerError, "false")
			}
			c.stop()
			_ = l.Close()
			<-done
		})
	}
}

func TestDeniedOnAWorkingStream(t *testing.T) {
	t.Parallel()
	path := socketPath(t)
	deny := make(chan struct{})
	serve(t, listenUnix(t, path), func(_ int, stream grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
		select {
		case <-deny:
		default:
			if err := stream.Send(message(t, 1)); err != nil {
				return err
			}
			<-deny
		}
		return status.Error(codes.PermissionDenied, "no identity issued")
	})
	c := run(t, Config{Address: "unix://" + path, BackoffMin: time.Hour})
	want(t, c.state(), rotation.WorkloadAPIServing, "", "true")
	close(deny)
	// At once, not only when the next attempt, an hour later, finds it.
	want(t, c.state(), rotation.WorkloadAPIDenied, rotation.ReasonNone, "true")
}

// The end of a working stream is told as that, and soon what comes after it.
func TestTheServerRestarts(t *testing.T) {
	t.Parallel()
	path := socketPath(t)
	s := serve(t, listenUnix(t, path), sendAndStay(message(t, 1)))
	c := run(t, Config{Address: "unix://" + path})
	want(t, c.state(), rotation.WorkloadAPIServing, "", "true")
	s.stop()
	want(t, c.state(), rotation.WorkloadAPIConnecting, rotation.ReasonNone, "")
	want(t, c.state(), rotation.WorkloadAPIUnreachable, rotation.ReasonNoSocket, "false")
	serve(t, listenUnix(t, path), sendAndStay(message(t, 2)))
	c.until(rotation.WorkloadAPIServing, "")
	first, second := c.issuance(), c.issuance()
	if first.Stream != 1 || second.Stream != 2 || second.Leaf.Serial != "2" {
		t.Errorf("issued on streams %d and %d, serial %s", first.Stream, second.Stream, second.Leaf.Serial)
	}
	// Only the first stream has ended, and the attempts that failed are none.
	if c.stop(); c.under.pause.flaps != 1 {
		t.Errorf("the pauses reckon with %d streams that ended, want 1", c.under.pause.flaps)
	}
}

// A failure that comes again after a success is news again.
func TestAFailureIsLoggedOncePerOutage(t *testing.T) {
	t.Parallel()
	path := socketPath(t)
	c := run(t, Config{Address: "unix://" + path})
	for range 2 {
		for range 3 {
			c.until(rotation.WorkloadAPIUnreachable, rotation.ReasonNoSocket)
		}
		s := serve(t, listenUnix(t, path), sendAndStay(message(t, 1)))
		c.until(rotation.WorkloadAPIServing, "")
		s.stop()
	}
	c.stop()
	if got := strings.Count(c.log.String(), "reason=no_socket"); got < 2 || got > 3 {
		t.Errorf("a failure of two outages is logged %d times:\n%s", got, c.log)
	}
}

// A server that takes over within the first pause leaves no trace but the
// number of the stream.
func TestAStreamEndsAndTheNextOneServes(t *testing.T) {
	t.Parallel()
	path := socketPath(t)
	serve(t, listenUnix(t, path), func(n int, stream grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
		if n < 3 {
			return stream.Send(message(t, int64(n)))
		}
		return sendAndStay(message(t, int64(n)))(n, stream)
	})
	c := run(t, Config{Address: "unix://" + path})
	for n := 1; n <= 3; n++ {
		if n > 1 {
			want(t, c.state(), rotation.WorkloadAPIConnecting, rotation.ReasonNone, "")
		}
		want(t, c.state(), rotation.WorkloadAPIServing, "", "true")
		if got := c.issuance(); got.Stream != n {
			t.Errorf("stream %d, want %d", got.Stream, n)
		}
	}
}

// A malformed message is told, and the stream goes on.
func TestMalformedMessages(t *testing.T) {
	t.Parallel()
	path := socketPath(t)
	broken := message(t, 1)
	broken.Svids[0].X509Svid = []byte("junk")
	s := serve(t, listenUnix(t, path), sendAndStay(&workload.X509SVIDResponse{}, broken, message(t, 2)))
	c := run(t, Config{Address: "unix://" + path})
	for _, detail := range []string{"holds no SVID", "first SVID"} {
		got := c.state()
		want(t, got, rotation.WorkloadAPIUnreachable, rotation.ReasonServerError, "true")
		if !strings.Contains(got.Detail, detail) || strings.Contains(got.Detail, "junk") {
			t.Errorf("detail %q, want %q in it", got.Detail, detail)
		}
	}
	want(t, c.state(), rotation.WorkloadAPIServing, "", "true")
	if got := c.issuance(); got.Leaf.Serial != "2" || s.opened() != 1 {
		t.Errorf("serial %s after %d streams, want 2 after 1", got.Leaf.Serial, s.opened())
	}
	c.stop()
	if strings.Contains(c.log.String(), "secret key") {
		t.Error("the key is logged")
	}
}

func TestTooLargeAMessage(t *testing.T) {
	t.Parallel()
	path := socketPath(t)
	large := message(t, 1)
	large.Crl = [][]byte{make([]byte, maxMessage)}
	serve(t, listenUnix(t, path), sendAndStay(large))
	c := run(t, Config{Address: "unix://" + path})
	got := c.state()
	want(t, got, rotation.WorkloadAPIUnreachable, rotation.ReasonServerError, "true")
	if !strings.Contains(got.Detail, "larger than max") {
		t.Errorf("detail %q", got.Detail)
	}
}

// A text of a megabyte is not even received.
func TestTooLongAnError(t *testing.T) {
	t.Parallel()
	path := socketPath(t)
	serve(t, listenUnix(t, path), func(int, grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
		return status.Error(codes.Internal, strings.Repeat("long ", 200_000))
	})
	c := run(t, Config{Address: "unix://" + path})
	got := c.state()
	want(t, got, rotation.WorkloadAPIUnreachable, rotation.ReasonServerError, "true")
	if strings.Contains(got.Detail, "long") {
		t.Errorf("detail %q", got.Detail)
	}
}

// A server that sends without end is read at our pace.
func TestAFlood(t *testing.T) {
	t.Parallel()
	path := socketPath(t)
	serve(t, listenUnix(t, path), func(_ int, stream grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
		for m := message(t, 1); ; {
			if err := stream.Send(m); err != nil {
				return nil //nolint:nilerr // the client has left
			}
		}
	})
	c := run(t, Config{Address: "unix://" + path})
	first := c.issuance().At
	for range 5 {
		if took := c.issuance().At.Sub(first); took < messagePause {
			t.Errorf("two messages within %s", took)
		}
		first = first.Add(messagePause)
	}
}

// A server writes what it likes into its texts.
func TestDetailsAreTidy(t *testing.T) {
	t.Parallel()
	path := socketPath(t)
	serve(t, listenUnix(t, path), func(int, grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
		return status.Error(codes.PermissionDenied, "two\nlines\x1b[31m"+strings.Repeat("é", 3000))
	})
	c := run(t, Config{Address: "unix://" + path})
	got := c.state()
	if !strings.HasPrefix(got.Detail, "PermissionDenied: two lines [31m") || len(got.Detail) > maxDetail+len("…") ||
		!strings.HasSuffix(got.Detail, "é…") {
		t.Errorf("detail %q", got.Detail)
	}
}

// The context ends in each phase of an attempt; run checks that Run returns,
// and goleak that nothing is left.
func TestTheContextEnds(t *testing.T) {
	t.Parallel()
	t.Run("during the pause", func(t *testing.T) {
		c := run(t, Config{Address: "unix:///nonexistent/socket", BackoffMin: time.Hour})
		c.state()
		c.stop()
	})
	t.Run("during the connect", func(t *testing.T) {
		path := socketPath(t)
		listenUnix(t, path)
		run(t, Config{Address: "unix://" + path, AnswerTimeout: time.Hour}).stop()
	})
	t.Run("before the first answer", func(t *testing.T) {
		path := socketPath(t)
		opened := make(chan struct{})
		serve(t, listenUnix(t, path), func(n int, stream grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
			close(opened)
			<-stream.Context().Done()
			return nil
		})
		c := run(t, Config{Address: "unix://" + path, AnswerTimeout: time.Hour})
		<-opened
		c.stop()
		if len(c.states) != 0 {
			t.Errorf("state %+v after the end", show(<-c.states))
		}
	})
	t.Run("on a working stream", func(t *testing.T) {
		path := socketPath(t)
		serve(t, listenUnix(t, path), sendAndStay(message(t, 1)))
		c := run(t, Config{Address: "unix://" + path})
		c.until(rotation.WorkloadAPIServing, "")
		c.stop()
		if len(c.states) != 0 {
			t.Errorf("state %+v after the end", show(<-c.states))
		}
	})
}

// What cannot be brought about here.
func TestDialFailures(t *testing.T) {
	e := endpoint{"unix", filepath.Join(t.TempDir(), "socket")}
	for name, test := range map[string]struct {
		err    error
		reason rotation.Reason
		detail string
	}{
		"rights":      {syscall.EACCES, rotation.ReasonRefused, "may not use"},
		"timeout":     {os.ErrDeadlineExceeded, rotation.ReasonSilent, "timeout"},
		"unreachable": {syscall.EHOSTUNREACH, rotation.ReasonRefused, "no route"},
		"wrong type":  {syscall.EPROTOTYPE, rotation.ReasonRefused, "wrong type"},
		"absent":      {fs.ErrNotExist, rotation.ReasonNoSocket, "not exist"},
	} {
		got := dialFailure(e, &net.OpError{Op: "dial", Net: "unix", Err: test.err})
		if got.Reason != test.reason || !strings.Contains(got.Detail, test.detail) || show(got).answers != "false" {
			t.Errorf("%s: %+v, want %s with %q", name, show(got), test.reason, test.detail)
		}
	}
}

// stoppedChild is the socket's path in the environment of the child process.
const stoppedChild = "SVID_TEST_STOPPED"

// runStopped is a server in a process of its own, which can be stopped.
func runStopped(path string) int {
	l, err := net.Listen("unix", path)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	s := grpc.NewServer()
	workload.RegisterSpiffeWorkloadAPIServer(s, &server{handle: func(_ int, stream grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
		return status.Error(codes.PermissionDenied, "but awake")
	}})
	fmt.Println("ready")
	if err := s.Serve(l); err != nil {
		return 1
	}
	return 0
}

// A stopped process neither answers nor breaks anything: without a deadline of
// one's own it is never noticed.
func TestAStoppedServer(t *testing.T) {
	t.Parallel()
	path := socketPath(t)
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), stoppedChild+"="+path)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "ready\n" {
		t.Fatalf("the server says %q, %v", line, err)
	}
	if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	c := run(t, Config{Address: "unix://" + path, AnswerTimeout: busy})
	want(t, c.state(), rotation.WorkloadAPIUnreachable, rotation.ReasonSilent, "false")
	if err := cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	want(t, c.until(rotation.WorkloadAPIDenied, rotation.ReasonNone), rotation.WorkloadAPIDenied, "", "true")
}
