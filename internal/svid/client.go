// Package svid holds one Workload API stream and says what it brings: SVIDs,
// and the state of the stream.
//
// It never fetches by polling, since each fetch makes tbot issue an SVID and
// write an audit event. It holds one stream at a time and opens a new one,
// with jittered backoff, whenever the old one ends, for whatever reason:
// go-spiffe's own loop gives up on Canceled and InvalidArgument and has no
// jitter. Private keys are overwritten before a message is looked at.
package svid

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"svid-watchdog/internal/rotation"
)

// Config says where the Workload API is and whom to tell.
type Config struct {
	// Address is unix:///path or tcp://ip:port (SPIFFE Workload Endpoint,
	// section 4).
	Address string
	Log     *slog.Logger
	// State is called with the state of each attempt and of each message,
	// Issued with each message; both by one goroutine.
	State  func(rotation.WorkloadAPI)
	Issued func(rotation.Issuance)
	// AnswerTimeout is how long the first answer of a stream may take, 10 s
	// if zero. After it a stream may be silent for as long as it likes: a new
	// SVID comes when one is due.
	AnswerTimeout time.Duration
	// BackoffMin and BackoffMax bound the time between two attempts, 1 s and
	// 30 s if zero.
	BackoffMin, BackoffMax time.Duration
}

const (
	// maxMessage bounds a message. A large federated one stays far below.
	maxMessage = 4 << 20
	// keepaliveTime is how often a silent connection is tried, so that a
	// server that hangs is noticed. gRPC servers end connections that are
	// tried more often than every 5 minutes (keepalive.EnforcementPolicy).
	keepaliveTime    = 6 * time.Minute
	keepaliveTimeout = 20 * time.Second
)

// errSilent: the server took the connection or the stream, and says nothing.
var errSilent = errors.New("no answer")

// Client holds the stream while Run runs.
type Client struct {
	cfg    Config
	target string
	socket string // path of a unix socket, "" for TCP
	stream int
	last   string // the failure that was logged last
}

// New returns a client, or an error that says what is wrong with the address.
func New(cfg Config) (*Client, error) {
	target, err := workloadapi.TargetFromAddress(cfg.Address)
	if err != nil {
		return nil, fmt.Errorf("the Workload API address %q is not usable: %w", cfg.Address, err)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.AnswerTimeout == 0 {
		cfg.AnswerTimeout = 10 * time.Second
	}
	if cfg.BackoffMin == 0 {
		cfg.BackoffMin = time.Second
	}
	if cfg.BackoffMax == 0 {
		cfg.BackoffMax = 30 * time.Second
	}
	c := &Client{cfg: cfg, target: target}
	if path, ok := strings.CutPrefix(target, "unix://"); ok {
		c.socket = path
	} else if path, ok := strings.CutPrefix(target, "unix:"); ok {
		c.socket = path
	}
	return c, nil
}

// Run holds the stream until ctx ends, and then returns nil: an identity
// provider that fails is evidence, not a failure of ours.
func (c *Client) Run(ctx context.Context) error {
	c.cfg.State(rotation.WorkloadAPI{At: time.Now(), State: rotation.WorkloadAPIConnecting})
	wait := newBackoff(c.cfg.BackoffMin, c.cfg.BackoffMax)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		served, err := c.attempt(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if served {
			// A stream that has worked and then ended says nothing yet: the
			// next attempt, which comes soon, tells what has become of it.
			wait.reset()
			c.cfg.Log.Debug("Workload API stream ended", "error", err)
			c.last = ""
		} else {
			c.report(err)
		}
		timer.Reset(wait.wait())
	}
}

// failure is why an attempt brought nothing.
type failure struct {
	err     error
	dial    error // of the last connect, nil if it succeeded
	answers *bool // whether HTTP/2 came up
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// attempt opens one stream and reads it to its end. It tells whether the
// stream brought anything.
func (c *Client) attempt(ctx context.Context) (served bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	dial := &dialer{}
	conn, err := grpc.NewClient("passthrough:///"+c.target,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return dial.dial(ctx, c.socket, c.target) }),
		grpc.WithNoProxy(),
		grpc.WithDisableServiceConfig(),
		grpc.WithDisableRetry(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveTime, Timeout: keepaliveTimeout}),
	)
	if err != nil {
		return false, &failure{err: err}
	}
	defer conn.Close()

	// The first answer has a deadline of its own; the stream has none.
	deadline := time.AfterFunc(c.cfg.AnswerTimeout, cancel)
	defer deadline.Stop()
	fail := func(err error) *failure {
		f := &failure{err: err, dial: dial.result()}
		answers := conn.GetState() == connectivity.Ready || status.Code(err) != codes.Unavailable && !errors.Is(err, errSilent)
		f.answers = &answers
		return f
	}
	// Each of our attempts is one connect: our backoff decides, not gRPC's.
	if err := connect(ctx, conn); err != nil {
		return false, fail(err)
	}
	c.stream++
	ctx = metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true")
	stream, err := workload.NewSpiffeWorkloadAPIClient(conn).FetchX509SVID(ctx, &workload.X509SVIDRequest{})
	if err != nil {
		return false, fail(err)
	}
	for {
		message, err := stream.Recv()
		if err != nil {
			if !served && !deadline.Stop() && status.Code(err) == codes.Canceled {
				err = errSilent
			}
			return served, fail(err)
		}
		dropKeys(message)
		deadline.Stop()
		issuance, err := parse(message, time.Now())
		if err != nil {
			return served, fail(err)
		}
		served = true
		issuance.Stream = c.stream
		if c.last != "" {
			c.cfg.Log.Debug("Workload API serves again")
			c.last = ""
		}
		answers := true
		c.cfg.State(rotation.WorkloadAPI{At: issuance.At, State: rotation.WorkloadAPIServing, SocketAnswers: &answers})
		c.cfg.Issued(issuance)
	}
}

