package lab

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	secretservice "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
)

// conduct is how one service behaves now. The zero value is good behaviour;
// each fault changes what it is about.
type conduct struct {
	// refuse ends every stream, open or new, with this error.
	refuse error
	// noIdentity treats the workload as not entitled to its identity.
	noIdentity bool
	// mute accepts streams and never answers them.
	mute bool
	// withhold is mute for streams that ask for the identity.
	withhold bool
	// stalled sends no renewals.
	stalled bool
	// frozen is stalled, and new streams get the SVID issued last.
	frozen bool
	// resend renews with the SVID that was sent before.
	resend bool

	// starved renews as if a federated bundle had changed: with the SVID that
	// was sent before, and twice as often.
	starved bool
	// flap ends each stream soon after its first answer.
	flap bool
	// bundleStuck sends no new trust bundle.
	bundleStuck bool
	// withholdSecond answers for the identity on one stream only.
	withholdSecond bool

	// What is wrong with the SVIDs.
	expired, badKey, otherID, foreign bool
}

// spoils tells whether what is sent is not what a good issuer would send.
func (c conduct) spoils() bool { return c.expired || c.badKey || c.otherID || c.foreign }

// server is the identity provider: both services on one socket.
type server struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
	secretservice.UnimplementedSecretDiscoveryServiceServer

	issuer       Issuer
	ttl, renewal time.Duration
	// lead is by how much not-before is back-dated.
	lead time.Duration
	// minted hears of each SVID; nil for nobody.
	minted func(*x509.Certificate, []byte)
	// now is the node's wall clock.
	now      func() time.Time
	timeline *timeline

	mu      sync.Mutex
	ca      *authority
	foreign *authority
	// announced is an authority that issues nothing yet, nil if there is none;
	// before is the one that was announced before it.
	announced, before *authority
	conducts          map[Service]conduct
	streams           map[*stream]struct{}
	opened            int
	// last is the SVID issued last: with SPIRE the one that all streams share.
	last *svid
	// rotation renews the shared SVID; nil with tbot.
	rotation *time.Timer

	gate   *gate
	grpc   *grpc.Server
	served chan error
}

// flapAfter is how long a flapping stream lasts.
const flapAfter = 200 * time.Millisecond

func newServer(issuer Issuer, ttl, renewal, lead time.Duration, minted func(*x509.Certificate, []byte), t *timeline) (*server, error) {
	now := time.Now()
	ca, err := newAuthority("svid-watchdog lab CA", now)
	if err != nil {
		return nil, err
	}
	foreign, err := newAuthority("another CA", now)
	if err != nil {
		return nil, err
	}
	s := &server{
		issuer: issuer, ttl: ttl, renewal: renewal, lead: lead, minted: minted, now: time.Now, timeline: t,
		ca: ca, foreign: foreign,
		conducts: make(map[Service]conduct),
		streams:  make(map[*stream]struct{}),
		gate:     newGate(),
	}
	if s.last, err = s.mint(conduct{}); err != nil {
		return nil, err
	}
	if issuer == SPIRE {
		s.mu.Lock() // the timer may fire at once
		s.rotation = time.AfterFunc(renewal, s.rotateByTimer)
		s.mu.Unlock()
	}
	return s, nil
}

// mint issues an SVID, spoiled as the conduct says.
func (s *server) mint(c conduct) (*svid, error) {
	now := time.Now()
	ca, id := s.ca, SPIFFEID
	notBefore, notAfter := now.Add(-s.lead), now.Add(s.ttl)
	if c.foreign {
		ca = s.foreign
	}
	if c.otherID {
		id = otherSPIFFEID
	}
	if c.expired {
		notBefore, notAfter = notBefore.Add(-s.ttl), now.Add(-time.Second)
	}
	made, err := ca.issue(id, notBefore, notAfter)
	if err != nil {
		return nil, err
	}
	if c.badKey {
		if _, made.key, err = newKey(); err != nil {
			return nil, err
		}
	}
	if s.minted != nil {
		s.minted(made.leaf, made.key)
	}
	return made, nil
}

