package wallclock_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"svid-watchdog/internal/check"
	"svid-watchdog/internal/e2e/neighbour"
	"svid-watchdog/internal/e2e/sidecar"
	"svid-watchdog/internal/e2e/wallclock"
	"svid-watchdog/internal/lab"
	"svid-watchdog/internal/rotation"
)

const (
	ttl     = time.Minute
	renewal = 10 * time.Second
	lead    = 10 * time.Second
	poll    = time.Second
	grace   = 4 * time.Second

	// soon is more than the longest pause of the judge, patient more than three
	// renewals.
	soon    = 30 * time.Second
	patient = 50 * time.Second
)

// node is a node whose clock may be set, with a pod on it: the real Envoy and
// the watchdog. The issuer's clock, by which certificates are dated, is right.
type node struct {
	t     *testing.T
	clock *wallclock.Clock
	pod   *lab.Pod
	w     *sidecar.Sidecar

	mu     sync.Mutex
	newest tls.Certificate
	// events are all that the watchdog told, which itself keeps but a hundred.
	events map[uint64]rotation.Event
}

// kind is a kind of node.
type kind struct {
	issuer lab.Issuer
	envoy  string
}

func (k kind) String() string { return string(k.issuer) + " and Envoy " + k.envoy }

// everyKind runs a test on each kind of node.
func everyKind(t *testing.T, f func(t *testing.T, k kind)) {
	t.Parallel()
	for _, k := range []kind{{lab.Tbot, "1.36.4"}, {lab.Tbot, "1.40.0"}, {lab.SPIRE, "1.40.0"}} {
		t.Run(k.String(), func(t *testing.T) {
			t.Parallel()
			f(t, k)
		})
	}
}

// newNode starts a node whose clock is ahead.
func newNode(t *testing.T, k kind, ahead time.Duration) *node {
	t.Helper()
	n := &node{t: t, clock: wallclock.New(t), events: make(map[uint64]rotation.Event)}
	n.clock.Set(ahead)
	var err error
	n.pod, err = lab.Start(t.Context(), lab.Config{
		Issuer: k.issuer, TTL: ttl, Renewal: renewal, Lead: lead, EnvoyPath: neighbour.Envoy(t, k.envoy),
		Now: n.clock.Now, Begin: n.clock.Begin,
		Minted: func(leaf *x509.Certificate, key []byte) {
			parsed, err := x509.ParsePKCS8PrivateKey(key)
			if err != nil {
				t.Error(err)
			}
			n.mu.Lock()
			defer n.mu.Unlock()
			n.newest = tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: parsed}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.pod.Close() })
	n.w = sidecar.StartWith(t, neighbour.How{Begin: n.clock.Begin}, "--workload-api.address="+n.pod.SocketAddress(), "--envoy.admin-address="+n.pod.Envoy().AdminAddress(),
		"--handshake.address="+n.pod.Envoy().ListenerAddress(), "--credentials.dir="+n.pod.CredentialsDir(),
		"--envoy.poll-interval="+poll.String(), "--envoy.budget=50", "--rotation.grace="+grace.String())
	return n
}

// until waits for a verdict, and takes down what is told meanwhile.
func (n *node) until(bound time.Duration, what string, satisfied func(rotation.Verdict) bool) rotation.Verdict {
	n.t.Helper()
	return n.w.Until(bound, what, func(v rotation.Verdict) bool {
		for _, e := range v.Events {
			n.events[e.Seq] = e
		}
		return satisfied(v)
	})
}

// verified waits for more rotations to be verified, and returns how many are.
func (n *node) verified(more uint64) rotation.Verdict {
	n.t.Helper()
	wanted := n.w.Verdict().VerifiedRotations + more
	return n.until(patient, fmt.Sprintf("%d more verified rotations", more), func(v rotation.Verdict) bool {
		return v.VerifiedRotations >= wanted
	})
}

// told are the events of a type, oldest first.
func (n *node) told(kind rotation.EventType) []rotation.Event {
	var told []rotation.Event
	for _, seq := range slices.Sorted(maps.Keys(n.events)) {
		if n.events[seq].Type == kind {
			told = append(told, n.events[seq])
		}
	}
	return told
}

