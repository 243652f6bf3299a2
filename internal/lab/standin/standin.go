// Package standin is the built-in stand-in for Envoy, so that a newcomer
// needs nothing but Go: it consumes the SDS streams, keeps TLS contexts,
// serves TLS handshakes and answers the questions that the watchdog asks on
// the admin interface.
//
// It imitates one of two generations, since they differ in what an update that
// changes nothing, and one that is refused, do to the dump. It claims nothing
// on its own: what it does was measured on real Envoys, and the conformance
// test plays one script on it and on them and compares. It is no proxy.
package standin

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"svid-watchdog/internal/freeport"
)

// Config describes a stand-in.
type Config struct {
	// Generation is 1.36, for Envoy up to 1.36, or 1.37, for 1.37 and newer
	// as Envoy 1.40 shows it; 1.37 if empty.
	Generation string
	// SDSSocket is the path of the socket of the identity provider.
	SDSSocket string
	// AdminAddress and ListenAddress are HOST:PORT, a free port on loopback
	// if empty.
	AdminAddress, ListenAddress string
	// Clusters is how many upstream clusters have a TLS context, 2 if zero.
	Clusters int
	// SDSStats lets the sds. statistics be seen.
	SDSStats bool
	Log      *slog.Logger
}

// The names that Istio's bootstrap uses.
const (
	sdsCluster     = "sds-grpc"
	identitySecret = "default"
	bundleSecret   = "ROOTCA"
)

// Envoy is a stand-in for Envoy.
type Envoy struct {
	cfg    Config
	modern bool // 1.37 and newer

	mu    sync.Mutex
	life  *life
	stuck bool
	// half keeps all contexts but the first, frozen the listener.
	half, frozen bool
	gate         chan struct{} // closed while it may go on
}

// New checks the configuration and picks the addresses; Start starts it.
func New(cfg Config) (*Envoy, error) {
	if cfg.Generation == "" {
		cfg.Generation = "1.37"
	}
	if cfg.Generation != "1.36" && cfg.Generation != "1.37" {
		return nil, fmt.Errorf("the stand-in knows the generations 1.36 and 1.37, not %q", cfg.Generation)
	}
	if cfg.Clusters == 0 {
		cfg.Clusters = 2
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	for _, address := range []*string{&cfg.AdminAddress, &cfg.ListenAddress} {
		if *address != "" {
			continue
		}
		var err error
		if *address, err = freeport.Address(); err != nil {
			return nil, err
		}
	}
	open := make(chan struct{})
	close(open)
	return &Envoy{cfg: cfg, modern: cfg.Generation == "1.37", gate: open}, nil
}

// Version is the release that the generation was measured on.
func (e *Envoy) Version() string {
	if e.modern {
		return "1.40.0"
	}
	return "1.36.4"
}

// AdminAddress is http://HOST:PORT; it stays over restarts.
func (e *Envoy) AdminAddress() string { return "http://" + e.cfg.AdminAddress }

// ListenerAddress is HOST:PORT of the inbound TLS listener.
func (e *Envoy) ListenerAddress() string { return e.cfg.ListenAddress }

// Start begins a new life.
func (e *Envoy) Start(ctx context.Context) error {
	admin, err := listen(ctx, e.cfg.AdminAddress)
	if err != nil {
		return fmt.Errorf("listen for the admin interface: %w", err)
	}
	inbound, err := listen(ctx, e.cfg.ListenAddress)
	if err != nil {
		admin.Close()
		return fmt.Errorf("listen for connections: %w", err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	l := &life{Envoy: e, cancel: cancel, started: time.Now(), secrets: make(map[string]*secret), inbound: inbound}
	for _, name := range []string{identitySecret, bundleSecret} {
		l.secrets[name] = &secret{name: name, version: "uninitialized", updated: l.started}
	}
	l.admin = &http.Server{Handler: l.handler(ctx), ReadHeaderTimeout: 5 * time.Second}
	e.mu.Lock()
	e.life = l
	e.mu.Unlock()
	l.wg.Go(func() { _ = l.admin.Serve(admin) }) // ends with Close
	l.wg.Go(func() { l.serveTLS(ctx) })
	for _, s := range l.secrets {
		l.wg.Go(func() { l.subscribe(ctx, s) })
	}
	return nil
}

// Stop ends the present life at once.
func (e *Envoy) Stop() error {
	e.mu.Lock()
	l := e.life
	e.life = nil
	e.mu.Unlock()
	if l == nil {
		return nil
	}
	l.cancel()
	err := l.admin.Close()
	if closing := l.inbound.Close(); !errors.Is(closing, net.ErrClosed) { // it may be drained
		err = errors.Join(err, closing)
	}
	l.wg.Wait()
	// Not before all have ended: one of them may just have connected.
	l.closeConnection()
	return err
}

// Close ends it for good.
func (e *Envoy) Close() error { return e.Stop() }

// Hang stops everything without ending anything, as SIGSTOP does.
func (e *Envoy) Hang() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	select {
	case <-e.gate:
		e.gate = make(chan struct{})
	default: // it hangs already
	}
	return nil
}

// Resume goes on.
func (e *Envoy) Resume() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	select {
	case <-e.gate:
	default:
		close(e.gate)
	}
	return nil
}

// StickContexts keeps the TLS contexts from taking accepted secrets. Only the
// stand-in can do this: in a real Envoy it takes a failing callback
// (envoyproxy/envoy#42438).
func (e *Envoy) StickContexts(stuck bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.stuck = stuck
}

// StickAllButOne makes the second callback of an update fail: the first
// context takes the secret, the others keep theirs and the update is refused
// (envoyproxy/envoy#42438; read in callback_impl.h, not measured).
func (e *Envoy) StickAllButOne(stuck bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.half = stuck
}

// StickListener keeps showing peers the certificate that the listener has now.
// No Envoy was seen to do this; it is what the stage served is there to tell.
func (e *Envoy) StickListener(stuck bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.frozen = stuck
}

// DrainListeners closes the inbound listener, as POST /drain_listeners does.
func (e *Envoy) DrainListeners(context.Context) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.life == nil {
		return errors.New("the stand-in does not run")
	}
	return e.life.inbound.Close()
}

