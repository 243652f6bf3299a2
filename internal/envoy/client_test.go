package envoy

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"svid-watchdog/internal/rotation"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// scripted answers the admin questions from functions, and counts them.
type scripted struct {
	mu      sync.Mutex
	asked   map[question]int
	answers map[question]func(http.ResponseWriter)
}

func classify(r *http.Request) question {
	switch {
	case r.URL.Path == "/server_info":
		return askServerInfo
	case r.URL.Path == "/stats":
		return askStats
	case r.URL.Path == "/certs":
		return askContexts
	case r.URL.Path == "/clusters":
		return askClusters
	case r.URL.Query().Get("resource") == "dynamic_active_secrets":
		return askSecrets
	case r.URL.Query().Get("resource") == "dynamic_warming_secrets":
		return askWarming
	}
	return question(r.URL.String())
}

func (s *scripted) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q := classify(r)
	s.mu.Lock()
	s.asked[q]++
	answer := s.answers[q]
	s.mu.Unlock()
	if r.Method != http.MethodGet || answer == nil {
		http.Error(w, "unexpected "+r.Method+" "+r.URL.String(), http.StatusNotFound)
		return
	}
	answer(w)
}

func (s *scripted) set(q question, answer func(http.ResponseWriter)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answers[q] = answer
}

func (s *scripted) count(q question) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked[q]
}

func says(text string) func(http.ResponseWriter) {
	return func(w http.ResponseWriter) { fmt.Fprint(w, text) }
}

// newScripted answers as a healthy Envoy does.
func newScripted(t *testing.T) *scripted {
	leaf, ca := chain(t, testID)
	return &scripted{asked: make(map[question]int), answers: map[question]func(http.ResponseWriter){
		askServerInfo: says(`{"version":"x/1.40.0/y","state":"LIVE","uptime_current_epoch":"100s"}`),
		askStats:      says(""),
		askSecrets:    says(dumpOf(identityJSON("default", "1", "2026-11-23T20:16:04.645Z", pemOf(leaf)), plainBundleJSON(pemOf(ca)))),
		askWarming:    says(`{}`),
		askContexts:   says(`{"certificates":[` + contextJSON + `]}`),
		askClusters:   says(`{"cluster_statuses":[` + clusterJSON + `]}`),
	}}
}

func config(address string) Config {
	return Config{
		Address: address, SDSCluster: "sds-grpc", IdentitySecret: "default", BundleSecret: "ROOTCA",
		PollInterval: 15 * time.Second, BudgetPercent: 0.5,
	}
}

func newClient(t *testing.T, cfg Config) *Client {
	t.Helper()
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.admin.close)
	return c
}

func serve(t *testing.T, h http.Handler) string {
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	return server.URL
}

func TestLook(t *testing.T) {
	s := newScripted(t)
	c := newClient(t, config(serve(t, s)))
	o := c.Look(t.Context())
	if o.Err != "" || o.Incomplete != "" || o.Version != "1.40.0" || o.Secrets == nil || o.Contexts == nil || o.SDSCluster == nil || o.Stats != nil {
		t.Fatalf("%+v", o)
	}
	if up := o.At.Round(0).Sub(o.Started.Earliest); (up-100*time.Second).Abs() > time.Millisecond || o.Started.Within > o.Spent+time.Second {
		t.Errorf("up for %s", up)
	}
	if o.Started.Earliest != o.Started.Earliest.Round(0) { // == sees the monotonic reading
		t.Error("the start is not one of the wall clock alone")
	}
	if o.Spent <= 0 {
		t.Error("the look cost nothing")
	}
}

func TestUnixSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := &httptest.Server{Listener: listener, Config: &http.Server{Handler: newScripted(t)}}
	server.Start()
	t.Cleanup(server.Close)
	if o := newClient(t, config("unix://"+path)).Look(t.Context()); o.Err != "" {
		t.Error(o.Err)
	}
}

func TestAddresses(t *testing.T) {
	for _, bad := range []string{"", "127.0.0.1:15000", "https://127.0.0.1:15000", "http://", "http://a/config_dump", "unix://", "unix://host/path", "http://u:p@127.0.0.1:1", "\x00"} {
		if _, err := New(config(bad)); err == nil {
			t.Errorf("%q was accepted", bad)
		} else if strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: more than a line: %v", bad, err)
		}
	}
}