// raisedOnly fails if another problem was raised than those, or Envoy was taken
// to be another.
func (n *node) raisedOnly(expected ...rotation.ProblemName) {
	n.t.Helper()
	for _, e := range n.told(rotation.EventProblemRaised) {
		if !slices.Contains(expected, e.Problem) {
			n.t.Errorf("raised %s: %s", e.Problem, e.Message)
		}
	}
	for _, e := range slices.Concat(n.told(rotation.EventEnvoyRestarted), n.told(rotation.EventRejectedUpdate)) {
		n.t.Errorf("told: %s", e.Message)
	}
}

// jumps fails unless exactly these steps of the clock were told, and each in a
// line of the log.
func (n *node) jumps(expected ...time.Duration) {
	n.t.Helper()
	logged := func() int { return strings.Count(n.w.Out.String(), "event="+string(rotation.EventClockJumped)) }
	neighbour.Until(n.t, soon, "the steps to be logged", func() bool { return logged() >= len(expected) }, n.w)
	if logged() != len(expected) {
		n.t.Errorf("%d lines in the log, want %d\n%s", logged(), len(expected), n.w)
	}
	told := n.told(rotation.EventClockJumped)
	if len(told) != len(expected) {
		n.t.Fatalf("told %d steps, want %d: %v", len(told), len(expected), told)
	}
	for i, e := range told {
		text := strings.TrimPrefix(e.Message, "The wall clock moved by ")
		text, _, _ = strings.Cut(text, " ")
		by, err := time.ParseDuration(text)
		if err != nil || (by-expected[i]).Abs() > 100*time.Millisecond {
			n.t.Errorf("%q, want %s", e.Message, expected[i])
		}
	}
}

// greet makes a handshake with Envoy's listener, as a peer with a certificate
// that is good by the right time.
func (n *node) greet() error {
	n.mu.Lock()
	certificate := n.newest
	n.mu.Unlock()
	dialer := tls.Dialer{NetDialer: &net.Dialer{Timeout: 5 * time.Second}, Config: &tls.Config{
		Certificates:       []tls.Certificate{certificate},
		InsecureSkipVerify: true,             // it is the other side's judgement that we ask for
		MaxVersion:         tls.VersionTLS12, // later a peer is refused after the handshake only
	}}
	conn, err := dialer.DialContext(n.t.Context(), "tcp", n.pod.Envoy().ListenerAddress())
	if err != nil {
		return err
	}
	return conn.Close()
}

func healthy(v rotation.Verdict) bool { return v.State == rotation.Healthy }

func expired(v rotation.Verdict) bool { return v.Has(rotation.CertificateExpired) }

// TestTwoHours: a node's clock is set two hours forth. Certificates are expired
// there then, which Envoy thinks too; nothing else is wrong, and rotation goes
// on. It is set back, and all is well.
func TestTwoHours(t *testing.T) {
	everyKind(t, func(t *testing.T, k kind) {
		n := newNode(t, k, 0)
		n.verified(1)
		if err := n.greet(); err != nil {
			t.Fatalf("Envoy refuses a peer: %v", err)
		}
		n.raisedOnly()
		n.jumps()

		n.clock.Set(2 * time.Hour)
		n.until(soon, "the certificates to be called expired", expired)
		n.jumps(2 * time.Hour)
		if err := n.greet(); err == nil || !strings.Contains(err.Error(), "tls: unknown certificate") {
			t.Errorf("two hours ahead Envoy says to a peer: %v, want its certificate to be refused", err)
		}
		v := n.verified(2)
		if v.State != rotation.Broken || len(v.Problems) != 1 {
			t.Errorf("two hours ahead: %s %v", v.State, v.Problems)
		}

		n.clock.Set(0)
		n.until(soon, "health", healthy)
		n.jumps(2*time.Hour, -2*time.Hour)
		if err := n.greet(); err != nil {
			t.Errorf("Envoy refuses a peer: %v", err)
		}
		n.verified(1)
		n.raisedOnly(rotation.CertificateExpired)
	})
}

