package chaos

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"svid-watchdog/internal/e2e/neighbour"
	"svid-watchdog/internal/e2e/sidecar"
)

func TestMain(m *testing.M) { os.Exit(sidecar.Main(m)) }

const (
	// usualLength is how long the test goes on, unless CHAOS says otherwise.
	usualLength = time.Minute

	poll = time.Second
	// grace is more than the longest pause between two attempts to open a
	// stream, 30 s: within it the watchdog and Envoy are back by themselves.
	grace   = 35 * time.Second
	ttl     = 40 * time.Second
	renewal = 10 * time.Second

	// short is how long most disturbances last at most; one of three outlives the
	// grace by as much, so that it is told.
	short = 12 * time.Second

	// By how much the end may exceed the beginning.
	moreGoroutines, moreFiles, moreKiB = 2, 2, 4 << 10
)

// TestChaos: at random its neighbours are killed, stopped, slowed, replaced and
// mixed up, and its own limits lowered. The watchdog lives through all of it,
// answers all the while, tells the truth again within the grace and one poll
// after things have healed, and takes no more of anything in the end.
func TestChaos(t *testing.T) {
	length := usualLength
	if text := os.Getenv("CHAOS"); text != "" {
		var err error
		if length, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
	}
	seed := uint64(time.Now().UnixNano()) //nolint:gosec // it is positive
	if text := os.Getenv("CHAOS_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("to play this again: CHAOS_SEED=%d CHAOS=%s go test -count=1 -v -run TestChaos ./internal/e2e/chaos", seed, length)
	dice := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // it is to be played again

	r := newRig(t)
	ctx, stop := context.WithCancel(t.Context())
	scrapes := &scrapes{url: r.metrics, processes: []int{os.Getpid(), r.w.Cmd.Process.Pid}}
	var group errgroup.Group
	group.Go(func() error { return scrapes.run(ctx, r.paused) })
	defer func() { stop(); _ = group.Wait() }()

	r.healed("the start")
	for range 200 {
		r.w.Get("/metrics") // the heap grows to the runtime's minimum first
	}
	before := r.footprint()

	var longest time.Duration
	var slowest string
	count := make(map[string]int)
	cards := deck{dice: dice}
	cycles, noticed := 0, 0
	for begin := time.Now(); time.Since(begin) < length; cycles++ {
		var ends []func()
		var what []string
		for _, d := range cards.draw() {
			text, end := d.begin(r, dice)
			what = append(what, text)
			ends = append(ends, end)
			count[d.name]++
		}
		all := strings.Join(what, "; ")
		t.Logf("+%s: %s", time.Since(begin).Round(time.Second), all)
		length := time.Duration(dice.Int64N(int64(short)))
		if dice.IntN(3) == 0 {
			length += grace
		}
		r.let(length)
		if told(r.w) {
			noticed++
		}
		for _, end := range slices.Backward(ends) {
			end()
		}
		r.home(dice)
		if took := r.healed(all); took > longest {
			longest, slowest = took, all
		}
	}
	stop()
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
	for _, name := range slices.Sorted(maps.Keys(count)) {
		t.Logf("%4d times: %s", count[name], name)
	}
	t.Logf("%d rounds, in %d of which a problem was told; the truth was told again after %s at most, after: %s", cycles, noticed, longest.Round(10*time.Millisecond), slowest)
	t.Log(scrapes)
	if cycles > 5 && noticed == 0 {
		t.Error("nothing that was done was ever told")
	}
	if longest > grace+poll {
		t.Errorf("it took %s until the truth was told after: %s", longest, slowest)
	}
	if scrapes.blocked > quiet {
		t.Errorf("a scrape was blocked for %s", scrapes.blocked)
	}
	if scrapes.n < cycles || len(scrapes.failed) > 0 {
		t.Errorf("%d scrapes; failed: %q", scrapes.n, scrapes.failed)
	}
	// Connections of the scrapes and of the last round are still being closed.
	var after footprint
	neighbour.Until(t, 20*time.Second, fmt.Sprintf("the watchdog to take no more than in the beginning, %+v", before), func() bool {
		after = r.footprint()
		return after.goroutines <= before.goroutines+moreGoroutines && after.files <= before.files+moreFiles && after.kib <= before.kib+moreKiB
	}, r.w)
	t.Logf("before: %+v, after: %+v", before, after)
}

// told tells whether a problem is raised now, by the log: the watchdog may be
// unable to answer a new connection.
func told(w *sidecar.Sidecar) bool {
	events := w.Out.String()
	return strings.Count(events, "event=problem_raised") > strings.Count(events, "event=problem_cleared")
}
