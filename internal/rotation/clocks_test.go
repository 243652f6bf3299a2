package rotation_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"svid-watchdog/internal/podsim"
	"svid-watchdog/internal/rotation"
)

// TestSkew: an issuer whose clock is five minutes ahead, so that certificates
// are valid from the future on, or five minutes behind, is no fault; nor does it
// hide that renewals stop.
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
				l.pod.APISilent, l.pod.SDSSilent = true, true
				bound := l.now.Sub(l.start) + l.pod.NextDue().Sub(l.now) + lateness(v) + poll
				l.run(time.Hour)
				for _, late := range []rotation.ProblemName{rotation.IssuanceOverdue, rotation.DeliveryOverdue} {
					if at, told := l.raised[late]; !told || at > bound {
						t.Errorf("%s: %t, after %s, want it within %s", late, told, at, bound)
					}
				}
			})
		})
	}
}

// TestSkewAtFirstSight: the same for a watchdog, or a check, that comes at any
// moment of a certificate's life, and for what it judges until it has seen a
// renewal.
func TestSkewAtFirstSight(t *testing.T) {
	for _, skew := range []time.Duration{-5 * time.Minute, 5 * time.Minute} {
		for joined := time.Minute; joined < 2*ttl/3; joined += 3 * time.Minute {
			t.Run(fmt.Sprintf("%s/%s", skew, joined), func(t *testing.T) {
				everyPod(t, func(t *testing.T, cfg podsim.Config) {
					cfg.Skew = skew
					l := begin(t, cfg)
					l.run(joined)
					if v := lookOnce(l.pod, l.now, 0); v.State != rotation.Healthy {
						t.Errorf("one look: %s %v", v.State, v.Problems)
					}
					l.newLedger()
					l.pod.RestartWorkloadAPI()
					l.run(2 * time.Hour)
					l.quiet()
				})
			})
		}
	}
}

// TestNotYetValid: nothing false is said of a certificate that is not valid yet
// by the clock of this node, as nobody here can tell whose clock is wrong: it has
// the life left that it has, is as old as our knowledge of it, and is overdue
// when no other comes.
func TestNotYetValid(t *testing.T) {
	everyPod(t, func(t *testing.T, cfg podsim.Config) {
		cfg.Skew, cfg.Renewal = 3*time.Hour, renewal
		l := begin(t, cfg)
		v := l.run(2*time.Hour + 5*time.Minute)
		l.quiet()
		if v.State != rotation.Healthy {
			t.Errorf("state %s", v.State)
		}
		for _, stage := range []rotation.Stage{rotation.Issued, rotation.Delivered, rotation.Loaded} {
			s := v.Stage(stage)
			if left := time.Duration(*s.RemainingSeconds) * time.Second; left < cfg.Skew || left > cfg.Skew+ttl {
				t.Errorf("%s: %s left", stage, left)
			}
			if age := time.Duration(*s.AgeSeconds) * time.Second; age > 6*time.Minute {
				t.Errorf("%s: %s old", stage, age)
			}
		}
		l.pod.APISilent, l.pod.SDSSilent = true, true
		v = l.run(renewal + lateness(v))
		if got, want := names(v), []rotation.ProblemName{rotation.DeliveryOverdue, rotation.IssuanceOverdue}; !slices.Equal(got, want) {
			t.Errorf("renewals have stopped: %v, want %v", got, want)
		}
	})
}

// lateness is how late a renewal may be, once the interval is learned: by the
// grace, and by a tenth, as few renewals were seen.
func lateness(v rotation.Verdict) time.Duration {
	return grace + time.Duration(v.IntervalSeconds/10)*time.Second
}

// node is a pod on a node whose wall clock is set.
type node struct {
	*testing.T
	clock  podsim.Clock
	start  time.Time
	pod    *podsim.Pod
	ledger *rotation.Ledger
	// raised is when each problem was first raised, by the monotonic clock.
	raised map[rotation.ProblemName]time.Duration
}

// onNodes calls f for each issuer, in a bubble.
func onNodes(t *testing.T, cfg podsim.Config, ahead time.Duration, f func(*node)) {
	t.Helper()
	for _, issuer := range []podsim.Issuer{podsim.Tbot, podsim.SPIRE} {
		t.Run(string(issuer), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := &node{T: t, ledger: rotation.NewLedger(rotation.Config{Grace: grace, Verify: podsim.Verify})}
				n.clock.Set(ahead)
				n.start = n.clock.Now()
				cfg := cfg
				if cfg.Issuer, cfg.TTL = issuer, ttl; cfg.Renewal == 0 && issuer == podsim.SPIRE {
					cfg.Renewal = ttl / 2
				}
				n.pod = podsim.New(cfg, n.start)
				n.raised = make(map[rotation.ProblemName]time.Duration)
				f(n)
			})
		})
	}
}