// TestLoopbackOnly: an admin interface that is not the pod's own is asked only
// when the user says so, whatever a name stands for.
func TestLoopbackOnly(t *testing.T) {
	for _, good := range []string{"http://127.0.0.1:15000", "http://127.1.2.3:15000", "http://[::1]:15000/", "http://localhost:15000", "unix:///run/admin"} {
		if _, err := New(config(good)); err != nil {
			t.Error(err)
		}
	}
	for _, remote := range []string{"http://192.0.2.1:15000", "http://[2001:db8::1]:15000", "http://envoy:15000", "http://0.0.0.0:15000", "http://localhost.example:15000", "http://2130706433:15000"} {
		cfg := config(remote)
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), "--envoy.allow-remote-admin") {
			t.Errorf("%s: %v", remote, err)
		}
		cfg.AllowRemote = true
		if _, err := New(cfg); err != nil {
			t.Error(err)
		}
	}
	for address, want := range map[string]bool{"127.0.0.1:1": true, "[::1]:1": true, "192.0.2.1:1": false, "[2001:db8::1]:1": false, "nonsense": false} {
		if err := onlyLoopback(t.Context(), "tcp", address, nil); (err == nil) != want {
			t.Errorf("dial %s: %v", address, err)
		}
	}
}

// TestHostileAnswers: whatever Envoy's place sends, the look ends, says so in
// one line, and claims nothing.
func TestHostileAnswers(t *testing.T) {
	for name, answer := range map[string]func(http.ResponseWriter){
		"redirect": func(w http.ResponseWriter) {
			w.Header().Set("Location", "http://192.0.2.1/")
			w.WriteHeader(http.StatusFound)
		},
		"not json":  says("<html>"),
		"empty":     says(""),
		"array":     says("[]"),
		"truncated": says(`{"version":"1.2.3"`),
		"error": func(w http.ResponseWriter) {
			http.Error(w, strings.Repeat("no ", 1000), http.StatusInternalServerError)
		},
		"huge": func(w http.ResponseWriter) {
			fmt.Fprint(w, `{"version":"`)
			chunk := strings.Repeat("a", 1<<16)
			for range 10 * maxElement / len(chunk) {
				if _, err := fmt.Fprint(w, chunk); err != nil {
					return
				}
			}
		},
		"many headers": func(w http.ResponseWriter) {
			for i := range 200 {
				w.Header().Set(fmt.Sprintf("X-%d", i), strings.Repeat("a", 1000))
			}
			fmt.Fprint(w, "{}")
		},
	} {
		for _, q := range []question{askServerInfo, askSecrets, askContexts, askClusters} {
			t.Run(name+"/"+string(q), func(t *testing.T) {
				s := newScripted(t)
				s.set(q, answer)
				o := newClient(t, config(serve(t, s))).Look(t.Context())
				problem := o.Err + o.Incomplete
				if problem == "" || strings.Contains(problem, "\n") || len(problem) > 600 {
					t.Errorf("the look says %q", problem)
				}
				if q == askServerInfo && (o.Err == "" || o.Secrets != nil) || q == askContexts && o.Contexts != nil {
					t.Errorf("%+v", o)
				}
			})
		}
	}
}

func TestSilentEnvoy(t *testing.T) {
	s := newScripted(t)
	block := make(chan struct{})
	s.set(askServerInfo, func(http.ResponseWriter) { <-block })
	address := serve(t, s)
	t.Cleanup(func() { close(block) })
	cfg := config(address)
	cfg.Timeout = 50 * time.Millisecond
	c := newClient(t, cfg)
	for range 3 {
		o, polled := c.poll(t.Context())
		if !polled || !strings.Contains(o.Err, "no answer within") {
			t.Fatalf("%t %q: an Envoy that hangs must be asked again", polled, o.Err)
		}
	}
}

// TestWhatIsAskedWhen: the contexts are asked at once when the leaf changed,
// and everything anew when Envoy was restarted.
func TestWhatIsAskedWhen(t *testing.T) {
	s := newScripted(t)
	cfg := config(serve(t, s))
	c := newClient(t, cfg)
	dear := func() { c.cost[askContexts], c.cost[askClusters] = time.Second, time.Second }

	poll := func() rotation.Envoy {
		t.Helper()
		c.budget.earn(time.Now())
		o := c.look(t.Context(), false)
		if o.Err != "" || o.Incomplete != "" {
			t.Fatal(o.Err + o.Incomplete)
		}
		dear()
		return o
	}
	if o := poll(); o.Contexts == nil || o.SDSCluster == nil {
		t.Fatalf("the first look is not complete: %+v", o)
	}
	c.unsettled = 0
	if o := poll(); o.Contexts != nil || o.SDSCluster != nil {
		t.Fatalf("dear questions were asked at rest: %+v", o)
	}
	leaf, ca := chain(t, testID)
	s.set(askSecrets, says(dumpOf(identityJSON("default", "2", "2026-11-23T20:26:04.645Z", pemOf(leaf)), plainBundleJSON(pemOf(ca)))))
	before := s.count(askContexts)
	poll() // sees the change, and asks at once for the contexts
	c.budget.tokens = c.budget.burst
	poll()
	if s.count(askContexts) == before {
		t.Error("the leaf changed, and the contexts were not asked")
	}
	c.unsettled = 0
	c.budget.tokens = c.budget.burst
	s.set(askServerInfo, says(`{"version":"x/1.40.0/y","state":"LIVE","uptime_current_epoch":"1s"}`))
	if o := poll(); o.Contexts == nil || o.SDSCluster == nil {
		t.Errorf("Envoy was restarted, and the look is not complete: %+v", o)
	}
}

