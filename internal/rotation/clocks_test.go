package rotation_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"svid-watchdog/internal/podsim"
	"svid-watchdog/internal/rotation"
)

// TestSkew: an issuer whose clock is five minutes ahead, so that certificates
// are valid from the future on, or five minutes behind, is no fault.
func TestSkew(t *testing.T) {
	for _, skew := range []time.Duration{-5 * time.Minute, 5 * time.Minute} {
		t.Run(fmt.Sprint(skew), func(t *testing.T) {
			everyPod(t, func(t *testing.T, cfg podsim.Config) {
				cfg.Skew = skew
				l := begin(t, cfg)
				v := l.run(6 * time.Hour)
				l.quiet()
				if v.State != rotation.Healthy || v.VerifiedRotations < 10 {
					t.Errorf("state %s, %d verified rotations", v.State, v.VerifiedRotations)
				}
			})
		})
	}
}

// node is a pod on a node whose wall clock is set.
type node struct {
	clock  podsim.Clock
	pod    *podsim.Pod
	ledger *rotation.Ledger
}

// live lets time pass and returns which problems were raised meanwhile.
func (n *node) live(d time.Duration) map[rotation.ProblemName]bool {
	raised := make(map[rotation.ProblemName]bool)
	for range d / poll {
		time.Sleep(poll) // the bubble's clock
		now := n.clock.Now()
		n.pod.Advance(now)
		if i := n.pod.Issuance(); i != nil {
			n.ledger.RecordIssuance(*i)
		}
		n.ledger.RecordWorkloadAPI(n.pod.WorkloadAPI(now))
		n.ledger.RecordFiles(n.pod.CredentialFiles(now))
		n.ledger.RecordEnvoy(n.pod.Envoy(now))
		for _, p := range n.ledger.Judge(now).Problems {
			raised[p.Name] = true
		}
	}
	return raised
}

// TestClockIsSet: expiry follows the wall clock, at the next judgement, and
// whether a renewal is late does not.
func TestClockIsSet(t *testing.T) {
	for _, issuer := range []podsim.Issuer{podsim.Tbot, podsim.SPIRE} {
		t.Run(string(issuer), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := &node{ledger: rotation.NewLedger(rotation.Config{Grace: grace, Verify: podsim.Verify})}
				n.pod = podsim.New(podsim.Config{Issuer: issuer, TTL: ttl}, n.clock.Now())
				if raised := n.live(3 * time.Hour); len(raised) > 0 {
					t.Fatalf("raised %v", raised)
				}

				n.clock.Set(2 * time.Hour)
				v := n.ledger.Judge(n.clock.Now())
				if !v.Has(rotation.CertificateExpired) {
					t.Errorf("two hours on: %v, want it expired at once", names(v))
				}
				raised := n.live(ttl)
				for _, late := range []rotation.ProblemName{rotation.IssuanceOverdue, rotation.DeliveryOverdue, rotation.HollowUpdate, rotation.UpdateRejected} {
					if raised[late] {
						t.Errorf("%s was raised because the clock was set", late)
					}
				}
				if v := n.ledger.Judge(n.clock.Now()); v.State != rotation.Healthy {
					t.Errorf("renewed since: %s %v", v.State, names(v))
				}

				// Now certificates are valid from two hours ahead.
				n.clock.Set(-2 * time.Hour)
				if raised := n.live(3 * time.Hour); len(raised) > 0 {
					t.Errorf("two hours back: raised %v", raised)
				}
				if v := n.ledger.Judge(n.clock.Now()); v.State != rotation.Healthy {
					t.Errorf("two hours back: %s", v.State)
				}
			})
		})
	}
}