func (n *node) uptime() time.Duration { return n.clock.Now().Sub(n.start) }

// judge judges now, before the pod does anything.
func (n *node) judge() rotation.Verdict {
	v := n.ledger.Judge(n.clock.Now())
	for _, p := range v.Problems {
		if _, known := n.raised[p.Name]; !known {
			n.raised[p.Name] = n.uptime()
		}
	}
	return v
}

// live lets time pass, and judges each piece of evidence by itself.
func (n *node) live(d time.Duration) rotation.Verdict {
	for range d / time.Second {
		time.Sleep(time.Second) // the bubble's clock
		now := n.clock.Now()
		n.pod.Advance(now)
		if i := n.pod.Issuance(); i != nil {
			n.ledger.RecordIssuance(*i)
			n.judge()
		}
		if now.Sub(n.start)%poll < time.Second {
			n.ledger.RecordWorkloadAPI(n.pod.WorkloadAPI(now))
			n.ledger.RecordFiles(n.pod.CredentialFiles(now))
			n.judge()
			n.ledger.RecordEnvoy(n.pod.Envoy(now))
		}
		n.judge()
	}
	return n.judge()
}

// untilRenewed lives until just after the next renewal, and a look at Envoy.
func (n *node) untilRenewed() rotation.Verdict {
	before := n.judge().Stage(rotation.Delivered).Rotations
	for range 2 * ttl / poll {
		if v := n.live(poll); v.Stage(rotation.Delivered).Rotations > before {
			return v
		}
	}
	n.Fatal("no renewal")
	return rotation.Verdict{}
}

// want wants nothing raised but what is allowed, and forgets it.
func (n *node) want(when string, allowed ...rotation.ProblemName) {
	n.Helper()
	for name, at := range n.raised {
		if !slices.Contains(allowed, name) {
			n.Errorf("%s: %s was raised at %s", when, name, at)
		}
	}
	clear(n.raised)
}

// jumps are the messages of the events clock_jumped.
func jumps(v rotation.Verdict) []string {
	var out []string
	for _, e := range v.Events {
		if e.Type == rotation.EventClockJumped {
			out = append(out, e.Message)
		}
	}
	return out
}

// knowledge is what a watchdog knows when the clock is set: the first
// certificate alone, or how often the issuer renews.
var knowledge = map[string]func(*node){
	"first certificate": func(n *node) { n.live(time.Minute) },
	"interval learned":  func(n *node) { n.live(3 * time.Hour); n.untilRenewed() },
}

// TestStepWithinLife: where the wall clock is set by less than a certificate has
// left, and by more than a renewal may take, nothing is raised, neither at once
// nor later, but that its end has come near.
func TestStepWithinLife(t *testing.T) {
	for what, learn := range knowledge {
		for _, step := range []time.Duration{45 * time.Minute, -45 * time.Minute, -5 * time.Hour} {
			t.Run(fmt.Sprintf("%s/%s", what, step), func(t *testing.T) {
				onNodes(t, podsim.Config{}, 0, func(n *node) {
					learn(n)
					n.pod.Resent(n.clock.Now()) // an update that changes nothing, and is no fault
					n.live(poll)
					n.want("before")
					n.clock.Set(step)
					n.judge()
					n.want("at once")
					if v := n.live(3 * time.Hour); v.State != rotation.Healthy {
						n.Errorf("in the end: %s %v", v.State, names(v))
					}
					if step > 0 {
						n.want("later", rotation.CertificateExpiring, rotation.CertificateExpired)
					} else {
						n.want("later")
					}
				})
			})
		}
	}
}

// TestStepBeyondLife: where the wall clock is set beyond not-after, each stage is
// called expired at once, and nothing else is said, then or later.
func TestStepBeyondLife(t *testing.T) {
	for what, learn := range knowledge {
		t.Run(what, func(t *testing.T) {
			onNodes(t, podsim.Config{}, 0, func(n *node) {
				learn(n)
				n.pod.Resent(n.clock.Now())
				n.live(poll)
				n.want("before")
				n.clock.Set(2 * time.Hour)
				v := n.judge()
				p, expired := v.Find(rotation.CertificateExpired)
				if len(v.Problems) != 1 || !expired {
					n.Fatalf("at once: %v, want it expired and nothing else", names(v))
				}
				for _, stage := range []rotation.Stage{rotation.Issued, rotation.Delivered, rotation.Loaded} {
					if !strings.Contains(p.Detail, string(stage)+": expired 1h") {
						n.Errorf("%s is not called expired by an hour: %s", stage, p.Detail)
					}
				}
				if v := n.live(ttl); v.State != rotation.Healthy {
					n.Errorf("renewed since: %s %v", v.State, names(v))
				}
				n.want("later", rotation.CertificateExpired)
			})
		})
	}
}

