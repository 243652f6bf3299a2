package lab_test

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"svid-watchdog/internal/e2e/neighbour"
	"svid-watchdog/internal/lab"
	"svid-watchdog/internal/rotation"
	"svid-watchdog/internal/watchdog"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The pods of these tests live fast: an hour is twelve seconds.
const (
	ttl     = 12 * time.Second
	renewal = 4 * time.Second
	grace   = 2 * time.Second
	poll    = 500 * time.Millisecond
	margin  = 3 * time.Second
	// slack is what a busy machine may add to a bound.
	slack = 3 * time.Second
	// reconnect is how long Envoy may wait before it opens a stream again
	// (envoy: grpc_stream.h).
	reconnect = 30 * time.Second
)

// envoys are the Envoys to test on: both generations of the stand-in, and the
// real ones that `make neighbours` fetched.
type envoy struct {
	name, standIn, version, path string
	modern                       bool
	// between is true for the releases between the oldest and the newest.
	between bool
}

func envoys(t *testing.T) []envoy {
	t.Helper()
	all := []envoy{{name: "standin1.36", standIn: "1.36"}, {name: "standin1.37", standIn: "1.37", modern: true}}
	for _, version := range []string{"1.36.4", "1.37.0", "1.38.3", "1.39.3", "1.40.0"} {
		if underRace && version != "1.40.0" {
			continue
		}
		all = append(all, envoy{
			name: "envoy" + version, version: version,
			path: filepath.Join(neighbour.Root(t), ".neighbours", "envoy", version, "envoy"), modern: version != "1.36.4",
			between: version != "1.36.4" && version != "1.40.0",
		})
	}
	return all
}

// need skips a test whose Envoy is not there, but never in CI.
func (e envoy) need(t *testing.T) {
	t.Helper()
	if e.version != "" {
		neighbour.Envoy(t, e.version)
	}
}

// run is a pod with the real watchdog beside it.
type run struct {
	t        *testing.T
	pod      *lab.Pod
	watchdog *watchdog.Watchdog
}

func start(t *testing.T, cfg lab.Config) *run {
	t.Helper()
	starts <- struct{}{}
	defer func() { <-starts }()
	pod, err := lab.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := pod.Close(); err != nil {
			t.Error(err)
		}
	})
	r := &run{t: t, pod: pod, watchdog: watch(t, pod)}
	// It may take longer: what becomes of it is the test's affair.
	_, _, _ = r.await(slack, func(v rotation.Verdict) bool { return v.Stage(rotation.Issued).Certificate != nil })
	return r
}

// starts holds how many pods start at once. To start takes more of a processor
// than all that follows; who starts beside fifty others does not meet an issuer
// within the grace.
var starts = make(chan struct{}, 6)

// watch starts a watchdog beside a pod.
func watch(t *testing.T, pod *lab.Pod) *watchdog.Watchdog {
	t.Helper()
	cfg := watchdog.DefaultConfig()
	cfg.CredentialsDir = pod.CredentialsDir()
	cfg.WorkloadAPIAddress = pod.SocketAddress()
	cfg.EnvoyAdminAddress = pod.Envoy().AdminAddress()
	cfg.HandshakeAddress = pod.Envoy().ListenerAddress()
	cfg.PollInterval, cfg.Grace, cfg.ExpiryMargin = poll, grace, margin
	cfg.StreamBackoff, cfg.AnswerTimeout = grace/2, grace
	cfg.BudgetPercent = 100 // an hour is twelve seconds: so is the budget's
	cfg.WebListenAddress = "127.0.0.1:0"
	w, err := watchdog.New(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return w
}

// await waits until the verdict satisfies, and returns it and how long it took.
func (r *run) await(bound time.Duration, satisfies func(rotation.Verdict) bool) (rotation.Verdict, time.Duration, bool) {
	r.t.Helper()
	begin := time.Now()
	look := time.NewTicker(50 * time.Millisecond)
	defer look.Stop()
	for {
		v := r.watchdog.Verdict()
		took := time.Since(begin)
		if satisfies(v) {
			return v, took, true
		}
		if took > bound {
			return v, took, false
		}
		<-look.C
	}
}

// healthy waits until rotation is verified anew and nothing is wrong.
func (r *run) healthy(bound time.Duration) {
	r.t.Helper()
	verified := r.watchdog.Verdict().VerifiedRotations
	v, _, ok := r.await(bound, func(v rotation.Verdict) bool {
		return v.State == rotation.Healthy && v.VerifiedRotations > verified
	})
	if !ok {
		r.t.Fatalf("not healthy within %s: %s\n%s", bound, describe(v), r.story())
	}
}

// quiet waits until what was issued and delivered last was seen, is not about to
// be renewed, and is old enough for a version that is ahead of last_updated, which
// counts from a second on. An update that is refused right after one that was
// accepted is not told apart from it.
func (r *run) quiet() {
	r.t.Helper()
	v, _, ok := r.await(3*renewal, func(v rotation.Verdict) bool {
		for _, stage := range []rotation.Stage{rotation.Issued, rotation.Delivered} {
			age := v.Stage(stage).AgeSeconds
			if age == nil || *age < 1.5 || *age > renewal.Seconds()-1 {
				return false
			}
		}
		return true
	})
	if !ok {
		r.t.Fatalf("no quiet moment: %s", describe(v))
	}
}

func describe(v rotation.Verdict) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, %d verified: %s", v.State, v.VerifiedRotations, v.Summary)
	for _, p := range v.Problems {
		fmt.Fprintf(&b, "\n  %s %s (%s): %s", p.Severity, p.Name, p.Reason, p.Detail)
	}
	for _, s := range v.Sources {
		fmt.Fprintf(&b, "\n  source %s up=%t %s", s.Source, s.Up, s.Detail)
	}
	return b.String()
}

