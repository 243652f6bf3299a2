//go:build chaos

package chaos

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"svid-watchdog/internal/e2e/neighbour"
	"svid-watchdog/internal/e2e/sidecar"
	"svid-watchdog/internal/e2e/spire"
	"svid-watchdog/internal/lab"
	"svid-watchdog/internal/rotation"
)

func TestMain(m *testing.M) { os.Exit(sidecar.Main(m)) }

const (
	// usualLength is how long the test goes on, unless CHAOS says otherwise.
	usualLength = 90 * time.Second

	poll = time.Second
	// grace is more than the longest pause between two attempts to open a
	// stream, 30 s: within it the watchdog and Envoy are back by themselves.
	grace   = 35 * time.Second
	ttl     = 40 * time.Second
	renewal = 10 * time.Second

	// short is how long most disturbances last at most; one of three outlives the
	// grace by as much, so that it is told. quiet is what an answer
	// of /metrics should not take longer than. On a machine that runs other tests
	// too an answer may wait for a processor, so that only stuck is an error.
	short = 12 * time.Second
	quiet = 100 * time.Millisecond
	stuck = 2 * time.Second

	// By how much the end may exceed the beginning.
	moreGoroutines, moreFiles, moreKiB = 8, 4, 6 << 10
)

const workloadID = "spiffe://" + spire.TrustDomain + "/ns/shop/sa/front-end"

// home is an identity provider with an Envoy that it serves.
type home struct {
	name            string
	socket          string
	admin, listener string
	// pod is the lab's, nil for a real SPIRE.
	pod   *lab.Pod
	spire *spire.SPIRE
	envoy lab.Envoy
}

// rig is a watchdog, what it looks at, and who can be behind that.
type rig struct {
	t       *testing.T
	w       *sidecar.Sidecar
	homes   []home
	at      home // where things are healed to
	dir     string
	issuer  *door
	admin   *door
	served  *door
	metrics string
	// paused holds the scrapes while the watchdog itself is stopped.
	paused chan chan struct{}
}

// disturbance is a way to trouble the watchdog; begin returns how it ends.
type disturbance struct {
	name  string
	begin func(r *rig, dice *rand.Rand) (what string, end func())
}

// TestChaos: at random its neighbours are killed, stopped, slowed, replaced and
// mixed up, and its own limits lowered. The watchdog lives through all of it,
// answers all the while, calls a pod healthy again within the grace and one poll
// and one renewal after it has healed, and takes no more of anything in the end.
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
	t.Logf("to play this again: CHAOS_SEED=%d CHAOS=%s go test -tags chaos -count=1 -v -run TestChaos ./internal/e2e/chaos", seed, length)
	dice := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // it is to be played again

	r := newRig(t)
	ctx, stop := context.WithCancel(t.Context())
	scrapes := &scrapes{url: r.metrics}
	var group errgroup.Group
	group.Go(func() error { return scrapes.run(ctx, r.paused) })
	defer func() { stop(); _ = group.Wait() }()

	healed := func(what string) time.Duration {
		begin := time.Now()
		r.w.Until(grace+poll+renewal+20*time.Second, "health after "+what, func(v rotation.Verdict) bool {
			return v.State == rotation.Healthy && v.Stage(rotation.Loaded).Certificate != nil && v.Envoy.Version == r.at.envoy.Version()
		})
		return time.Since(begin)
	}
	healed("the start")
	for range 200 {
		r.w.Get("/metrics") // the heap grows to the runtime's minimum first
	}
	before := r.footprint()

	var longest time.Duration
	var slowest string
	count := make(map[string]int)
	all := disturbances()
	cycles, noticed := 0, 0
	for begin := time.Now(); time.Since(begin) < length; cycles++ {
		var ends []func()
		var what []string
		for _, i := range dice.Perm(len(all))[:1+dice.IntN(3)] {
			d := all[i]
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
		if took := healed(all); took > longest {
			longest, slowest = took, all
		}
	}
	after := r.footprint()
	stop()
	if err := group.Wait(); err != nil {
		t.Error(err)
	}

	select {
	case <-r.w.Exited:
		t.Fatalf("the watchdog ended\n%s", r.w)
	default:
	}
	for _, name := range slices.Sorted(maps.Keys(count)) {
		t.Logf("%4d times: %s", count[name], name)
	}
	t.Logf("%d rounds, in %d of which a problem was told; the truth was told again after %s at most, after: %s", cycles, noticed, longest.Round(10*time.Millisecond), slowest)
	t.Logf("%d scrapes, the longest took %s, %d took longer than %s", scrapes.n, scrapes.longest.Round(100*time.Microsecond), scrapes.late, quiet)
	t.Logf("before: %+v, after: %+v", before, after)
	if cycles > 20 && noticed == 0 {
		t.Error("nothing that was done was ever told")
	}
	if longest > grace+poll+renewal {
		t.Errorf("it took %s until the truth was told after: %s", longest, slowest)
	}
	if scrapes.longest > stuck {
		t.Errorf("a scrape took %s", scrapes.longest)
	}
	if scrapes.n < cycles || len(scrapes.failed) > 0 {
		t.Errorf("%d scrapes; failed: %q", scrapes.n, scrapes.failed)
	}
	if after.goroutines > before.goroutines+moreGoroutines || after.files > before.files+moreFiles || after.kib > before.kib+moreKiB {
		t.Errorf("it grew from %+v to %+v", before, after)
	}
}