// TestBeforeAnythingIsLearned: the clock is set, or is wrong from the start,
// before it is known how often the issuer renews.
func TestBeforeAnythingIsLearned(t *testing.T) {
	t.Parallel()
	for _, wrong := range []time.Duration{0, 2 * time.Hour} {
		t.Run(fmt.Sprintf("%s at the start", wrong), func(t *testing.T) {
			everyKind(t, func(t *testing.T, k kind) {
				n := newNode(t, k, wrong)
				if wrong == 0 {
					n.until(soon, "health", healthy)
					n.clock.Set(2 * time.Hour)
				}
				n.until(soon, "the certificates to be called expired", expired)
				n.until(patient, "the interval to be learned", func(v rotation.Verdict) bool { return v.IntervalSource == rotation.IntervalLearned })
				n.verified(1)
				n.raisedOnly(rotation.CertificateExpired)
			})
		})
	}
}

// TestOneLook: somebody looks once at a pod whose node's clock is two hours
// ahead. He is told of certificates that have expired, and of the clock; neither
// the issuer nor Envoy is blamed.
func TestOneLook(t *testing.T) {
	everyKind(t, func(t *testing.T, k kind) {
		n := newNode(t, k, 2*time.Hour)
		n.until(soon, "expired certificates at each stage", func(v rotation.Verdict) bool {
			return expired(v) && v.Stage(rotation.Served).Certificate != nil && v.Envoy.SDSStreams != nil && *v.Envoy.SDSStreams == 2
		})
		look := neighbour.StartWith(t, neighbour.How{Begin: n.clock.Begin}, sidecar.Binary(t), "check", "--own-look", "--json",
			"--workload-api.address="+n.pod.SocketAddress(), "--envoy.admin-address="+n.pod.Envoy().AdminAddress(),
			"--handshake.address="+n.pod.Envoy().ListenerAddress(), "--credentials.dir="+n.pod.CredentialsDir())
		<-look.Exited
		var report check.Report
		if err := json.Unmarshal([]byte(look.Out.String()), &report); err != nil {
			t.Fatalf("%v\n%s", err, look)
		}
		for _, p := range report.Verdict.Problems {
			if p.Name != rotation.CertificateExpired || !strings.Contains(p.Advice, "clock") {
				t.Errorf("%s (%s): %s; %s", p.Name, p.Reason, p.Detail, p.Advice)
			}
		}
		if report.Verdict.State != rotation.Broken || report.ExitCode != check.ExitProblem {
			t.Errorf("%s, exit code %d", report.Verdict.State, report.ExitCode)
		}
	})
}

// TestSevenSeconds: a small step is told, and raises nothing. (It is not as long
// as the renewal interval: two updates of Envoy's would have one time.)
func TestSevenSeconds(t *testing.T) {
	everyKind(t, func(t *testing.T, k kind) {
		n := newNode(t, k, 0)
		n.verified(1)
		var before time.Duration
		var steps []time.Duration
		for _, ahead := range []time.Duration{7 * time.Second, 0, -7 * time.Second, 0} {
			n.clock.Set(ahead)
			steps = append(steps, ahead-before)
			before = ahead
			n.until(soon, "the step to be told", func(rotation.Verdict) bool { return len(n.told(rotation.EventClockJumped)) == len(steps) })
			n.verified(1)
		}
		n.until(soon, "health", healthy)
		n.jumps(steps...)
		n.raisedOnly()
	})
}

// TestStallIsNamed: the issuer renews no more on a node whose clock is set back,
// before that and once more after it, so that certificates seem to be young and
// to live for long. It is noticed none the later, and none the sooner.
func TestStallIsNamed(t *testing.T) {
	everyKind(t, func(t *testing.T, k kind) {
		n := newNode(t, k, 0)
		v := n.until(patient, "the interval to be learned", func(v rotation.Verdict) bool { return v.IntervalSource == rotation.IntervalLearned })
		n.clock.Set(-time.Hour)
		// The streams of the two services are renewed one after the other.
		issued := v.Stage(rotation.Issued).Rotations
		n.verified(1)
		n.until(patient, "an SVID by the wrong clock", func(v rotation.Verdict) bool { return v.Stage(rotation.Issued).Rotations > issued })
		if err := n.pod.Inject(t.Context(), "renewal-stopped"); err != nil {
			t.Fatal(err)
		}
		n.clock.Set(-2 * time.Hour)
		v = n.until(ttl, "the stall to be named before the certificates expire", func(v rotation.Verdict) bool {
			return v.Has(rotation.DeliveryOverdue) && v.Has(rotation.IssuanceOverdue)
		})
		for _, stage := range []rotation.Stage{rotation.Issued, rotation.Delivered} {
			if age := *v.Stage(stage).AgeSeconds; age < (renewal+grace).Seconds() || age > (ttl-renewal).Seconds() {
				t.Errorf("%s: overdue at an age of %g s", stage, age)
			}
		}
		if err := n.pod.Heal(t.Context(), "renewal-stopped"); err != nil {
			t.Fatal(err)
		}
		n.until(patient, "health", healthy)
		n.jumps(-time.Hour, -time.Hour)
		n.raisedOnly(rotation.DeliveryOverdue, rotation.IssuanceOverdue)
	})
}