// story is what happened, for a test that failed.
func (r *run) story() string {
	var b strings.Builder
	events, _ := r.pod.Events()
	for _, e := range events[max(0, len(events)-15):] {
		fmt.Fprintf(&b, "  lab      %s %s %s\n", e.At.Format("05.000"), e.Kind, e.Message)
	}
	for _, e := range r.watchdog.Verdict().Events {
		fmt.Fprintf(&b, "  watchdog %s %s %s\n", e.At.Format("05.000"), e.Type, e.Message)
	}
	return b.String()
}

// raisedAfter lists the problems raised after an event.
func raisedAfter(v rotation.Verdict, seq uint64) []rotation.ProblemName {
	var names []rotation.ProblemName
	for _, e := range v.Events {
		if e.Seq > seq && e.Type == rotation.EventProblemRaised && !slices.Contains(names, e.Problem) {
			names = append(names, e.Problem)
		}
	}
	return names
}

func lastSeq(v rotation.Verdict) uint64 {
	if len(v.Events) == 0 {
		return 0
	}
	return v.Events[len(v.Events)-1].Seq
}

// bound is how long a fault may stay unnamed.
func bound(f lab.Fault) time.Duration {
	switch {
	case f.Name == "renewal-stopped":
		return ttl - margin + poll + slack
	case f.Overdue:
		// Until four renewals were seen the interval is taken to be at least
		// a quarter of the lifetime, which is less than the renewal here.
		return renewal + time.Second + grace + poll + slack
	case f.Name == "files-partial" || f.Name == "files-complete":
		return time.Second
	case f.Shows == rotation.SDSStreamFlapping:
		// Here the grace is shorter than what eight requests take.
		return 3*grace + 2*poll + slack
	case f.Shows == rotation.EnvoyUnreachable:
		return 5*time.Second + grace + poll + slack // the look's own timeout
	default:
		return grace + poll + slack
	}
}

// TestFaults injects each fault into a pod, sees its problem and no other that
// does not follow from it, within its bound, heals it, and sees it go: with
// both issuers, on both generations of the stand-in and on real Envoys, with
// and without the sds. statistics. On the releases between the oldest and the
// newest it sees the healthy run and the incident, unless FAULT_MATRIX names a
// file for the whole table.
func TestFaults(t *testing.T) {
	t.Parallel()
	table := newMatrix(t)
	for _, issuer := range lab.Issuers() {
		for _, e := range envoys(t) {
			for _, stats := range []bool{false, true} {
				column := fmt.Sprintf("%s/%s/stats=%t", issuer, e.name, stats)
				t.Run(column, func(t *testing.T) {
					t.Parallel()
					e.need(t)
					r := start(t, lab.Config{
						Issuer: issuer, TTL: ttl, Renewal: renewal, EnvoyPath: e.path, StandIn: e.standIn, SDSStats: stats,
					})
					r.healthy(3*renewal + slack)
					if raised := raisedAfter(r.watchdog.Verdict(), 0); len(raised) > 0 {
						t.Fatalf("raised %v in a healthy pod\n%s", raised, r.story())
					}
					serials := r.watchdog.Verdict()
					equal := serials.Stage(rotation.Issued).Certificate.Serial == serials.Stage(rotation.Delivered).Certificate.Serial
					if equal != (issuer == lab.SPIRE) {
						t.Errorf("issued and delivered serial are equal: %t", equal)
					}
					for _, f := range lab.Faults() {
						switch {
						case f.StandInOnly && e.path != "":
							table.add(f.Name, column, "only the stand-in can")
						case f.TwoProviders:
							table.add(f.Name, column, "takes two providers: TestTwoProviders")
						case f.TbotOnly && issuer != lab.Tbot:
							table.add(f.Name, column, "no fault with "+string(issuer))
						case e.between && table.path == "" && f.Name != "tbot-resend":
						default:
							table.add(f.Name, column, r.tryFault(f, e, stats))
						}
					}
				})
			}
		}
	}
}

