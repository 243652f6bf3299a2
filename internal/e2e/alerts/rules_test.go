package alerts

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v2"

	"svid-watchdog/internal/e2e/fleet"
	"svid-watchdog/internal/e2e/neighbour"
	"svid-watchdog/internal/e2e/prom"
	"svid-watchdog/internal/rotation"
)

func read(t *testing.T, elements ...string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(append([]string{neighbour.Root(t)}, elements...)...))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// run runs a program on files of deploy/prometheus.
func run(t *testing.T, program string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Dir = prom.Dir(t)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%s %s: %v\n%s", filepath.Base(program), strings.Join(args, " "), err, out)
	}
}

// TestPromtool: Prometheus takes the rules, and their unit tests pass.
func TestPromtool(t *testing.T) {
	t.Parallel()
	promtool := neighbour.Installed(t, "promtool", "prometheus")
	run(t, promtool, "check", "rules", "rules.yaml")
	files, err := filepath.Glob(filepath.Join(prom.Dir(t), "tests", "*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no unit tests: %v", err)
	}
	run(t, promtool, append([]string{"test", "rules"}, files...)...)
}

// TestPrometheusRule: the PrometheusRule has what the rules have.
func TestPrometheusRule(t *testing.T) {
	t.Parallel()
	_, spec, found := strings.Cut(read(t, "deploy", "prometheus", "prometheusrule.yaml"), "\nspec:\n")
	if !found {
		t.Fatal("the PrometheusRule has no spec")
	}
	var rules strings.Builder
	for line := range strings.Lines(spec) {
		rules.WriteString(strings.TrimPrefix(line, "  "))
	}
	if rules.String() != read(t, "deploy", "prometheus", "rules.yaml") {
		t.Error("prometheusrule.yaml differs from rules.yaml: run `make rules`")
	}
}

var (
	camelCase = regexp.MustCompile(`^SVIDWatchdog([A-Z][A-Za-z]+)$`)
	sentence  = regexp.MustCompile(`^[A-Z][^{}]*\.$`)
	heading   = regexp.MustCompile(`(?m)^## (\S+)$`)
)

// TestConventions: each alert says what it is, how bad, what it is about, and
// where its runbook is: those of kubernetes-mixin.
func TestConventions(t *testing.T) {
	t.Parallel()
	runbooks := make(map[string]bool)
	for _, r := range prom.ShippedRules(t).Alerts() {
		a := r.Annotations
		if !camelCase.MatchString(r.Alert) {
			t.Errorf("%s: not a name in camel case with our prefix", r.Alert)
		}
		if s := r.Labels["severity"]; s != "critical" && s != "warning" {
			t.Errorf("%s: severity %q", r.Alert, s)
		}
		if s := r.Labels["scope"]; !slices.Contains([]string{"fleet", "node", "workload", "pod"}, s) {
			t.Errorf("%s: scope %q", r.Alert, s)
		} else if s == "pod" && r.Labels["severity"] != "warning" {
			t.Errorf("%s: a single pod wakes nobody", r.Alert)
		} else if s != "fleet" && !strings.Contains(a["description"], "$labels."+s) {
			t.Errorf("%s: the description does not name its %s", r.Alert, s)
		}
		if !sentence.MatchString(a["summary"]) {
			t.Errorf("%s: the summary is not a fixed sentence: %q", r.Alert, a["summary"])
		}
		base, anchor, _ := strings.Cut(a["runbook_url"], "#")
		runbooks[base] = true
		if anchor != strings.ToLower(r.Alert) || !strings.HasSuffix(base, "docs/runbooks.md") {
			t.Errorf("%s: the runbook is at %q", r.Alert, a["runbook_url"])
		}
		if len(a) != 3 || r.For == 0 {
			t.Errorf("%s: an annotation too many or too few, or no `for`", r.Alert)
		}
	}
	if len(runbooks) != 1 {
		t.Errorf("the runbooks are at several places: %v", runbooks)
	}
}

// TestRunbooks: each alert has a section for whoever is woken by it, with all
// four parts, and no section is left over.
func TestRunbooks(t *testing.T) {
	t.Parallel()
	text := read(t, "docs", "runbooks.md")
	sections := make(map[string]string)
	found := heading.FindAllStringSubmatchIndex(text, -1)
	for i, f := range found {
		end := len(text)
		if i+1 < len(found) {
			end = found[i+1][0]
		}
		sections[text[f[2]:f[3]]] = text[f[1]:end]
	}
	for _, r := range prom.ShippedRules(t).Alerts() {
		section, ok := sections[r.Alert]
		if !ok {
			t.Errorf("docs/runbooks.md has no section %s", r.Alert)
			continue
		}
		// Whoever is woken finds the same four answers at the same place.
		last := -1
		for _, part := range []string{"**Means.**", "**Confirm.**", "**Fix.**", "**Buy time.**"} {
			at := strings.Index(section, part)
			if at <= last {
				t.Errorf("%s: %s is missing, or not at its place", r.Alert, part)
			}
			last = at
		}
		if _, confirm, _ := strings.Cut(section, "**Confirm.**"); !strings.Contains(confirm, "\n    ") {
			t.Errorf("%s: no command confirms it", r.Alert)
		}
	}
	for name := range sections {
		if camelCase.MatchString(name) && !slices.ContainsFunc(prom.ShippedRules(t).Alerts(), func(r prom.Rule) bool { return r.Alert == name }) {
			t.Errorf("docs/runbooks.md has a section %s and there is no such alert", name)
		}
	}
}

