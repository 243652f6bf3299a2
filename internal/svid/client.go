package svid

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	grpcbackoff "google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/experimental"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"svid-watchdog/internal/rotation"
)

const (
	defaultAnswerTimeout  = 10 * time.Second
	defaultFirstBackoff   = time.Second
	defaultLongestBackoff = 30 * time.Second

	// patience is how many answer timeouts a silent stream is kept open. Its
	// server may only be slow (tbot asks the auth server first), and a new
	// stream would make it begin anew.
	patience = 6

	// A hung server breaks nothing by itself: the kernel goes on accepting
	// bytes. gRPC servers refuse pings that come more often than every 5
	// minutes (grpc-go: keepalive.EnforcementPolicy, MinTime) by closing the
	// connection, so 6 minutes it is.
	keepaliveTime    = 6 * time.Minute
	keepaliveTimeout = 20 * time.Second

	// maxMessage bounds a message, in bytes.
	maxMessage = 4 << 20
	// maxHeaders bounds the headers of an answer, in bytes: they hold the text
	// of an error.
	maxHeaders = 64 << 10
	// messagePause is how long after a message the next one is read. An issuer
	// has nothing to say more often; one that sends without end must wait.
	messagePause = 100 * time.Millisecond
	// maxSocketPath is what fits into a socket address with its closing zero,
	// in bytes (unix(7)).
	maxSocketPath = 107
	// maxComplaints bounds how many texts of failures are remembered.
	maxComplaints = 32
)

// Config says whom to listen to.
type Config struct {
	// Address is the Workload API endpoint, unix:///PATH or tcp://IP:PORT
	// (SPIFFE Workload Endpoint, section 4).
	Address string
	// Log is where failures are told at level debug, each text once until the
	// next success; nil for nowhere. What they mean is told by who judges them.
	Log *slog.Logger
	// State is called with the state of the stream: at the start, at each
	// message, and at each attempt that failed. Issued is called with each
	// good message, after State. One goroutine calls both.
	State  func(rotation.WorkloadAPI)
	Issued func(rotation.Issuance)
	// AnswerTimeout is how long a server may take until its first answer,
	// 10 s if zero.
	AnswerTimeout time.Duration
	// BackoffMin and BackoffMax bound the time between two attempts, 1 s and
	// 30 s if zero.
	BackoffMin, BackoffMax time.Duration
}

// Client holds the stream.
type Client struct {
	cfg      Config
	endpoint endpoint
	pause    backoff
	streams  int // streams opened so far
	// complained holds the failures told since the last success.
	complained map[string]bool
}

// endpoint is where the Workload API is, in the words of package net.
type endpoint struct{ network, address string }

