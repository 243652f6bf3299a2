package rotation_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"svid-watchdog/internal/podsim"
	"svid-watchdog/internal/rotation"
)

// envoyLife is a life of Envoy on a node whose clock may be set.
type envoyLife struct {
	clock podsim.Clock
	begun time.Time
}

// answer is what is told of the start where the question and the answer take a
// while each, and the clock is set in between.
func (e *envoyLife) answer(question, answer, set time.Duration) rotation.Start {
	asked := e.clock.Now()
	time.Sleep(question / 2)
	e.clock.Set(set)
	time.Sleep(question / 2)
	uptime := e.clock.Now().Round(0).Truncate(time.Second).Sub(e.begun.Truncate(time.Second)) // as Envoy counts
	time.Sleep(answer)
	return rotation.StartOf(uptime, asked, e.clock.Now())
}

// quick is how long a question and an answer usually take.
const quick = 3 * time.Millisecond

// TestStart: an answer that takes long, or during which the clock is set, is
// not about another life of Envoy, and hides none.
func TestStart(t *testing.T) {
	for _, begun := range []time.Duration{0, 999 * time.Millisecond} {
		for name, disturb := range map[string]func(e *envoyLife) rotation.Start{
			"quick":           func(e *envoyLife) rotation.Start { return e.answer(quick, quick, 0) },
			"slow to ask":     func(e *envoyLife) rotation.Start { return e.answer(9*time.Second, quick, 0) },
			"slow to answer":  func(e *envoyLife) rotation.Start { return e.answer(quick, 9*time.Second, 0) },
			"set forth":       func(e *envoyLife) rotation.Start { return e.answer(quick, quick, 2*time.Hour) },
			"set back":        func(e *envoyLife) rotation.Start { return e.answer(quick, quick, -2*time.Hour) },
			"slow, set back":  func(e *envoyLife) rotation.Start { return e.answer(9*time.Second, 9*time.Second, -time.Minute) },
			"slow, set a bit": func(e *envoyLife) rotation.Start { return e.answer(9*time.Second, 9*time.Second, -4*time.Second) },
			"slow, set forth": func(e *envoyLife) rotation.Start { return e.answer(9*time.Second, 9*time.Second, time.Minute) },
			"nothing told":    func(*envoyLife) rotation.Start { return rotation.Start{} },
		} {
			for _, first := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s, first %t, begun at %s", name, first, begun), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) { startIsKnown(t, begun, disturb, first) })
				})
			}
		}
	}
}

func startIsKnown(t *testing.T, begun time.Duration, disturb func(*envoyLife) rotation.Start, first bool) {
	e := &envoyLife{}
	time.Sleep(begun)
	e.begun = e.clock.Now().Round(0)
	time.Sleep(3 * time.Hour)
	var known rotation.Start
	if !first && known.Another(e.answer(quick, quick, 0)) {
		t.Fatal("the first life is another")
	}
	if known.Another(disturb(e)) {
		t.Error("it is taken for another life")
	}
	for range 5 {
		time.Sleep(300 * time.Millisecond)
		if known.Another(e.answer(quick, quick, 0)) {
			t.Errorf("later the same life is taken for another: %+v", known)
		}
	}
	if known.Within > time.Second {
		t.Errorf("it stays as blurred as within %s", known.Within)
	}
	begin := func(what string) {
		old := e.begun
		e.begun = e.clock.Now().Round(0)
		time.Sleep(time.Second)
		if after := known; !after.Another(e.answer(quick, quick, 0)) {
			t.Errorf("a new life is not noticed that began %s", what)
		}
		e.begun = old
	}
	begin("later")
	e.clock.Set(-e.clock.Now().Sub(e.begun) - 10*time.Minute)
	begin("after the clock was set back")
}

// TestIntervalByAWrongClock: on a node whose clock is wrong, no interval is
// assumed that no issuer has, and none is learned from a life that no
// certificate has.
func TestIntervalByAWrongClock(t *testing.T) {
	const every, life, lead = 20 * time.Minute, time.Hour, time.Minute
	for _, ahead := range []time.Duration{-2 * time.Hour, -5 * time.Minute, 0, 31 * time.Minute, 50 * time.Minute, 2 * time.Hour} {
		for _, wrong := range []bool{true, false} { // from the start, or since then
			t.Run(fmt.Sprintf("%s, at the start %t", ahead, wrong), func(t *testing.T) {
				l := rotation.NewLedger(rotation.Config{Grace: grace})
				now := time.Date(2026, 11, 23, 20, 16, 4, 0, time.UTC)
				issue := func(serial, stream int, ahead time.Duration) rotation.Verdict {
					l.RecordIssuance(rotation.Issuance{At: now.Add(ahead), Stream: stream, SPIFFEIDs: []string{"spiffe://example.test/x"}, Leaf: rotation.Certificate{
						SPIFFEID: "spiffe://example.test/x", Serial: fmt.Sprint(serial), SHA256: rotation.Fingerprint{byte(serial)},
						NotBefore: now.Add(-lead), NotAfter: now.Add(life),
					}})
					return l.Judge(now.Add(ahead))
				}
				first := time.Duration(0)
				if wrong {
					first = ahead
				}
				v := issue(1, 1, first)
				if v.IntervalSource != rotation.IntervalAssumed {
					t.Fatalf("the interval is %s", v.IntervalSource)
				}
				atLeast := every.Seconds()
				if wrong && ahead > 0 && ahead < life {
					atLeast = (life - ahead).Seconds() / 2 // it may as well be an old one
				}
				if v.IntervalSeconds < atLeast {
					t.Errorf("%g s are assumed of the first", v.IntervalSeconds)
				}
				now = now.Add(every)
				if v := issue(2, 2, ahead); v.IntervalSource != rotation.IntervalAssumed || v.IntervalSeconds < every.Seconds() {
					t.Errorf("%g s are %s of the second", v.IntervalSeconds, v.IntervalSource)
				}
				now = now.Add(every)
				if v := issue(3, 2, ahead); v.IntervalSource != rotation.IntervalLearned || v.IntervalSeconds < every.Seconds() || v.IntervalSeconds > (every+time.Minute).Seconds() {
					t.Errorf("%g s are %s of the third", v.IntervalSeconds, v.IntervalSource)
				}
			})
		}
	}
}
