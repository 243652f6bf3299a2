package rotation_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"svid-watchdog/internal/podsim"
	"svid-watchdog/internal/rotation"
)

var (
	podDaySeed = flag.Uint64("poddays.seed", 0, "replay one pod of TestPodDays, by the `seed` that it printed")
	podDays    = flag.Int("poddays", defaultPodDays, "how many pod-days TestPodDays plays")
)

// daysPerPod is how long each pod lives.
const daysPerPod = 5

// TestPodDays plays healthy pods of many kinds for a thousand days, and wants
// no problem that the catalogue does not demand.
func TestPodDays(t *testing.T) {
	if *podDaySeed != 0 {
		playPodDays(t, *podDaySeed)
		return
	}
	for range max(1, *podDays/daysPerPod) {
		seed := rand.Uint64N(1<<48) + 1
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			playPodDays(t, seed)
		})
	}
}

// healthyPod is a pod of which nothing is broken, and what befalls it.
type healthyPod struct {
	t     *testing.T
	seed  uint64
	rand  *rand.Rand
	cfg   podsim.Config
	clock podsim.Clock
	pod   *podsim.Pod

	ledger *rotation.Ledger
	poll   time.Duration
	// handshake makes handshakes too.
	handshake bool

	clockSet time.Time // when the wall clock was last set
	downFrom time.Time // since when the SDS streams are down
	owed     int       // looks at the open SDS streams that are still to come
	apiUntil time.Time // when the Workload API answers again
	sdsUntil time.Time // when the SDS streams are up again
	envoyOff time.Time // when Envoy answers again
	last     string    // what befell it last
}

func playPodDays(t *testing.T, seed uint64) {
	synctest.Test(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(seed, 0))
		p := &healthyPod{t: t, seed: seed, rand: r}
		p.cfg = podsim.Config{
			Issuer:  pick(r, podsim.Tbot, podsim.SPIRE),
			Modern:  r.IntN(2) == 0,
			Stats:   r.IntN(2) == 0,
			TTL:     pick(r, 5*time.Minute, 10*time.Minute, 30*time.Minute, time.Hour, time.Hour, 4*time.Hour, 24*time.Hour),
			Streams: pick(r, 1, 1, 1, 2),
			Rand:    r,
		}
		p.poll = min(pick(r, 15*time.Second, 15*time.Second, 30*time.Second, time.Minute), p.cfg.TTL/20)
		p.handshake = r.IntN(2) == 0
		p.pod = podsim.New(p.cfg, p.clock.Now())
		p.newLedger()
		p.live(daysPerPod * 24 * time.Hour)
	})
}