// TestEachAlertIsTested: by promtool, in three ways.
func TestEachAlertIsTested(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob(filepath.Join(prom.Dir(t), "tests", "*.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	tests := make(map[string]promtoolTest)
	for _, file := range files {
		var content promtoolFile
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := yaml.UnmarshalStrict(text, &content); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		for _, test := range content.Tests {
			if _, twice := tests[test.Name]; twice {
				t.Errorf("two tests are called %q", test.Name)
			}
			tests[test.Name] = test
		}
	}
	for _, r := range prom.ShippedRules(t).Alerts() {
		severity := r.Labels["severity"]
		for _, kind := range []string{"fires", "stays silent", "series missing"} {
			name := r.Alert + " " + severity + ": " + kind
			test, ok := tests[name]
			if !ok {
				t.Errorf("there is no test %q in deploy/prometheus/tests", name)
				continue
			}
			fires := false
			for _, check := range test.Alerts {
				if check.Name != r.Alert {
					t.Errorf("%s: asks for %s", name, check.Name)
				}
				for _, e := range check.Expect {
					fires = fires || e.Labels["severity"] == severity
				}
			}
			// That no series is there is what SVIDWatchdogAbsent is about.
			want := kind == "fires" || kind == "series missing" && r.Alert == "SVIDWatchdogAbsent"
			if len(test.Alerts) == 0 || fires != want {
				t.Errorf("%s: expected to fire: %t", name, fires)
			}
		}
	}
}

// TestEachProblemAlerts: no problem of the catalogue goes unheard.
func TestEachProblemAlerts(t *testing.T) {
	t.Parallel()
	matcher := regexp.MustCompile(`problem=~?"([a-z_|]+)"`)
	heard := map[string]bool{
		// SVIDWatchdogCertificateExpiring judges what Envoy uses by itself.
		string(rotation.CertificateExpiring): true, string(rotation.CertificateExpired): true,
	}
	named := make(map[string]bool)
	for _, r := range prom.ShippedRules(t).Alerts() {
		for _, m := range matcher.FindAllStringSubmatch(r.Expr, -1) {
			for name := range strings.SplitSeq(m[1], "|") {
				heard[name] = true
				named[name] = true
			}
		}
	}
	for _, d := range rotation.Catalogue() {
		if !heard[string(d.Name)] {
			t.Errorf("no alert is about %s", d.Name)
		}
		delete(named, string(d.Name))
	}
	for name := range named {
		t.Errorf("an alert is about %s, which is no problem of the catalogue", name)
	}
}

// TestMetricsExist: the rules ask for series that the watchdog or another rule
// makes.
func TestMetricsExist(t *testing.T) {
	t.Parallel()
	known := read(t, "docs", "metrics.md")
	rules := prom.ShippedRules(t)
	recorded := make(map[string]bool)
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			recorded[r.Record] = true
		}
	}
	metric := regexp.MustCompile(`[a-z]*:?svid_watchdog_[a-z_]+(:[a-z0-9]+)?`)
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			for _, name := range metric.FindAllString(r.Expr, -1) {
				if !recorded[name] && !strings.Contains(known, "| `"+name+"` |") {
					t.Errorf("%s%s: there is no metric %s", r.Record, r.Alert, name)
				}
			}
		}
	}
}

// TestGateParameters: the window and the day of the gate are said once, however
// often they are written.
func TestGateParameters(t *testing.T) {
	t.Parallel()
	written := make(map[string]map[string]int)
	for _, g := range prom.ShippedRules(t).Groups {
		if g.Name != "svid-watchdog-cronjob-gate" {
			continue
		}
		for _, r := range g.Rules {
			written[r.Record] = make(map[string]int)
			for _, d := range prom.Durations(r.Expr) {
				written[r.Record][d]++
			}
		}
	}
	window := written["pod:svid_watchdog_rotation_proven:bool"]
	if len(window) != 1 {
		t.Errorf("the window has several lengths: %v", window)
	}
	for _, n := range window {
		if n != 3 {
			t.Errorf("the window is written %d times, and the comment says three", n)
		}
	}
	day := written["namespace:svid_watchdog_cronjob_droppable:bool"]
	if day["24h"] != 2 || day["5m"] != 1 || len(day) != 2 {
		t.Errorf("the gate's day and step: %v", day)
	}
	if !strings.Contains(read(t, "deploy", "prometheus", "rules.yaml"), ">= bool 288)") { // 24 h / 5 min
		t.Error("the gate does not ask for 288 steps of five minutes")
	}
}

// TestFaster: dividing the durations leaves everything else as it is, and
// promtool takes the result.
func TestFaster(t *testing.T) {
	t.Parallel()
	promtool := neighbour.Installed(t, "promtool", "prometheus")
	shipped := prom.ShippedRules(t)
	faster, err := shipped.Faster(fleet.Factor)
	if err != nil {
		t.Fatal(err)
	}
	for i, g := range shipped.Groups {
		for k, r := range g.Rules {
			f := faster.Groups[i].Rules[k]
			if f.For*fleet.Factor != r.For || f.KeepFiring*fleet.Factor != r.KeepFiring || f.Alert != r.Alert || f.Record != r.Record {
				t.Errorf("%s%s: %+v", r.Record, r.Alert, f)
			}
			if n := len(prom.Durations(r.Expr)); (f.Expr == r.Expr) != (n == 0) {
				t.Errorf("%s%s has %d durations, and becomes %s", r.Record, r.Alert, n, f.Expr)
			}
		}
	}
	if got := prom.Durations(`a offset 150m + max_over_time(b{c="5m"}[24h:5m])`); !slices.Equal(got, []string{"150m", "24h", "5m"}) {
		t.Errorf("durations: %v", got)
	}
	file := filepath.Join(t.TempDir(), "rules.yaml")
	writeYAML(t, file, faster)
	run(t, promtool, "check", "rules", file)
	if _, err := shipped.Faster(1e9); err == nil {
		t.Error("nothing is left of the durations, and that is no error")
	}
}