// told tells whether a problem is raised now. The watchdog may be unable to
// answer a new connection: then not.
func told(w *sidecar.Sidecar) bool {
	events := w.Out.String()
	raised := strings.Count(events, "event=problem_raised")
	return raised > strings.Count(events, "event=problem_cleared")
}

func newRig(t *testing.T) *rig {
	t.Helper()
	dir, err := os.MkdirTemp("", "svid-chaos-") // short: a socket's path is
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = unix.Unmount(filepath.Join(dir, "credentials"), unix.MNT_DETACH) // a test that failed may have left it
		os.RemoveAll(dir)
	})
	r := &rig{t: t, dir: dir, paused: make(chan chan struct{})}
	for _, kind := range []struct {
		issuer  lab.Issuer
		version string
	}{{lab.Tbot, "1.36.4"}, {lab.SPIRE, "1.40.0"}} {
		pod, err := lab.Start(t.Context(), lab.Config{
			Issuer: kind.issuer, TTL: ttl, Renewal: renewal, Reconnect: 3 * time.Second,
			EnvoyPath: neighbour.Need(t, "envoy", kind.version, "envoy"),
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { pod.Close() })
		r.homes = append(r.homes, home{
			name: fmt.Sprintf("the lab's %s with Envoy %s", kind.issuer, kind.version), socket: pod.SocketPath(),
			admin: strings.TrimPrefix(pod.Envoy().AdminAddress(), "http://"), listener: pod.Envoy().ListenerAddress(), pod: pod, envoy: pod.Envoy(),
		})
	}
	s := spire.Start(t, spire.Workload{ID: workloadID, User: os.Getuid(), TTL: 2*renewal + 10*time.Second})
	e, err := lab.NewRealEnvoy(lab.RealEnvoyConfig{Path: neighbour.Need(t, "envoy", "1.38.3", "envoy"), SDSSocket: s.Socket(), Dir: t.TempDir(), Reconnect: 3 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	if err := e.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.homes = append(r.homes, home{
		name: "a real SPIRE with Envoy 1.38.3", socket: s.Socket(),
		admin: strings.TrimPrefix(e.AdminAddress(), "http://"), listener: e.ListenerAddress(), spire: s, envoy: e,
	})

	r.at = r.homes[0]
	r.admin, r.served = newDoor(t, "127.0.0.1:0", r.at.admin), newDoor(t, "127.0.0.1:0", r.at.listener)
	r.issuer = newDoor(t, filepath.Join(dir, "issuer"), r.at.socket)
	if err := os.Mkdir(r.credentials(), 0o755); err != nil { //nolint:gosec // as in a pod
		t.Fatal(err)
	}
	r.linkSocket()
	r.w = sidecar.Start(t, "--workload-api.address=unix://"+r.socket(), "--envoy.admin-address=http://"+r.admin.address(),
		"--handshake.address="+r.served.address(), "--credentials.dir="+r.credentials(),
		"--envoy.poll-interval="+poll.String(), "--rotation.grace="+grace.String(), "--envoy.budget=50", "--web.runtime-metrics")
	r.metrics = "http://" + r.w.Address + "/metrics"
	return r
}

func (r *rig) socket() string      { return filepath.Join(r.dir, "socket") }
func (r *rig) credentials() string { return filepath.Join(r.dir, "credentials") }

// linkSocket puts the socket where the watchdog looks for it.
func (r *rig) linkSocket() {
	fresh := r.socket() + ".new"
	_ = os.Remove(fresh) // it may not be there
	r.must(os.Symlink(r.issuer.address(), fresh))
	r.must(os.Rename(fresh, r.socket()))
}

// home lets all doors lead to one home, at random another than before.
func (r *rig) home(dice *rand.Rand) {
	// An agent that was stopped for long ends by itself, as its own SVID has
	// expired.
	select {
	case <-r.homes[2].spire.Agent.Exited:
		r.homes[2].spire.StartAgent()
	default:
	}
	r.at = r.homes[dice.IntN(len(r.homes))]
	r.linkSocket()
	r.issuer.lead(r.at.socket, passing)
	r.admin.lead(r.at.admin, passing)
	r.served.lead(r.at.listener, passing)
}

// signal sends a neighbour a signal, unless it has ended.
func (r *rig) signal(p *os.Process, s os.Signal) {
	r.t.Helper()
	if err := p.Signal(s); !errors.Is(err, os.ErrProcessDone) {
		r.must(err)
	}
}

func (r *rig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// let waits, and fails at once if the watchdog ends.
func (r *rig) let(length time.Duration) {
	r.t.Helper()
	timer := time.NewTimer(length)
	defer timer.Stop()
	select {
	case <-r.w.Exited:
		r.t.Fatalf("the watchdog ended\n%s", r.w)
	case <-timer.C:
	}
}

func disturbances() []disturbance {
	return []disturbance{
		{"a fault of the lab", func(r *rig, dice *rand.Rand) (string, func()) {
			var faults []lab.Fault
			for _, f := range lab.Faults() {
				if !f.StandInOnly && !f.TwoProviders {
					faults = append(faults, f)
				}
			}
			f, h := faults[dice.IntN(len(faults))], r.homes[dice.IntN(2)]
			r.must(h.pod.Inject(r.t.Context(), f.Name))
			return f.Name + " at " + h.name, func() { r.must(h.pod.Heal(r.t.Context(), f.Name)) }
		}},
		{"another issuer at the socket", func(r *rig, dice *rand.Rand) (string, func()) {
			h := r.homes[dice.IntN(len(r.homes))]
			r.issuer.lead(h.socket, passing)
			return "the socket leads to " + h.name, func() {}
		}},
		{"something else at the socket", func(r *rig, dice *rand.Rand) (string, func()) {
			r.must(os.Remove(r.socket()))
			switch dice.IntN(3) {
			case 0:
				return "the socket is gone", func() {}
			case 1:
				r.must(os.WriteFile(r.socket(), []byte("no socket"), 0o600))
				return "a file is where the socket was", func() {}
			default:
				r.must(os.Mkdir(r.socket(), 0o700))
				return "a directory is where the socket was", func() { r.must(os.Remove(r.socket())) }
			}
		}},
		{"another Envoy", func(r *rig, dice *rand.Rand) (string, func()) {
			h := r.homes[dice.IntN(len(r.homes))]
			r.admin.lead(h.admin, passing)
			r.served.lead(h.listener, passing)
			return "Envoy is exchanged for that of " + h.name, func() {}
		}},
		{"a bad socket", func(r *rig, dice *rand.Rand) (string, func()) {
			m := 1 + manner(dice.IntN(int(manners)-1))
			r.issuer.lead(r.at.socket, m)
			return "the socket " + mannerNames[m], func() {}
		}},
		{"a bad admin port", func(r *rig, dice *rand.Rand) (string, func()) {
			m := 1 + manner(dice.IntN(int(manners)-1))
			r.admin.lead(r.at.admin, m)
			return "the admin port " + mannerNames[m], func() {}
		}},
		{"a bad listener", func(r *rig, dice *rand.Rand) (string, func()) {
			m := 1 + manner(dice.IntN(int(manners)-1))
			r.served.lead(r.at.listener, m)
			return "the listener " + mannerNames[m], func() {}
		}},
		{"a restart of Envoy", func(r *rig, dice *rand.Rand) (string, func()) {
			h := r.homes[dice.IntN(len(r.homes))]
			if h.pod != nil {
				r.must(h.pod.Inject(r.t.Context(), "envoy-down"))
				return "Envoy of " + h.name + " ends", func() { r.must(h.pod.Heal(r.t.Context(), "envoy-down")) }
			}
			r.must(h.envoy.Close())
			return "Envoy of " + h.name + " ends", func() { r.must(h.envoy.Start(r.t.Context())) }
		}},
		{"a stopped SPIRE agent", func(r *rig, _ *rand.Rand) (string, func()) {
			agent := r.homes[2].spire.Agent.Cmd.Process
			r.signal(agent, syscall.SIGSTOP)
			return "the SPIRE agent is stopped", func() { r.signal(agent, syscall.SIGCONT) }
		}},
		{"a killed SPIRE agent", func(r *rig, _ *rand.Rand) (string, func()) {
			r.homes[2].spire.Agent.Kill()
			return "the SPIRE agent is killed", func() {}
		}},
		{"the credentials directory", func(r *rig, dice *rand.Rand) (string, func()) {
			again := func() {
				r.must(os.RemoveAll(r.credentials()))
				r.must(os.Mkdir(r.credentials(), 0o755)) //nolint:gosec // as in a pod
			}
			switch dice.IntN(4) {
			case 0:
				r.must(os.RemoveAll(r.credentials()))
				return "the credentials directory is gone", again
			case 2:
				if err := unix.Mount("tmpfs", r.credentials(), "tmpfs", 0, "size=4096,mode=755"); err != nil {
					neighbour.Lacking(r.t, "no right to mount: "+err.Error())
				}
				if err := os.WriteFile(filepath.Join(r.credentials(), "cert-chain.pem"), make([]byte, 64<<10), 0o600); err == nil {
					r.t.Error("the disk is not full")
				}
				return "the disk of the credentials directory is full", func() { r.must(unix.Unmount(r.credentials(), unix.MNT_DETACH)) }
			case 1:
				r.must(os.RemoveAll(r.credentials()))
				r.must(os.WriteFile(r.credentials(), nil, 0o600))
				return "a file is where the credentials directory was", again
			default:
				for i := range 500 {
					r.must(os.WriteFile(filepath.Join(r.credentials(), fmt.Sprint(i)), []byte("x"), 0o600))
				}
				r.must(os.WriteFile(filepath.Join(r.credentials(), "cert-chain.pem"), make([]byte, 3<<20), 0o600))
				return "the credentials directory fills with junk", again
			}
		}},
		{"no file descriptors", func(r *rig, _ *rand.Rand) (string, func()) {
			var old unix.Rlimit
			r.must(unix.Prlimit(r.w.Cmd.Process.Pid, unix.RLIMIT_NOFILE, nil, &old))
			r.must(unix.Prlimit(r.w.Cmd.Process.Pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: old.Max}, nil))
			return "the watchdog may open no file", func() {
				r.must(unix.Prlimit(r.w.Cmd.Process.Pid, unix.RLIMIT_NOFILE, &old, nil))
			}
		}},
		{"a suspended watchdog", func(r *rig, dice *rand.Rand) (string, func()) {
			resume := make(chan struct{})
			r.paused <- resume
			r.must(r.w.Cmd.Process.Signal(syscall.SIGSTOP))
			r.let(time.Duration(dice.Int64N(int64(short))))
			r.must(r.w.Cmd.Process.Signal(syscall.SIGCONT))
			close(resume)
			return "the watchdog was suspended", func() {}
		}},
	}
}

// scrapes asks for the metrics all the time, on one connection as Prometheus
// does.
type scrapes struct {
	url     string
	n, late int
	longest time.Duration
	failed  []string
}

func (s *scrapes) run(ctx context.Context, paused <-chan chan struct{}) error {
	client := &http.Client{Transport: &http.Transport{MaxConnsPerHost: 1}, Timeout: 30 * time.Second}
	defer client.CloseIdleConnections()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case resume := <-paused:
			<-resume
			continue
		case <-tick.C:
		}
		begin := time.Now()
		err := s.one(client)
		took := time.Since(begin)
		s.n++
		if s.longest = max(s.longest, took); took > quiet {
			s.late++
		}
		if err != nil && len(s.failed) < 10 {
			s.failed = append(s.failed, err.Error())
		}
	}
}