// TestStatisticsOfAYoungEnvoy: Envoy has no statistics of a secret before it asks
// for it. That they are hidden is believed once it has the secret.
func TestStatisticsOfAYoungEnvoy(t *testing.T) {
	s := newScripted(t)
	later := s.answers[askSecrets]
	s.set(askSecrets, says(`{}`))
	c := newClient(t, config(serve(t, s)))
	look := func() rotation.Envoy {
		t.Helper()
		c.budget.tokens = c.budget.burst
		o := c.look(t.Context(), false)
		if o.Err != "" || o.Incomplete != "" {
			t.Fatal(o.Err + o.Incomplete)
		}
		return o
	}
	look()
	s.set(askSecrets, later)
	look() // the secret may have come after the statistics were asked
	for range 3 {
		look()
	}
	if n := s.count(askStats); n != 3 {
		t.Errorf("hidden statistics were asked %d times, want 3", n)
	}

	s.set(askServerInfo, says(`{"version":"x/1.40.0/y","state":"LIVE","uptime_current_epoch":"1s"}`))
	s.set(askSecrets, says(`{}`))
	look()
	s.set(askSecrets, later)
	s.set(askStats, says("sds.default.update_rejected: 0\nsds.default.update_success: 1\n"))
	if o := look(); o.Stats == nil || o.Stats.UpdateSuccess != 1 {
		t.Errorf("the statistics that Envoy shows by now are %+v", o.Stats)
	}
}

// TestBudget: over an hour Envoy spends its share on us and no more, and the
// dearer a question the rarer it is asked.
func TestBudget(t *testing.T) {
	for _, tt := range []struct {
		name            string
		dump, dear      time.Duration
		minDear, maxDar int
	}{
		{"small", time.Millisecond, 2 * time.Millisecond, 239, 241},
		{"thousand clusters", 4 * time.Millisecond, 37 * time.Millisecond, 200, 241},
		{"ten thousand clusters", 38 * time.Millisecond, 320 * time.Millisecond, 8, 40},
	} {
		t.Run(tt.name, func(t *testing.T) {
			now := time.Now()
			b := newBudget(0.5, now)
			asked, skipped := 0, 0
			var spent time.Duration
			spend := func(d time.Duration) { b.spend(d); spent += d }
			for range 240 { // polls of 15 s
				b.earn(now)
				if b.affords(tt.dump, true) {
					spend(tt.dump)
				} else {
					skipped++
				}
				if b.affords(tt.dear, false) {
					spend(tt.dear)
					asked++
				}
				now = now.Add(15 * time.Second)
			}
			limit := time.Hour/200 + b.burst
			if spent > limit || skipped > 0 {
				t.Errorf("spent %s of %s, skipped %d", spent, limit, skipped)
			}
			if asked < tt.minDear || asked > tt.maxDar {
				t.Errorf("asked %d times, want %d to %d", asked, tt.minDear, tt.maxDar)
			}
		})
	}
}

// TestDebt: an answer that took an hour, since the node was busy, does not make
// us blind for days: what every look asks is asked again after a minute, and
// what is dear once that was saved for.
func TestDebt(t *testing.T) {
	now := time.Now()
	b := newBudget(0.5, now)
	b.spend(time.Hour)
	const cheap, dear = 40 * time.Millisecond, 350 * time.Millisecond
	b.earn(now.Add(maxDebt - time.Second))
	if b.affords(cheap, true) {
		t.Error("a debt was forgotten at once")
	}
	b.earn(now.Add(maxDebt + 10*time.Second))
	if !b.affords(cheap, true) {
		t.Errorf("%s after the debt the balance is %s", maxDebt, b.tokens)
	}
	if b.affords(dear, false) {
		t.Error("a dear question was asked that nothing was saved for")
	}
}