// tryFault injects and heals one fault, and says what came of it.
func (r *run) tryFault(f lab.Fault, e envoy, stats bool) (cell string) {
	cell = "FAILED"
	r.t.Run(f.Name, func(t *testing.T) {
		r.t, t = t, r.t
		defer func() {
			if r.t.Failed() { // the next fault is to find a healthy pod
				_ = r.pod.Heal(context.Background(), f.Name)
			}
			r.t = t
		}()
		if f.Shows == rotation.UpdateRejected {
			r.quiet()
		}
		before := lastSeq(r.watchdog.Verdict())
		if err := r.pod.Inject(context.Background(), f.Name); err != nil {
			r.t.Fatal(err)
		}
		v, named, ok := r.await(bound(f), func(v rotation.Verdict) bool { return v.Has(f.Shows) })
		if !ok {
			r.t.Fatalf("%s was not named within %s: %s\n%s", f.Shows, bound(f), describe(v), r.story())
		}
		reason := f.Reason
		if e.modern && !stats && f.BlindReason != "" {
			reason = f.BlindReason
		}
		// A cause may show a moment after its effect.
		v, _, ok = r.await(poll+slack, func(v rotation.Verdict) bool {
			p, _ := v.Find(f.Shows)
			return p.Reason == reason
		})
		p, _ := v.Find(f.Shows)
		if !ok {
			r.t.Errorf("reason %q, want %q: %s", p.Reason, reason, describe(v))
		}
		if f.Name == "tbot-resend" {
			r.incident(e.modern, stats)
		}
		for _, name := range raisedAfter(r.watchdog.Verdict(), before) {
			if name != f.Shows && !slices.Contains(f.Follows, name) {
				r.t.Errorf("%s was raised too, and does not follow from it\n%s", name, r.story())
			}
		}
		if err := r.pod.Heal(context.Background(), f.Name); err != nil {
			r.t.Fatal(err)
		}
		v, cleared, ok := r.await(reconnect+grace+2*poll+slack, func(v rotation.Verdict) bool { return v.State == rotation.Healthy })
		if !ok {
			r.t.Fatalf("still there after healing: %s\n%s", describe(v), r.story())
		}
		// It may be healthy with what Envoy already has, and Envoy still wait
		// before it opens a stream again.
		r.healthy(reconnect + 3*renewal + slack)
		if r.t.Failed() {
			return
		}
		what := string(p.Name)
		if p.Reason != "" {
			what += " (" + string(p.Reason) + ")"
		}
		cell = fmt.Sprintf("%s, named after %.1f s, gone after %.1f s", what, named.Seconds(), cleared.Seconds())
		r.t.Log(cell)
	})
	return cell
}

// incident looks at what the real incident shows, before the certificate
// expires: that the delivery is overdue and why, what mends it, and that the
// Workload API is healthy.
func (r *run) incident(modern, stats bool) {
	visible := !modern || stats
	want := rotation.ReasonServerSilentOrResends
	if visible {
		want = rotation.ReasonServerResends
	}
	v, _, ok := r.await(poll+slack, func(v rotation.Verdict) bool {
		p, _ := v.Find(rotation.DeliveryOverdue)
		return p.Reason == want && v.Has(rotation.HollowUpdate) == visible
	})
	p, _ := v.Find(rotation.DeliveryOverdue)
	if !ok || v.Has(rotation.CertificateExpired) {
		r.t.Errorf("want delivery_overdue (%s), hollow_update %t, nothing expired: %s\n%s", want, visible, describe(v), r.story())
	}
	if !strings.Contains(p.Advice, "18.6.4") || !strings.Contains(p.Advice, "17.7.14") {
		r.t.Errorf("the advice does not name the tbot versions: %s", p.Advice)
	}
	if v.Has(rotation.IssuanceOverdue) || v.Has(rotation.WorkloadUnreachable) {
		r.t.Errorf("issued is not healthy: %s", describe(v))
	}
}
