package check_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.uber.org/goleak"

	"svid-watchdog/internal/check"
	"svid-watchdog/internal/e2e/neighbour"
	"svid-watchdog/internal/lab"
	"svid-watchdog/internal/rotation"
	"svid-watchdog/internal/watchdog"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The pods live fast, as those of the lab's own tests do.
const (
	ttl     = 12 * time.Second
	renewal = 4 * time.Second
	grace   = 2 * time.Second
	margin  = 3 * time.Second
)

// schema compiles a schema of docs/.
func schema(t *testing.T, name string) *jsonschema.Schema {
	t.Helper()
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	s, err := c.Compile(filepath.Join("..", "..", "docs", name))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// validate holds a document against a schema.
func validate(t *testing.T, s *jsonschema.Schema, document any) {
	t.Helper()
	text, err := json.Marshal(document)
	if err != nil {
		t.Fatal(err)
	}
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Validate(value); err != nil {
		t.Errorf("%v\n%s", err, text)
	}
}

type pod struct {
	*lab.Pod
	t      *testing.T
	modern bool
	issuer lab.Issuer
	// renewal is the renewal interval, 0 for one that is too long to matter.
	renewal time.Duration
}

// config looks at the pod without asking anybody.
func (p pod) config() check.Config {
	cfg := watchdog.DefaultConfig()
	cfg.CredentialsDir = p.CredentialsDir()
	cfg.WorkloadAPIAddress = p.SocketAddress()
	cfg.EnvoyAdminAddress = p.Envoy().AdminAddress()
	cfg.HandshakeAddress = p.Envoy().ListenerAddress()
	cfg.RotationInterval, cfg.Grace, cfg.ExpiryMargin = p.renewal, grace, margin
	return check.Config{Pod: cfg, Timeout: 8 * time.Second, Version: "test"}
}

func (p pod) look() check.Report {
	p.t.Helper()
	r, err := check.Run(p.t.Context(), p.config())
	if err != nil {
		p.t.Fatal(err)
	}
	return r
}

// until looks again and again until a look satisfies.
func (p pod) until(bound time.Duration, satisfies func(check.Report) bool) (check.Report, bool) {
	p.t.Helper()
	deadline := time.Now().Add(bound)
	again := time.NewTicker(200 * time.Millisecond)
	defer again.Stop()
	for {
		if r := p.look(); satisfies(r) {
			return r, true
		} else if time.Now().After(deadline) {
			return r, false
		}
		<-again.C
	}
}

// unseen are the faults that one look cannot see, and why.
var unseen = map[string]string{
	"issuance-stalled": "the look opens a stream of its own, which does bring an SVID",
	"sds-flapping":     "it takes many looks to see that streams are opened anew",
	"second-provider":  "takes a pod with two providers: TestTwoProviders of internal/lab shows it",
}

// seenAs are the faults that one look sees by another problem than many looks
// do.
func (p pod) seenAs(f lab.Fault) []rotation.ProblemName {
	switch {
	case f.Name == "bad-key" && (!p.modern || p.issuer == lab.SPIRE):
		// Nobody saw the leaf change; only that no context has it.
		return []rotation.ProblemName{rotation.ContextStale}
	case f.Name == "server-hung":
		return []rotation.ProblemName{rotation.WorkloadUnreachable}
	}
	return []rotation.ProblemName{f.Shows}
}

// TestOneLook injects each fault and looks once, again and again with no memory
// in between, until the look names it: with both issuers, on the stand-in of
// both generations and on real Envoys. Every report obeys the schema.
func TestOneLook(t *testing.T) {
	s := schema(t, "check.schema.json")
	type envoy struct {
		name, standIn, version string
		modern                 bool
	}
	envoys := []envoy{{name: "standin1.36", standIn: "1.36"}, {name: "standin1.37", standIn: "1.37", modern: true}}
	for _, version := range []string{"1.36.4", "1.40.0"} {
		envoys = append(envoys, envoy{name: "envoy" + version, version: version, modern: version != "1.36.4"})
	}
	for _, e := range envoys {
		for _, issuer := range lab.Issuers() {
			t.Run(fmt.Sprintf("%s/%s", e.name, issuer), func(t *testing.T) {
				t.Parallel()
				path := ""
				if e.version != "" {
					path = neighbour.Envoy(t, e.version)
				}
				started, err := lab.Start(t.Context(), lab.Config{
					Issuer: issuer, TTL: ttl, Renewal: renewal, EnvoyPath: path, StandIn: e.standIn,
				})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() {
					if err := started.Close(); err != nil {
						t.Error(err)
					}
				})
				p := pod{started, t, e.modern, issuer, renewal}
				for _, f := range lab.Faults() {
					if f.StandInOnly && e.version != "" || f.TbotOnly && issuer != lab.Tbot || unseen[f.Name] != "" {
						continue
					}
					t.Run(f.Name, func(t *testing.T) {
						p := p
						p.t = t
						p.try(f, s)
					})
				}
			})
		}
	}
	for name := range unseen {
		if _, ok := lab.FindFault(name); !ok {
			t.Errorf("there is no fault %s", name)
		}
	}
}

func (p pod) try(f lab.Fault, s *jsonschema.Schema) {
	r, ok := p.until(45*time.Second, func(r check.Report) bool { return r.ExitCode == check.ExitHealthy })
	if !ok {
		p.t.Fatalf("not healthy before: %s", describe(p.t, r))
	}
	validate(p.t, s, r)
	if err := p.Inject(p.t.Context(), f.Name); err != nil {
		p.t.Fatal(err)
	}
	defer func() {
		if err := p.Heal(p.t.Context(), f.Name); err != nil {
			p.t.Error(err)
		}
	}()
	want := p.seenAs(f)
	r, ok = p.until(ttl+grace+15*time.Second, func(r check.Report) bool {
		for _, name := range want {
			if !r.Verdict.Has(name) {
				return false
			}
		}
		return true
	})
	if !ok || r.ExitCode != check.ExitProblem || r.ToldBy != check.ByLook {
		p.t.Errorf("want %v: %s", want, describe(p.t, r))
	}
	validate(p.t, s, r)
	for _, width := range []int{30, 80, 100} {
		text := render(p.t, r, width)
		for _, name := range want {
			problem, _ := r.Verdict.Find(name)
			if !strings.Contains(text, string(name)) || !strings.Contains(flat(text), flat(problem.Advice)) {
				p.t.Errorf("at width %d %s is not told:\n%s", width, name, text)
			}
		}
	}
}

// flat is a text as one line.
func flat(text string) string { return strings.Join(strings.Fields(text), " ") }

func render(t *testing.T, r check.Report, width int) string {
	t.Helper()
	var b bytes.Buffer
	if err := r.WriteText(&b, width, false); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func describe(t *testing.T, r check.Report) string {
	t.Helper()
	return fmt.Sprintf("exit %d\n%s", r.ExitCode, render(t, r, 120))
}
