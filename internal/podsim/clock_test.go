package podsim_test

import (
	"testing"
	"testing/synctest"
	"time"

	"svid-watchdog/internal/podsim"
)

// TestClock: setting the wall clock moves what is read from it, and no
// interval.
func TestClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, step := range []time.Duration{2 * time.Minute, -2 * time.Minute, 10 * time.Minute} {
			var c podsim.Clock
			before := c.Now()
			time.Sleep(7 * time.Second)
			c.Set(step)
			after := c.Now()
			if d := after.Sub(before); d != 7*time.Second {
				t.Errorf("%s: the interval is %s", step, d)
			}
			if d := after.Round(0).Sub(before.Round(0)); d != 7*time.Second+step {
				t.Errorf("%s: the wall clock moved by %s", step, d)
			}
		}
	})
}
