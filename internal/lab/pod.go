package lab

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"svid-watchdog/internal/lab/standin"
)

// Config describes a pod.
type Config struct {
	Issuer Issuer
	// TTL is an SVID's lifetime from its issuance, 60 s if zero; Renewal the
	// distance of two, 0 for the issuer's habit: a third of the lifetime with
	// tbot, half of it with SPIRE.
	TTL, Renewal time.Duration
	// Lead is by how much not-before is back-dated, 0 for the issuer's habit. Where
	// shares of a lifetime count, a short one needs a short lead.
	Lead time.Duration
	// EnvoyPath is a real Envoy; without one the stand-in is used.
	EnvoyPath string
	// StandIn is the generation that the stand-in imitates: 1.36 or 1.37.
	StandIn string
	// SDSStats lets Envoy show its sds. statistics.
	SDSStats bool
	// Permissive makes a real Envoy's listener accept more than mutual TLS.
	Permissive bool
	// AllStats lets a real Envoy show all its statistics.
	AllStats bool
	// SecondProvider gives a real Envoy two providers of each secret.
	SecondProvider bool
	// Clusters is how many upstream clusters of a real Envoy have a TLS
	// context, 2 if zero.
	Clusters int
	// Reconnect is how long a real Envoy waits at most before it opens a stream
	// again, its own 30 s if zero.
	Reconnect time.Duration
	// Minted is called with each SVID's leaf and its private key, PKCS#8 in
	// DER, before anybody gets it; nil for nobody.
	Minted func(leaf *x509.Certificate, key []byte)
	// Now is the node's wall clock, by which tbot says when it sent something;
	// nil for the right one, by which certificates are dated anyway.
	Now func() time.Time
	// Begin is called with each process of a real Envoy before its first
	// instruction; nil for nothing.
	Begin func(pid int) error
	Log   *slog.Logger
}

// Pod is a running pod in a box.
type Pod struct {
	cfg      Config
	dir      string
	socket   string // as the identity provider on the node knows it
	mount    *mount // as the pod's containers see its directory
	timeline *timeline
	server   *server
	envoy    Envoy

	mu       sync.Mutex
	faults   []string
	conducts map[Service]conduct
}