func pick[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

// upTo is a duration that is more often short than long.
func (p *healthyPod) upTo(d time.Duration) time.Duration {
	return time.Duration(p.rand.Float64() * p.rand.Float64() * float64(d))
}

func (p *healthyPod) newLedger() {
	p.ledger = rotation.NewLedger(rotation.Config{Grace: grace, Verify: podsim.Verify, Handshake: p.handshake})
}

func (p *healthyPod) live(d time.Duration) {
	begin := p.clock.Now()
	nextLook, nextEvent := begin, begin.Add(30*time.Minute)
	var retire time.Time
	verified := uint64(0)
	for p.clock.Now().Sub(begin) < d {
		now := p.clock.Now()
		if !now.Before(nextEvent) {
			nextEvent = now.Add(10*time.Minute + p.upTo(8*time.Hour))
			if p.befall(now) {
				verified += p.ledger.Judge(now).VerifiedRotations
				p.newLedger()
				p.pod.RestartWorkloadAPI()
			}
			now = p.clock.Now() // it may have been set
			if p.last == "a bundle rotation begins" {
				retire = now.Add(time.Hour)
			}
		}
		if !retire.IsZero() && !now.Before(retire) {
			retire = time.Time{}
			p.pod.RetireAuthority(now)
		}
		p.advance(now)
		if i := p.pod.Issuance(); i != nil {
			p.ledger.RecordIssuance(*i)
			nextLook = now // a nudge
		}
		p.ledger.RecordWorkloadAPI(p.pod.WorkloadAPI(now))
		if !now.Before(nextLook) {
			p.look(now)
			// A budget stretches some polls.
			nextLook = now.Add(p.poll)
			if p.rand.IntN(8) == 0 {
				nextLook = now.Add(time.Duration(1+p.rand.IntN(3)) * p.poll)
			}
		}
		p.check(now)
		p.sleep(now, nextLook, nextEvent, p.pod.NextDue(), p.apiUntil, p.sdsUntil, p.envoyOff)
	}
	v := p.ledger.Judge(p.clock.Now())
	if verified+v.VerifiedRotations == 0 {
		p.fail("no rotation was verified in %s", d)
	}
}

// sleep waits until something happens.
func (p *healthyPod) sleep(now time.Time, times ...time.Time) {
	wait := time.Minute
	for _, t := range times {
		if t.After(now) {
			wait = min(wait, t.Sub(now))
		}
	}
	time.Sleep(max(wait, 10*time.Millisecond))
}

// befall lets something happen that a healthy fleet sees, and tells whether
// the watchdog is to be restarted.
func (p *healthyPod) befall(now time.Time) (restart bool) {
	switch p.rand.IntN(9) {
	case 0, 1:
		p.last = "a restart of the identity provider"
		away := min(p.upTo(2*grace), grace-time.Second)
		p.apiUntil = now.Add(away)
		// Envoy tries again in its own time.
		p.sdsUntil = p.apiUntil.Add(p.upTo(30 * time.Second))
		p.downFrom, p.owed = now, 2
		p.pod.SDSDown = true
		no := false
		p.pod.APIState = &rotation.WorkloadAPI{State: rotation.WorkloadAPIUnreachable, Reason: rotation.ReasonNoSocket, SocketAnswers: &no}
		p.pod.RestartIssuer(now)
	case 2:
		p.last = "a restart of Envoy"
		p.envoyOff = now.Add(p.upTo(30 * time.Second))
		p.pod.AdminDown = true
		p.pod.RestartEnvoy(p.envoyOff)
	case 3:
		p.last = "a bundle rotation begins"
		p.pod.AddAuthority(now)
	case 4:
		p.last = "the wall clock is set"
		p.clock.Set(time.Duration(p.rand.Int64N(int64(4*time.Minute))) - 2*time.Minute)
		p.clockSet = p.clock.Now()
	case 5:
		p.last = "the node is suspended for 10 minutes"
		p.clock.Set(10 * time.Minute)
		p.clockSet = p.clock.Now()
	case 6:
		p.last = "secrets are sent again unchanged"
		p.pod.Resent(now)
	case 7:
		p.last = "the SVID is renewed out of turn"
		p.pod.RestartIssuer(now)
	case 8:
		p.last = "the watchdog is restarted"
		return true
	}
	return false
}

// advance ends what has its end, and moves the pod on.
func (p *healthyPod) advance(now time.Time) {
	ended := func(t *time.Time) bool {
		if t.IsZero() || now.Before(*t) {
			return false
		}
		*t = time.Time{}
		return true
	}
	if ended(&p.apiUntil) {
		p.pod.APIState = nil
	}
	if ended(&p.sdsUntil) {
		p.pod.SDSDown = false
	}
	if ended(&p.envoyOff) {
		p.pod.AdminDown = false
	}
	if !p.pod.AdminDown {
		p.pod.Advance(now)
	}
}

func (p *healthyPod) look(now time.Time) {
	o := p.pod.Envoy(now)
	if o.Err == "" && p.rand.IntN(4) == 0 {
		o.SDSCluster = nil // not every question is asked at every look
	}
	if o.SDSCluster != nil && !p.pod.SDSDown {
		p.owed--
	}
	if o.Err == "" && p.rand.IntN(4) == 0 && p.settled(o) {
		o.Contexts = nil
	}
	p.ledger.RecordFiles(p.pod.CredentialFiles(now))
	if p.handshake && o.Err == "" {
		p.ledger.RecordHandshake(p.pod.Handshake(now))
	}
	p.ledger.RecordEnvoy(o)
}

// settled tells whether the contexts were seen to hold what is delivered: then
// they need not be asked for at each look.
func (p *healthyPod) settled(o rotation.Envoy) bool {
	v := p.ledger.Judge(o.At)
	for _, i := range o.Secrets.Identity {
		if c := v.Stage(rotation.Loaded).Certificate; c == nil || c.NotAfter.Before(i.Leaf.NotAfter) {
			return false
		}
	}
	return true
}

// check wants no problem but those that the catalogue demands: a certificate
// whose end has come near because the wall clock was set; after an absence of
// the server, as Envoy may wait for another 30 s, a stream that is really down
// for longer than the grace; and, where the absence began shortly before a
// renewal was due, one that is late by more than the grace, and with short lives
// even an end that is near. It takes two looks at the stream to see that it is
// open again.
func (p *healthyPod) check(now time.Time) {
	v := p.ledger.Judge(now)
	for _, problem := range v.Problems {
		switch problem.Name {
		case rotation.CertificateExpiring, rotation.CertificateExpired:
			set := !p.clockSet.IsZero() && now.Sub(p.clockSet) < p.cfg.TTL
			away := problem.Name == rotation.CertificateExpiring && (p.pod.SDSDown || p.owed > 0)
			if (set || away) && p.near(v, now) {
				continue
			}
		case rotation.SDSStreamDown:
			if now.Sub(p.downFrom) >= grace && (p.pod.SDSDown || p.owed > 0) {
				continue
			}
		case rotation.DeliveryOverdue:
			if p.pod.SDSDown || p.owed > 0 {
				continue
			}
		}
		p.fail("%s (%s): %s, after %s", problem.Name, problem.Reason, problem.Detail, p.last)
	}
}

// near tells whether a leaf that is seen has less than the margin left.
func (p *healthyPod) near(v rotation.Verdict, now time.Time) bool {
	for _, s := range v.Stages {
		if c := s.Certificate; c != nil && c.NotAfter.Sub(now.Round(0)) <= c.NotAfter.Sub(c.NotBefore)/6 {
			return true
		}
	}
	return false
}

func (p *healthyPod) fail(format string, args ...any) {
	p.t.Helper()
	events := p.ledger.Judge(p.clock.Now()).Events
	for _, e := range events[max(0, len(events)-12):] {
		p.t.Logf("%s %s %s", e.At.Format(time.DateTime), e.Type, e.Message)
	}
	p.t.Fatalf("%s\n%s, modern %t, stats %t, TTL %s, %d streams, poll %s; replay it with -run TestPodDays -poddays.seed=%d",
		fmt.Sprintf(format, args...), p.cfg.Issuer, p.cfg.Modern, p.cfg.Stats, p.cfg.TTL, p.cfg.Streams, p.poll, p.seed)
}
