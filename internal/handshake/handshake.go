// Package handshake makes TLS handshakes with Envoy's inbound listener and
// tells which certificate a peer is shown: the stage served.
package handshake

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strconv"
	"syscall"
	"time"

	"svid-watchdog/internal/certificate"
	"svid-watchdog/internal/rotation"
)

// Config says with whom to make handshakes, and how often.
type Config struct {
	// Address is HOST:PORT of the listener.
	Address string
	// Interval is the distance of two handshakes.
	Interval time.Duration
	// Timeout bounds one of them, 5 s if zero.
	Timeout time.Duration
	Log     *slog.Logger
	// Observe is called after each handshake, by one goroutine.
	Observe func(rotation.Handshake)

	// maxVersion and noProtocols are for tests.
	maxVersion  uint16
	noProtocols bool
}

// Prober makes handshakes.
type Prober struct {
	cfg    Config
	nudges chan struct{}
	// dial makes one handshake; a field for the tests of the timing.
	dial func(context.Context) (rotation.Certificate, error)
}

// protocols are offered always: under PERMISSIVE mTLS only a peer that offers
// one of Istio's own reaches the filter chain with mTLS, and under STRICT they
// do no harm (istio: pilot/pkg/networking/core/listener_inbound.go).
var protocols = []string{"istio-peer-exchange", "istio"}

// settle is how long after a nudge a handshake is made: Envoy's workers need a
// moment to take over what its main thread has.
const settle = 300 * time.Millisecond

// New returns a prober, or an error that says what is wrong with the address.
func New(cfg Config) (*Prober, error) {
	host, port, err := net.SplitHostPort(cfg.Address)
	if err != nil {
		return nil, fmt.Errorf("the handshake address %q is not HOST:PORT: %w", cfg.Address, err)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || host == "" {
		return nil, fmt.Errorf("the handshake address %q needs a host and a port from 1 to 65535", cfg.Address)
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 5 * time.Second
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	p := &Prober{cfg: cfg, nudges: make(chan struct{}, 1)}
	p.dial = p.connect
	return p, nil
}

// Nudge makes the next handshake soon. It never blocks.
func (p *Prober) Nudge() {
	select {
	case p.nudges <- struct{}{}:
	default: // one is waiting already
	}
}

// Run makes handshakes until ctx ends, and then returns nil: a handshake that
// fails is evidence, not a failure of ours.
func (p *Prober) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	var due time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.nudges:
			// Sooner, never later.
			now := time.Now()
			wait := min(settle, due.Sub(now))
			due = now.Add(wait)
			timer.Reset(wait)
			continue
		case <-timer.C:
		}
		h := p.Look(ctx)
		if ctx.Err() != nil {
			return nil
		}
		p.cfg.Observe(h)
		due = time.Now().Add(p.cfg.Interval)
		timer.Reset(p.cfg.Interval)
	}
}

// Look makes one handshake.
func (p *Prober) Look(ctx context.Context) rotation.Handshake {
	ctx, cancel := context.WithTimeout(ctx, p.cfg.Timeout)
	defer cancel()
	leaf, err := p.dial(ctx)
	h := rotation.Handshake{At: time.Now()}
	if err != nil {
		h.Failure = classify(err)
		h.Err = fmt.Errorf("make a TLS handshake with %s: %w", p.cfg.Address, err).Error()
		p.cfg.Log.Debug("TLS handshake failed", "address", p.cfg.Address, "error", err)
		return h
	}
	h.Leaf = &leaf
	return h
}

func (p *Prober) connect(ctx context.Context) (rotation.Certificate, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", p.cfg.Address)
	if err != nil {
		return rotation.Certificate{}, fmt.Errorf("connect: %w", err)
	}
	return p.shake(ctx, conn)
}

// errSeen ends a handshake of which all that matters was seen.
var errSeen = errors.New("the certificate was seen")

// shake returns the leaf that the peer shows, and closes the connection. The
// server's certificate comes before the client's in TLS 1.2 and 1.3, so that
// none of our own is needed.
func (p *Prober) shake(ctx context.Context, conn net.Conn) (leaf rotation.Certificate, err error) {
	defer conn.Close()
	offered := protocols
	if p.cfg.noProtocols {
		offered = nil
	}
	var shown []*x509.Certificate
	client := tls.Client(conn, &tls.Config{
		InsecureSkipVerify: true, //nolint:gosec // what is shown is looked at, not trusted
		MinVersion:         tls.VersionTLS12,
		MaxVersion:         p.cfg.maxVersion,
		NextProtos:         offered,
		VerifyConnection: func(state tls.ConnectionState) error {
			shown = state.PeerCertificates
			return errSeen
		},
	})
	err = client.HandshakeContext(ctx)
	if len(shown) == 0 {
		if err == nil {
			err = errors.New("no certificate was shown")
		}
		return rotation.Certificate{}, err
	}
	return certificate.Leaf(shown[:1]), nil
}

func classify(err error) rotation.HandshakeFailure {
	var notTLS tls.RecordHeaderError
	var netErr net.Error
	switch {
	case errors.As(err, &notTLS):
		return rotation.HandshakeNotTLS
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded), errors.As(err, &netErr) && netErr.Timeout():
		return rotation.HandshakeSilent
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return rotation.HandshakeRefused
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, io.ErrUnexpectedEOF):
		return rotation.HandshakeClosed
	default:
		return rotation.HandshakeFailed
	}
}