// connect waits until the connection is up, or has failed once.
func connect(ctx context.Context, conn *grpc.ClientConn) error {
	conn.Connect()
	for {
		switch state := conn.GetState(); state {
		case connectivity.Ready:
			return nil
		case connectivity.TransientFailure, connectivity.Shutdown:
			return status.Error(codes.Unavailable, "cannot connect")
		default:
			if !conn.WaitForStateChange(ctx, state) {
				return errSilent // the kernel took the connection, nobody speaks HTTP/2
			}
		}
	}
}

// dialer remembers how the last connect went, which gRPC's errors only tell
// as text.
type dialer struct {
	mu  sync.Mutex
	err error
}

func (d *dialer) dial(ctx context.Context, socket, target string) (net.Conn, error) {
	network, address := "unix", socket
	if socket == "" {
		network, address = "tcp", target
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
	d.mu.Lock()
	d.err = err
	d.mu.Unlock()
	return conn, err
}

func (d *dialer) result() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.err
}

// report says what a failed attempt means.
func (c *Client) report(err error) {
	w := rotation.WorkloadAPI{At: time.Now(), State: rotation.WorkloadAPIUnreachable, Reason: rotation.ReasonServerError}
	var f *failure
	if !errors.As(err, &f) {
		f = &failure{err: err}
	}
	w.SocketAnswers = f.answers
	no := false
	switch {
	case f.dial != nil:
		w.SocketAnswers = &no
		w.Reason, w.Detail = c.dialReason(f.dial)
	case errors.Is(err, errSilent) || status.Code(f.err) == codes.DeadlineExceeded:
		w.Reason = rotation.ReasonSilent
		w.Detail = fmt.Sprintf("connected to %s, and no answer within %s", c.cfg.Address, c.cfg.AnswerTimeout)
	case status.Code(f.err) == codes.PermissionDenied:
		w.State, w.Reason = rotation.WorkloadAPIDenied, rotation.ReasonNone
		w.Detail = shorten(status.Convert(f.err).Message())
	default:
		if s, ok := status.FromError(f.err); ok {
			w.Detail = shorten(fmt.Sprintf("%s: %s", s.Code(), s.Message()))
		} else {
			w.Detail = shorten(f.err.Error())
		}
	}
	if text := string(w.Reason) + " " + w.Detail; text != c.last {
		c.cfg.Log.Debug("Workload API does not serve", "state", string(w.State), "reason", string(w.Reason), "error", w.Detail)
		c.last = text
	}
	c.cfg.State(w)
}

// dialReason tells failed connects apart. A directory with no link left was
// deleted on the node while it is mounted here: whatever is made in its place
// never shows in this pod.
func (c *Client) dialReason(err error) (rotation.Reason, string) {
	if c.socket != "" {
		var stat syscall.Stat_t
		if dir := filepath.Dir(c.socket); syscall.Stat(dir, &stat) == nil && stat.Nlink == 0 {
			return rotation.ReasonDirectoryOrphaned, fmt.Sprintf("the directory %s was deleted on the node", dir)
		}
	}
	switch {
	case errors.Is(err, os.ErrNotExist):
		return rotation.ReasonNoSocket, fmt.Sprintf("there is no socket at %s", c.cfg.Address)
	case errors.Is(err, syscall.ECONNREFUSED):
		return rotation.ReasonRefused, fmt.Sprintf("nobody accepts connections at %s", c.cfg.Address)
	case errors.Is(err, os.ErrPermission):
		return rotation.ReasonRefused, fmt.Sprintf("this process may not connect to %s", c.cfg.Address)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled), errors.Is(err, syscall.EAGAIN):
		// A full backlog: the server accepts nothing more.
		return rotation.ReasonSilent, fmt.Sprintf("no connection to %s within the time allowed", c.cfg.Address)
	default:
		return rotation.ReasonRefused, shorten(err.Error())
	}
}

// shorten keeps a neighbour's words to a line of bearable length.
func shorten(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > 300 {
		return s[:300] + "…"
	}
	return s
}