// TestStoppedIssuerOverStep: when an issuer stops is told by the monotonic clock:
// the wall clock set forth brings it no sooner, and set back no later, whether
// the issuer's clock is the node's or one elsewhere.
func TestStoppedIssuerOverStep(t *testing.T) {
	for _, elsewhere := range []bool{false, true} {
		for what, learn := range knowledge {
			for _, renewed := range []bool{false, true} {
				for _, step := range []time.Duration{0, 15 * time.Minute, -15 * time.Minute, -5 * time.Hour} {
					t.Run(fmt.Sprintf("elsewhere %t/%s/renewed since %t/%s", elsewhere, what, renewed, step), func(t *testing.T) {
						onNodes(t, podsim.Config{Elsewhere: elsewhere}, 0, func(n *node) {
							learn(n)
							n.clock.Set(step)
							v := n.judge()
							if renewed {
								v = n.untilRenewed()
							}
							n.want("while it renews")
							n.pod.APISilent, n.pod.SDSSilent = true, true
							// The times of the issuer's clock, or the first sight of
							// the certificate, count until a gap is learned.
							issued := n.uptime() - time.Duration(*v.Stage(rotation.Issued).AgeSeconds*float64(time.Second))
							least := issued + time.Duration(v.IntervalSeconds)*time.Second + grace
							most := issued + max(ttl/2, time.Duration(v.IntervalSeconds)*time.Second) + lateness(v) + time.Minute
							if v.IntervalSeconds > (ttl/2 + 6*time.Minute).Seconds() {
								n.Errorf("an interval of %g s is assumed", v.IntervalSeconds)
							}
							n.live(50 * time.Minute)
							for _, late := range []rotation.ProblemName{rotation.IssuanceOverdue, rotation.DeliveryOverdue} {
								if at, told := n.raised[late]; !told || at < least || at > most {
									n.Errorf("%s: %t, at %s, want it between %s and %s", late, told, at, least, most)
								}
							}
						})
					})
				}
			}
		}
	}
}

// TestGapOverStep: the distance of two certificates between which the wall clock
// was set, or the node was suspended, teaches nothing; else the next renewal
// could be hours late. That holds too where the second of them is the first that
// is seen after the step.
func TestGapOverStep(t *testing.T) {
	for _, atOnce := range []bool{false, true} {
		for _, step := range []time.Duration{40 * time.Minute, 2 * time.Hour} {
			t.Run(fmt.Sprintf("renewed at once %t/%s", atOnce, step), func(t *testing.T) {
				onNodes(t, podsim.Config{}, 0, func(n *node) {
					n.live(10 * time.Minute)
					n.clock.Set(step)
					if atOnce { // as an issuer that goes by the wall clock does
						n.pod.RenewNow(n.clock.Now())
					}
					n.untilRenewed()
					n.pod.APISilent, n.pod.SDSSilent = true, true
					n.want("renewed", rotation.CertificateExpired, rotation.CertificateExpiring)
					stopped := n.uptime()
					n.live(ttl - time.Minute)
					for _, late := range []rotation.ProblemName{rotation.IssuanceOverdue, rotation.DeliveryOverdue} {
						if at, told := n.raised[late]; !told || at-stopped > ttl/2+grace+time.Minute {
							n.Errorf("%s: %t, after %s", late, told, at-stopped)
						}
					}
				})
			})
		}
	}
}

// TestClockCorrected: the clock of a node is wrong when the watchdog starts, by
// minutes or, without a battery, by a year, and is corrected soon after. SPIRE's
// server has the right time.
func TestClockCorrected(t *testing.T) {
	for _, ahead := range []time.Duration{10 * time.Minute, -10 * time.Minute, -365 * 24 * time.Hour} {
		t.Run(fmt.Sprint(ahead), func(t *testing.T) {
			onNodes(t, podsim.Config{Skew: -ahead, Elsewhere: true}, ahead, func(n *node) {
				n.live(5 * time.Minute)
				n.clock.Set(-ahead)
				n.judge()
				// What was seen by the wrong clock is neither older nor younger
				// for it, now that the right one tells by how much it is
				// back-dated.
				n.live(3 * time.Hour)
				n.want("it renews")
			})
			t.Run("stopped", func(t *testing.T) {
				onNodes(t, podsim.Config{Skew: -ahead, Elsewhere: true}, ahead, func(n *node) {
					n.live(5 * time.Minute)
					n.pod.APISilent, n.pod.SDSSilent = true, true
					n.clock.Set(-ahead)
					n.live(ttl)
					for _, late := range []rotation.ProblemName{rotation.IssuanceOverdue, rotation.DeliveryOverdue} {
						if at, told := n.raised[late]; !told || at > ttl/2+grace+time.Minute {
							n.Errorf("%s: %t, after %s", late, told, at)
						}
					}
				})
			})
		})
	}
}