// pipe connects client and server without a socket, so that the clock of a
// synctest bubble can pass.
type pipe struct {
	conns chan net.Conn
	done  chan struct{}
}

func newPipe() *pipe { return &pipe{make(chan net.Conn), make(chan struct{})} }

func (p *pipe) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}
func (p *pipe) Close() error   { close(p.done); return nil }
func (p *pipe) Addr() net.Addr { return &net.UnixAddr{} }
func (p *pipe) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	a, b := net.Pipe()
	select {
	case p.conns <- a:
		return b, nil
	case <-p.done:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// TestPollsSoonerAfterANudge: at rest a look every 15 s; after a new SVID the
// delivery is seen within a second, and however many come, the looks go on.
func TestPollsSoonerAfterANudge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScripted(t)
		born := time.Now().Add(-100 * time.Second)
		s.set(askServerInfo, func(w http.ResponseWriter) {
			fmt.Fprintf(w, `{"version":"x/1.40.0/y","state":"LIVE","uptime_current_epoch":"%ds"}`, int(time.Since(born).Seconds()))
		})
		p := newPipe()
		server := &http.Server{Handler: s}
		go func() { _ = server.Serve(p) }() // ends with Close
		cfg := config("http://127.0.0.1:15000")
		cfg.BudgetPercent = 50
		var mu sync.Mutex
		var looks []time.Time
		cfg.Observe = func(o rotation.Envoy) {
			mu.Lock()
			defer mu.Unlock()
			if o.Err+o.Incomplete != "" {
				t.Error(o.Err + o.Incomplete)
			}
			looks = append(looks, o.At)
		}
		since := func(from time.Time) (n int, last time.Time) {
			mu.Lock()
			defer mu.Unlock()
			for _, l := range looks {
				if l.After(from) {
					n, last = n+1, l
				}
			}
			return n, last
		}
		c, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		c.admin.client.Transport.(*http.Transport).DialContext = p.dial
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- c.Run(ctx) }()
		time.Sleep(2 * time.Minute) // the bubble's clock: settled
		start := time.Now()
		time.Sleep(10 * time.Minute)
		if n, _ := since(start); n < 39 || n > 41 {
			t.Errorf("%d looks in 10 minutes at rest, want 40", n)
		}
		nudged := time.Now()
		c.Nudge()
		time.Sleep(3 * time.Second)
		leaf, ca := chain(t, testID)
		s.set(askSecrets, says(dumpOf(identityJSON("default", "2", "2026-11-23T20:26:04.645Z", pemOf(leaf)), plainBundleJSON(pemOf(ca)))))
		time.Sleep(2 * time.Second)
		if n, last := since(nudged.Add(3 * time.Second)); n == 0 {
			t.Errorf("a delivery 3 s after the nudge was not looked at within 2 s, last look %s after it", last.Sub(nudged))
		}
		time.Sleep(time.Minute)
		rest := time.Now()
		time.Sleep(10 * time.Minute)
		if n, _ := since(rest); n < 39 || n > 41 {
			t.Errorf("%d looks in 10 minutes after the nudge, want 40", n)
		}
		// An identity provider that sends without end must not keep it from looking.
		flood := time.Now()
		for range 600 {
			time.Sleep(100 * time.Millisecond)
			c.Nudge()
		}
		if n, _ := since(flood); n < 100 || n > 300 {
			t.Errorf("%d looks in a minute of nudges, want up to four a second", n)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		server.Close()
		synctest.Wait()
	})
}

// TestOneLifePerLook: an Envoy that was restarted during a look shows leaves of
// its new life, which must not be taken for a rotation in the old one.
func TestOneLifePerLook(t *testing.T) {
	s := newScripted(t)
	c := newClient(t, config(serve(t, s)))
	if o := c.Look(t.Context()); o.Err != "" {
		t.Fatal(o.Err)
	}
	leaf, ca := chain(t, testID)
	s.set(askSecrets, func(w http.ResponseWriter) {
		s.set(askServerInfo, says(`{"version":"x/1.40.0/y","state":"LIVE","uptime_current_epoch":"0s"}`))
		says(dumpOf(identityJSON("default", "2", "2026-11-23T20:17:04.645Z", pemOf(leaf)), plainBundleJSON(pemOf(ca))))(w)
	})
	o := c.Look(t.Context())
	if !strings.Contains(o.Err, "restarted during the look") {
		t.Errorf("%+v", o)
	}
	if o := c.Look(t.Context()); o.Err != "" || o.At.Round(0).Sub(o.Started.Earliest) > time.Second {
		t.Errorf("the look after it: %+v", o)
	}
}