// New returns a client that has not connected yet. The error is about the
// address.
func New(cfg Config) (*Client, error) {
	e, err := parseAddress(cfg.Address)
	if err != nil {
		return nil, fmt.Errorf("the Workload API address %q is not usable: %w", cfg.Address, err)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.State == nil {
		cfg.State = func(rotation.WorkloadAPI) {}
	}
	if cfg.Issued == nil {
		cfg.Issued = func(rotation.Issuance) {}
	}
	if cfg.AnswerTimeout <= 0 {
		cfg.AnswerTimeout = defaultAnswerTimeout
	}
	if cfg.BackoffMin <= 0 {
		cfg.BackoffMin = defaultFirstBackoff
	}
	if cfg.BackoffMax <= 0 {
		cfg.BackoffMax = defaultLongestBackoff
	}
	cfg.BackoffMax = max(cfg.BackoffMax, cfg.BackoffMin)
	return &Client{
		cfg:        cfg,
		endpoint:   e,
		pause:      backoff{min: cfg.BackoffMin, max: cfg.BackoffMax},
		complained: make(map[string]bool),
	}, nil
}

func parseAddress(address string) (endpoint, error) {
	target, err := workloadapi.TargetFromAddress(address)
	if err != nil {
		return endpoint{}, err
	}
	u, err := url.Parse(address)
	if err != nil {
		return endpoint{}, err
	}
	if u.Scheme == "tcp" {
		return endpoint{"tcp", target}, nil
	}
	switch {
	case u.Host != "":
		// unix://socket: a slash is missing, and "socket" is taken for a host.
		return endpoint{}, errors.New("the path must be absolute, as in unix:///run/socket")
	case len(u.Path) > maxSocketPath:
		return endpoint{}, fmt.Errorf("the path has %d bytes, and a socket's path at most %d", len(u.Path), maxSocketPath)
	}
	return endpoint{"unix", u.Path}, nil
}

// Run listens until the context ends, and then returns nil. It returns for no
// other reason. It must be called only once.
func (c *Client) Run(ctx context.Context) error {
	c.report(rotation.WorkloadAPI{State: rotation.WorkloadAPIConnecting})
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		began := time.Now()
		answered := c.attempt(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if answered {
			c.pause.answered(time.Since(began))
		}
		timer.Reset(c.pause.next())
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
	}
}

// dialResult is the outcome of the latest dial of an attempt.
type dialResult struct{ err error }

// connect returns a connection that dials when it is first used, and the
// place where the outcome of the dial is noted: gRPC passes errors on as text.
func (c *Client) connect() (*grpc.ClientConn, *atomic.Pointer[dialResult], error) {
	dialed := new(atomic.Pointer[dialResult])
	authority := c.endpoint.address
	if c.endpoint.network == "unix" {
		authority = "localhost" // As gRPC does with unix sockets.
	}
	conn, err := grpc.NewClient("passthrough:///workload-api",
		grpc.WithAuthority(authority),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			var d net.Dialer
			conn, err := d.DialContext(ctx, c.endpoint.network, c.endpoint.address)
			dialed.Store(&dialResult{err})
			return conn, err
		}),
		grpc.WithNoProxy(),
		grpc.WithDisableServiceConfig(),
		grpc.WithDisableRetry(),
		grpc.WithIdleTimeout(0),
		grpc.WithMaxHeaderListSize(maxHeaders),
		// There is one connection per attempt, and the attempts are paced by
		// us: gRPC's own pause never ends before the attempt does.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           grpcbackoff.Config{BaseDelay: time.Hour, Multiplier: 1, MaxDelay: time.Hour},
			MinConnectTimeout: time.Hour,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveTime, Timeout: keepaliveTimeout}),
		// No private key may stay in memory, see wire.go.
		grpc.WithReadBufferSize(0),
		experimental.WithBufferPool(pool{}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.WaitForReady(false), grpc.ForceCodecV2(codec{})),
	)
	return conn, dialed, err
}

// streamEvent is what happens on a stream: it is opened, it brings a message,
// or it ends.
type streamEvent struct {
	message *workload.X509SVIDResponse
	err     error
}

// listen opens the stream and passes on what it brings, until it ends or the
// context does. The first event without error says that the stream is open.
// The channel is closed at the end.
func listen(ctx context.Context, conn *grpc.ClientConn) <-chan streamEvent {
	events := make(chan streamEvent)
	send := func(e streamEvent) bool {
		select {
		case events <- e:
			return e.err == nil
		case <-ctx.Done():
			return false
		}
	}
	go func() {
		defer close(events)
		// Servers refuse calls without this header: it shows that no browser
		// was tricked into making them (SPIFFE Workload Endpoint, section 6.1).
		ctx := metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true")
		stream, err := workload.NewSpiffeWorkloadAPIClient(conn).FetchX509SVID(ctx, &workload.X509SVIDRequest{})
		if !send(streamEvent{err: err}) {
			return
		}
		pause := time.NewTimer(messagePause)
		defer pause.Stop()
		for {
			message, err := stream.Recv()
			dropKeys(message)
			if !send(streamEvent{message: message, err: err}) {
				return
			}
			pause.Reset(messagePause)
			select {
			case <-pause.C:
			case <-ctx.Done():
				return
			}
		}
	}()
	return events
}