// listen serves on a unix socket. A file that is already there goes first, and
// everybody may connect (teleport: lib/tbot/internal/listener; spire:
// pkg/agent/endpoints).
//
// It does nothing while the server listens, so that faults which overlap can be
// healed in any order.
func (s *server) listen(path string) error {
	if s.grpc != nil {
		return nil
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the old socket: %w", err)
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return fmt.Errorf("listen for the identity provider: %w", err)
	}
	// What becomes of the file is for the faults to say.
	listener.SetUnlinkOnClose(false)
	if err := os.Chmod(path, 0o777); err != nil { //nolint:gosec // as the real ones do
		_ = listener.Close()
		return fmt.Errorf("open the socket to everybody: %w", err)
	}
	s.grpc = grpc.NewServer(grpc.WaitForHandlers(true))
	s.served = make(chan error, 1)
	workload.RegisterSpiffeWorkloadAPIServer(s.grpc, s)
	secretservice.RegisterSecretDiscoveryServiceServer(s.grpc, s)
	go func(g *grpc.Server, served chan<- error) { served <- g.Serve(gated{listener, s.gate}) }(s.grpc, s.served)
	return nil
}

// stop ends all streams and stops listening, and returns when both is done.
func (s *server) stop() error {
	if s.grpc == nil {
		return nil
	}
	s.gate.unshut()
	s.grpc.Stop()
	err := <-s.served
	s.grpc = nil
	if err != nil && !errors.Is(err, grpc.ErrServerStopped) { // stopped before it served
		return fmt.Errorf("serve the Workload API and SDS: %w", err)
	}
	return nil
}

// close ends the server for good.
func (s *server) close() error {
	s.mu.Lock()
	if s.rotation != nil {
		s.rotation.Stop()
		s.rotation = nil
	}
	s.mu.Unlock()
	return s.stop()
}

// behave changes the conduct of both services; open streams look at it anew.
func (s *server) behave(conducts map[Service]conduct) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conducts = conducts
	for st := range s.streams {
		st.rouse()
	}
}

// cut ends the open streams of a service with an error.
func (s *server) cut(service Service, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for st := range s.streams {
		if st.service == service {
			st.cut = err
			st.rouse()
		}
	}
}

// push makes each open stream of a service send a renewal at once.
func (s *server) push(service Service) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pushLocked(service)
}

func (s *server) pushLocked(service Service) {
	for st := range s.streams {
		if st.service == service {
			st.push = true
			st.rouse()
		}
	}
}

// renewShared renews the SVID that all streams share at once, with SPIRE; with
// tbot there is none.
func (s *server) renewShared() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rotateLocked()
}

// rotateByTimer is the renewal of the shared SVID in its time.
func (s *server) rotateByTimer() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.rotateLocked(); err != nil {
		s.timeline.log.Error("renewal failed", "error", err)
	}
}

func (s *server) rotateLocked() error {
	if s.rotation == nil {
		return nil
	}
	s.rotation.Reset(s.renewal)
	if s.conducts[WorkloadAPI].frozen {
		return nil
	}
	fresh, err := s.mint(conduct{})
	if err != nil {
		return err
	}
	s.last = fresh
	// Every update goes out on every stream (spire: the subscribers of the
	// agent's cache).
	for _, service := range []Service{WorkloadAPI, SDS} {
		if c := s.conducts[service]; !c.stalled && !c.frozen {
			s.pushLocked(service)
		}
	}
	return nil
}

// stream is the server's side of one open stream.
type stream struct {
	number  int
	service Service
	// names are the SDS resources asked for; the Workload API has none.
	names []string
	// asked is true once the client's first request came, answered once the
	// first answer was sent.
	asked, answered bool
	// sent counts the answers, current is the SVID of the latest.
	sent    int
	current *svid
	// timer renews; it never fires with SPIRE, whose SVID is renewed for all
	// streams at once.
	timer *time.Timer

	// wake has a value when cut, push or the conduct may have changed.
	wake chan struct{}
	// cut and push belong to the server's mutex.
	cut  error
	push bool
	// again sends what was sent before.
	again bool
}

func (st *stream) rouse() {
	select {
	case st.wake <- struct{}{}:
	default:
	}
}

// wantsIdentity tells whether the stream is to carry an SVID.
func (st *stream) wantsIdentity() bool {
	if st.service == WorkloadAPI || len(st.names) == 0 {
		return true
	}
	return slices.Contains(st.names, identitySecret)
}