func (s *scrapes) one(client *http.Client) error {
	request, err := http.NewRequestWithContext(context.Background(), http.MethodGet, s.url, http.NoBody)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	page, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK || !strings.Contains(string(page), "svid_watchdog_rotation_state") {
		return fmt.Errorf("status %d, %d bytes, %w", response.StatusCode, len(page), err)
	}
	return nil
}

// footprint is what the watchdog takes.
type footprint struct{ goroutines, files, kib int }

var (
	goroutines = regexp.MustCompile(`(?m)^go_goroutines (\d+)`)
	resident   = regexp.MustCompile(`VmRSS:\s+(\d+) kB`)
)

func (r *rig) footprint() (f footprint) {
	r.t.Helper()
	dir := filepath.Join("/proc", fmt.Sprint(r.w.Cmd.Process.Pid))
	files, err := os.ReadDir(filepath.Join(dir, "fd"))
	r.must(err)
	status, err := os.ReadFile(filepath.Join(dir, "status"))
	r.must(err)
	number := func(pattern *regexp.Regexp, text string) (n int) {
		found := pattern.FindStringSubmatch(text)
		if found == nil {
			r.t.Fatalf("no %s in %s", pattern, text)
		}
		r.must(json.Unmarshal([]byte(found[1]), &n))
		return n
	}
	return footprint{number(goroutines, r.w.Get("/metrics")), len(files), number(resident, string(status))}
}