// pass waits while it hangs.
func (e *Envoy) pass(ctx context.Context) error {
	e.mu.Lock()
	gate := e.gate
	e.mu.Unlock()
	select {
	case <-gate:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// life is what begins with a start and ends with a stop.
type life struct {
	*Envoy
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	started time.Time
	admin   *http.Server
	inbound net.Listener

	dialing sync.Mutex // one connect at a time
	host    host

	state    sync.Mutex
	secrets  map[string]*secret
	contexts []tlsContext
	shown    *tlsContext // by the listener, latest
}

// tlsContext is what a listener or a cluster presents and trusts.
type tlsContext struct {
	certificate *tls.Certificate
	authorities []*x509.Certificate
	caPath      string
}

// serveTLS shows a peer the certificate of the listener's context, and asks
// for one in return, as an inbound listener under STRICT mTLS does.
func (l *life) serveTLS(ctx context.Context) {
	config := &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			l.state.Lock()
			defer l.state.Unlock()
			if len(l.contexts) == 0 {
				return nil, errors.New("no secret yet") // Envoy's NotReadySslSocket closes too
			}
			l.mu.Lock()
			if !l.frozen || l.shown == nil {
				l.shown = &l.contexts[0]
			}
			l.mu.Unlock()
			c := *l.shown
			pool := x509.NewCertPool()
			for _, ca := range c.authorities {
				pool.AddCert(ca)
			}
			return &tls.Config{
				MinVersion:   tls.VersionTLS12,
				Certificates: []tls.Certificate{*c.certificate},
				ClientAuth:   tls.RequireAndVerifyClientCert,
				ClientCAs:    pool,
			}, nil
		},
	}
	for {
		conn, err := l.inbound.Accept()
		if err != nil {
			return
		}
		l.wg.Go(func() {
			defer conn.Close()
			if l.pass(ctx) != nil {
				return
			}
			ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
			defer cancel()
			_ = tls.Server(conn, config).HandshakeContext(ctx) // that is all there is to it
		})
	}
}