func (s *server) open(service Service) *stream {
	timer := time.NewTimer(time.Hour)
	timer.Stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.opened++
	st := &stream{number: s.opened, service: service, timer: timer, wake: make(chan struct{}, 1)}
	s.streams[st] = struct{}{}
	return st
}

func (s *server) closed(st *stream, err error) {
	st.timer.Stop()
	s.mu.Lock()
	delete(s.streams, st)
	s.mu.Unlock()
	message := "A client's stream has ended."
	if err != nil && !errors.Is(err, context.Canceled) {
		message = "A stream was ended by the server: " + err.Error() + "."
	}
	s.timeline.add(Event{Kind: StreamClosed, Service: st.service, Stream: st.number, Message: message})
}

// due says what is to be sent on a stream now: an SVID, nothing (nil), or an
// error that ends it. ticked is true when the stream's timer fired.
func (s *server) due(st *stream, ticked bool) (*svid, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.conducts[st.service]
	push, again := st.push, st.again && st.current != nil
	st.push, st.again = false, false
	switch {
	case st.cut != nil:
		return nil, st.cut
	case c.refuse != nil:
		return nil, c.refuse
	case !st.asked:
		return nil, nil
	case c.noIdentity && st.service == WorkloadAPI:
		return nil, s.issuer.notEntitled()
	case c.noIdentity && st.wantsIdentity():
		return nil, s.issuer.unknownNames([]string{identitySecret})
	case c.flap && st.answered && ticked:
		return nil, errFlap
	case c.mute, c.withhold && st.wantsIdentity(), c.withholdSecond && s.isSecond(st):
		s.rearm(st)
		return nil, nil
	case !st.answered:
	case push:
	case again:
		st.sent++
		s.rearm(st)
		return st.current, nil
	case ticked && (c.stalled || c.frozen):
		s.rearm(st)
		return nil, nil
	case ticked:
	default:
		return nil, nil
	}
	next, err := s.next(st, c)
	if err != nil {
		return nil, fmt.Errorf("issue an SVID: %w", err)
	}
	st.current, st.answered = next, true
	st.sent++
	s.rearm(st)
	return next, nil
}

// next is the SVID of the next answer on a stream.
func (s *server) next(st *stream, c conduct) (*svid, error) {
	switch {
	case (c.resend || c.starved) && st.current != nil:
		// tbot before 18.6.4 and 17.7.14: the renewal timer fires, the cached
		// SVIDs are not dropped (gravitational/teleport#62813).
		return st.current, nil
	case c.spoils():
		return s.mint(c)
	case s.issuer == SPIRE, c.frozen:
		return s.last, nil
	}
	fresh, err := s.mint(c)
	if err == nil {
		s.last = fresh
	}
	return fresh, err
}

// rearm starts the renewal timer anew, as tbot does after every answer.
func (s *server) rearm(st *stream) {
	switch c := s.conducts[st.service]; {
	case c.flap:
		st.timer.Reset(flapAfter)
	case c.starved:
		st.timer.Reset(s.renewal / 2)
	case s.issuer == Tbot:
		st.timer.Reset(s.renewal)
	}
}

// isSecond tells whether another stream carries the identity already.
func (s *server) isSecond(st *stream) bool {
	if !st.wantsIdentity() || st.answered {
		return false
	}
	for other := range s.streams {
		if other != st && other.service == st.service && other.answered && other.wantsIdentity() {
			return true
		}
	}
	return false
}

// announce puts a new authority into the trust bundle.
func (s *server) announce() error {
	next, err := newAuthority("svid-watchdog lab CA, the next", time.Now())
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.before, s.announced = s.announced, next
	return nil
}

// authorities are the trust bundle as a service sends it.
func (s *server) authorities(service Service) []*authority {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := s.announced
	if s.conducts[service].bundleStuck {
		next = s.before
	}
	if next == nil {
		return []*authority{s.ca}
	}
	return []*authority{s.ca, next}
}

// resendOnce sends on each open SDS stream once more what was sent before, as
// tbot does when a federated bundle changes, and SPIRE when anything of the
// workload does.
func (s *server) resendOnce() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for st := range s.streams {
		if st.service == SDS {
			st.again = true
			st.rouse()
		}
	}
}