// Start starts a pod. Close ends it.
func Start(ctx context.Context, cfg Config) (*Pod, error) {
	if cfg.Issuer == "" {
		cfg.Issuer = Tbot
	}
	if cfg.Issuer != Tbot && cfg.Issuer != SPIRE {
		return nil, fmt.Errorf("the issuer %q is neither %s nor %s", cfg.Issuer, Tbot, SPIRE)
	}
	if cfg.TTL == 0 {
		cfg.TTL = time.Minute
	}
	if cfg.TTL < 5*time.Second || cfg.Renewal < 0 || cfg.Renewal > cfg.TTL {
		return nil, fmt.Errorf("a lifetime of %s with a renewal of %s cannot work", cfg.TTL, cfg.Renewal)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	// A short name: the path of a unix socket has at most 108 bytes.
	dir, err := os.MkdirTemp("", "svid-lab-")
	if err != nil {
		return nil, fmt.Errorf("make a directory for the pod: %w", err)
	}
	if cfg.Lead == 0 {
		cfg.Lead = cfg.Issuer.lead()
	}
	if cfg.Renewal == 0 {
		cfg.Renewal = cfg.Issuer.renewal(cfg.TTL)
	}
	p := &Pod{
		cfg: cfg, dir: dir, socket: filepath.Join(dir, "uds", "socket"),
		timeline: newTimeline(cfg.Log), conducts: make(map[Service]conduct),
	}
	if err := p.start(ctx); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

func (p *Pod) start(ctx context.Context) (err error) {
	for _, d := range []string{filepath.Dir(p.socket), p.CredentialsDir()} {
		if err := os.Mkdir(d, 0o755); err != nil { //nolint:gosec // as in a pod
			return fmt.Errorf("make %s: %w", d, err)
		}
	}
	if p.mount, err = newMount(filepath.Dir(p.socket)); err != nil {
		return err
	}
	if p.server, err = newServer(p.cfg.Issuer, p.cfg.TTL, p.cfg.Renewal, p.cfg.Lead, p.cfg.Minted, p.timeline); err != nil {
		return err
	}
	if p.cfg.Now != nil {
		p.server.now = p.cfg.Now
	}
	if err := p.server.listen(p.socket); err != nil {
		return err
	}
	if p.cfg.EnvoyPath != "" {
		p.envoy, err = NewRealEnvoy(RealEnvoyConfig{Path: p.cfg.EnvoyPath, SDSSocket: p.inPod(), Dir: p.dir, SDSStats: p.cfg.SDSStats, SecondProvider: p.cfg.SecondProvider, AllStats: p.cfg.AllStats, Permissive: p.cfg.Permissive, Clusters: p.cfg.Clusters, Reconnect: p.cfg.Reconnect, Begin: p.cfg.Begin})
	} else {
		p.envoy, err = standin.New(standin.Config{Generation: p.cfg.StandIn, SDSSocket: p.inPod(), SDSStats: p.cfg.SDSStats, Log: p.cfg.Log})
	}
	if err != nil {
		return err
	}
	return p.envoy.Start(ctx)
}

// SocketAddress is the address of the Workload API as the pod's containers
// see it.
func (p *Pod) SocketAddress() string { return "unix://" + p.inPod() }

// inPod is the path of the socket as the pod's containers see it.
func (p *Pod) inPod() string { return p.mount.path(filepath.Base(p.socket)) }

// SocketPath is the path of the socket on the node.
func (p *Pod) SocketPath() string { return p.socket }

// CredentialsDir is the directory that switches Istio's agent to files.
func (p *Pod) CredentialsDir() string { return filepath.Join(p.dir, "credentials") }

// Envoy is the pod's Envoy.
func (p *Pod) Envoy() Envoy { return p.envoy }

// Renewal is the distance of two renewals.
func (p *Pod) Renewal() time.Duration { return p.cfg.Renewal }

// TTL is an SVID's lifetime.
func (p *Pod) TTL() time.Duration { return p.cfg.TTL }

// Events are the latest events, oldest first, and a channel that is closed at
// the next one.
func (p *Pod) Events() ([]Event, <-chan struct{}) { return p.timeline.snapshot() }

// Faults are the faults that are injected now.
func (p *Pod) Faults() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.faults)
}

// Inject injects a fault.
func (p *Pod) Inject(ctx context.Context, name string) error {
	return p.turn(ctx, name, true)
}

// Heal undoes a fault.
func (p *Pod) Heal(ctx context.Context, name string) error {
	return p.turn(ctx, name, false)
}

// ErrUnknownFault says that no fault has this name.
var ErrUnknownFault = errors.New("no such fault")

func (p *Pod) turn(ctx context.Context, name string, on bool) error {
	fault, ok := FindFault(name)
	if !ok {
		return fmt.Errorf("%w: %q; --list-faults lists them", ErrUnknownFault, name)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if slices.Contains(p.faults, name) == on {
		return nil
	}
	act, verb := fault.inject, "inject"
	if !on {
		act, verb = fault.heal, "heal"
	}
	if err := act(ctx, p); err != nil {
		return fmt.Errorf("%s %s: %w", verb, name, err)
	}
	if on {
		p.faults = append(p.faults, name)
	} else {
		p.faults = slices.DeleteFunc(p.faults, func(f string) bool { return f == name })
	}
	kind := FaultInjected
	if !on {
		kind = FaultHealed
	}
	p.timeline.add(Event{Kind: kind, Fault: name, Message: fault.Summary})
	return nil
}

// Resend makes the identity provider send each secret once more to Envoy,
// unchanged and under a new version, as both providers do in health.
func (p *Pod) Resend() { p.server.resendOnce() }

// behave changes the conduct of a service.
func (p *Pod) behave(service Service, alter func(*conduct)) {
	c := p.conducts[service]
	alter(&c)
	p.conducts[service] = c
	p.server.behave(maps.Clone(p.conducts))
}

// Close ends everything and removes the pod's directory.
func (p *Pod) Close() error {
	p.mu.Lock() // a fault that is being injected comes to its end
	defer p.mu.Unlock()
	var errs []error
	if p.envoy != nil {
		errs = append(errs, p.envoy.Close())
	}
	if p.server != nil {
		errs = append(errs, p.server.close())
	}
	if p.mount != nil {
		p.mount.close()
	}
	errs = append(errs, os.RemoveAll(p.dir))
	return errors.Join(errs...)
}