// attempt opens one stream and stays with it until it ends. It reports what it
// finds, and returns whether a good message came.
func (c *Client) attempt(ctx context.Context) (answered bool) {
	conn, dialed, err := c.connect()
	if err != nil {
		// Not a matter of the server: an option of gRPC is wrong.
		c.fail(rotation.WorkloadAPI{
			State: rotation.WorkloadAPIUnreachable, Reason: rotation.ReasonServerError, Detail: tidy(err.Error()),
		})
		return false
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	events := listen(ctx, conn)
	defer func() {
		cancel()
		for range events { // The goroutine ends with its channel.
		}
	}()

	timer := time.NewTimer(c.cfg.AnswerTimeout)
	defer timer.Stop()
	var opened, heard bool
	for silences := 1; ; {
		select {
		case <-ctx.Done():
			return answered

		case <-timer.C:
			// The connection is ready once the server has sent its settings,
			// the first thing that HTTP/2 demands of it. A stopped process
			// sends none, though the kernel accepts connections for it.
			ready := opened || conn.GetState() == connectivity.Ready
			c.fail(silence(time.Duration(silences)*c.cfg.AnswerTimeout, ready))
			if silences++; !ready || silences > patience {
				return answered
			}
			timer.Reset(c.cfg.AnswerTimeout)

		case event, ok := <-events:
			switch {
			case !ok || ctx.Err() != nil:
				return answered
			case event.err != nil && !opened:
				c.fail(c.openFailure(conn, dialed, event.err))
				return answered
			case event.err != nil:
				c.ended(event.err, heard)
				return answered
			case !opened:
				opened = true
				c.streams++
			default:
				timer.Stop()
				heard = true
				answered = c.take(event.message) || answered
			}
		}
	}
}

// openFailure tells why a stream could not be opened.
func (c *Client) openFailure(conn *grpc.ClientConn, dialed *atomic.Pointer[dialResult], err error) rotation.WorkloadAPI {
	if d := dialed.Load(); d != nil && d.err != nil {
		return dialFailure(c.endpoint, d.err)
	}
	// Somebody accepted the connection. Unless it was lost only afterwards,
	// it is not an HTTP/2 server.
	state := streamFailure(err)
	state.SocketAnswers = new(conn.GetState() != connectivity.TransientFailure && conn.GetState() != connectivity.Connecting)
	return state
}

// ended handles the end of an open stream.
func (c *Client) ended(err error, heard bool) {
	if !heard || status.Code(err) == codes.PermissionDenied {
		c.fail(streamFailure(err))
		return
	}
	// The end of a working stream says little: a server that restarts, a new
	// one that takes over. What the next attempt finds is the news; until then,
	// which may be some time, there is no stream.
	c.report(rotation.WorkloadAPI{State: rotation.WorkloadAPIConnecting, Detail: tidy("the stream ended: " + describe(err))})
	c.cfg.Log.Debug("the Workload API stream ended, opening another", "address", c.cfg.Address, "error", describe(err))
}

// take handles a message and returns whether it was good.
func (c *Client) take(m *workload.X509SVIDResponse) bool {
	issuance, err := parse(m, time.Now())
	if err != nil {
		state := streamFailure(err)
		state.Detail = tidy("malformed message: " + err.Error())
		c.fail(state)
		return false
	}
	issuance.Stream = c.streams
	if len(c.complained) > 0 {
		c.cfg.Log.Debug("the Workload API serves again", "address", c.cfg.Address)
		clear(c.complained)
	}
	c.report(rotation.WorkloadAPI{State: rotation.WorkloadAPIServing, SocketAnswers: new(true)})
	c.cfg.Issued(issuance)
	return true
}

func (c *Client) report(state rotation.WorkloadAPI) {
	state.At, state.Socket = time.Now(), lookAtSocket(c.endpoint)
	c.cfg.State(state)
}

// fail reports a failure, and logs it unless the same was logged since the
// last success.
func (c *Client) fail(state rotation.WorkloadAPI) {
	c.report(state)
	text := fmt.Sprint(state.State, state.Reason, state.Detail)
	if c.complained[text] || len(c.complained) >= maxComplaints {
		return
	}
	c.complained[text] = true
	c.cfg.Log.Debug("the Workload API brings no SVID",
		"address", c.cfg.Address, "state", state.State, "reason", state.Reason, "error", state.Detail)
}