// TestLeadForgotten: by how much the issuer seemed to back-date, by a clock that
// was wrong, makes no certificate older that is seen once it is right.
func TestLeadForgotten(t *testing.T) {
	ahead := -10 * time.Minute
	onNodes(t, podsim.Config{Skew: -ahead, Elsewhere: true}, ahead, func(n *node) {
		n.pod.AdminDown = true
		n.live(3 * time.Hour)
		before := n.judge().Stage(rotation.Issued).Rotations
		for n.live(time.Second).Stage(rotation.Issued).Rotations == before {
		}
		n.live(n.pod.NextDue().Sub(n.clock.Now()) - 5*time.Minute)
		n.want("Envoy does not answer", rotation.EnvoyUnreachable)
		n.clock.Set(-ahead)
		n.pod.AdminDown = false
		n.live(poll) // Envoy's certificate is seen for the first time
		n.want("Envoy is seen", rotation.EnvoyUnreachable)
		n.live(2 * time.Hour)
		n.want("later")
	})
}

// TestSuspended: a node that was suspended looks like one whose wall clock was
// set forth, and its timers stood still. What has expired meanwhile is told at
// once, and nothing is late.
func TestSuspended(t *testing.T) {
	for what, learn := range knowledge {
		for _, asleep := range []time.Duration{10 * time.Minute, 40 * time.Minute, 3 * time.Hour} {
			t.Run(fmt.Sprintf("%s/%s", what, asleep), func(t *testing.T) {
				onNodes(t, podsim.Config{}, 0, func(n *node) {
					learn(n)
					n.want("before")
					n.clock.Set(asleep)
					v := n.judge()
					if expired := v.Has(rotation.CertificateExpired); expired != (asleep > ttl) {
						n.Errorf("at once: expired %t", expired)
					}
					n.want("at once", rotation.CertificateExpired)
					if v := n.live(ttl); v.State != rotation.Healthy {
						n.Errorf("in the end: %s %v", v.State, names(v))
					}
					n.want("later", rotation.CertificateExpired, rotation.CertificateExpiring)
				})
			})
		}
	}
}

// TestClockJumped: each step of the wall clock is one event that says by how
// much, also one made of small steps; less than the tolerance is none.
func TestClockJumped(t *testing.T) {
	for name, tt := range map[string]struct {
		steps []time.Duration
		moved []string
	}{
		"forth":        {[]time.Duration{2 * time.Hour}, []string{"2h0m0s"}},
		"back":         {[]time.Duration{-2 * time.Hour}, []string{"-2h0m0s"}},
		"twice":        {[]time.Duration{time.Minute, -time.Minute}, []string{"1m0s", "-1m0s"}},
		"a few":        {[]time.Duration{6 * time.Second}, []string{"6s"}},
		"too few":      {[]time.Duration{4900 * time.Millisecond}, nil},
		"leap second":  {[]time.Duration{-time.Second}, nil},
		"to and fro":   {[]time.Duration{4 * time.Second, -4 * time.Second, 4 * time.Second, -4 * time.Second, -4 * time.Second, 4 * time.Second}, nil},
		"little steps": {[]time.Duration{4 * time.Second, 4 * time.Second, 4 * time.Second, 4 * time.Second, 4 * time.Second}, []string{"8s", "8s"}},
		"little ones":  {slices.Repeat([]time.Duration{-500 * time.Millisecond}, 25), []string{"-5s", "-5s"}},
	} {
		t.Run(name, func(t *testing.T) {
			onNodes(t, podsim.Config{}, 0, func(n *node) {
				n.live(time.Minute)
				for _, step := range tt.steps {
					n.clock.Set(step)
					n.live(time.Minute)
				}
				v := n.live(5 * time.Minute)
				got := jumps(v)
				if len(got) != len(tt.moved) {
					n.Fatalf("%q, want %q", got, tt.moved)
				}
				for i, moved := range tt.moved {
					if !strings.Contains(got[i], " "+moved+" ") {
						n.Errorf("%q, want %s", got[i], moved)
					}
				}
			})
		})
	}
}

// TestLateEvidence: what was seen before the clock was set, and is recorded after
// a judgement since, is no step back.
func TestLateEvidence(t *testing.T) {
	onNodes(t, podsim.Config{}, 0, func(n *node) {
		n.live(time.Minute)
		look := n.pod.Envoy(n.clock.Now())
		time.Sleep(time.Second)
		n.clock.Set(10 * time.Minute)
		n.judge()
		n.ledger.RecordEnvoy(look)
		if got := jumps(n.live(time.Minute)); len(got) != 1 {
			n.Errorf("%q, want one", got)
		}
	})
}