// TestBackwards: the clock is set back by a minute at each look, so that by the
// wall clock nothing ever lasts. What outlasts the grace is named all the same.
func TestBackwards(t *testing.T) {
	everyKind(t, func(t *testing.T, k kind) {
		n := newNode(t, k, 0)
		n.until(soon, "health", healthy)
		ahead := time.Duration(0)
		for _, name := range []string{"bundle-stuck", "envoy-hung", "workload-api-error"} {
			fault, known := lab.FindFault(name)
			if !known {
				t.Fatalf("no fault %s", name)
			}
			if err := n.pod.Inject(t.Context(), name); err != nil {
				t.Fatal(err)
			}
			n.until(soon, name+" to be named", func(v rotation.Verdict) bool {
				ahead -= time.Minute
				n.clock.Set(ahead)
				return v.Has(fault.Shows)
			})
			if err := n.pod.Heal(t.Context(), name); err != nil {
				t.Fatal(err)
			}
			n.until(patient, "health after "+name, healthy)
		}
	})
}

// TestRestlessClock: the clock is set all the time, whatever is under way.
// Certificates expire and become good again, and that is all; each rotation is
// verified.
func TestRestlessClock(t *testing.T) {
	everyKind(t, func(t *testing.T, k kind) {
		n := newNode(t, k, 0)
		before := n.verified(1)
		seed := rand.Uint64()
		t.Logf("seed %d", seed)
		dice := rand.New(rand.NewPCG(seed, 0))
		delivered := func(v rotation.Verdict) uint64 { return v.Stage(rotation.Delivered).Rotations }
		looks := 0
		after := n.until(patient, "three more rotations", func(v rotation.Verdict) bool {
			if looks++; looks%4 == 0 { // five times a second
				n.clock.Set(time.Duration(dice.Int64N(int64(4*time.Hour))) - 2*time.Hour)
			}
			return delivered(v) >= delivered(before)+3
		})
		n.clock.Set(0)
		v := n.until(soon, "health", func(v rotation.Verdict) bool {
			return healthy(v) && v.VerifiedRotations-before.VerifiedRotations >= delivered(after)-delivered(before)
		})
		if told := len(n.told(rotation.EventClockJumped)); told < 50 {
			t.Errorf("only %d steps were told", told)
		}
		if more := v.VerifiedRotations - before.VerifiedRotations; more > delivered(v)-delivered(before) {
			t.Errorf("%d rotations were verified of %d", more, delivered(v)-delivered(before))
		}
		// A step back in the moment between the sending of an update and Envoy's
		// taking it makes that look refused, until its contexts show it in use: that
		// is told, and must raise nothing.
		maps.DeleteFunc(n.events, func(_ uint64, e rotation.Event) bool { return e.Type == rotation.EventRejectedUpdate })
		n.raisedOnly(rotation.CertificateExpired, rotation.CertificateExpiring)
	})
}

// TestEnvoyStartsAfterAStepBack: Envoy counts its life by the wall clock. One
// that starts after the clock was set back is a new one none the less: what it
// has at first is no rotation.
func TestEnvoyStartsAfterAStepBack(t *testing.T) {
	everyKind(t, func(t *testing.T, k kind) {
		n := newNode(t, k, 0)
		n.verified(1)
		n.clock.Set(-10 * time.Minute)
		n.until(soon, "the step to be told", func(rotation.Verdict) bool { return len(n.told(rotation.EventClockJumped)) == 1 })
		if err := n.pod.Envoy().Stop(); err != nil {
			t.Fatal(err)
		}
		if err := n.pod.Envoy().Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		n.until(soon, "the new Envoy to be noticed", func(rotation.Verdict) bool { return len(n.told(rotation.EventEnvoyRestarted)) == 1 })
		n.until(soon, "health", healthy)
		n.verified(1)
	})
}
