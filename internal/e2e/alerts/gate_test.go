package alerts

import (
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v2"

	"svid-watchdog/internal/e2e/neighbour"
	"svid-watchdog/internal/e2e/prom"
)

// gatePod is a pod in the story of a namespace. Times are minutes of the story.
type gatePod struct {
	name     string
	workload string // front-end if empty
	// born and dies bound its life; it lives on if dies is 0.
	born, dies int
	// every is how far apart rotations are, 20 if 0; life how long a certificate
	// lives, 61 if 0.
	every, life int
	// envoyStarts and watchdogStarts are restarts of the two in this pod.
	envoyStarts, watchdogStarts []int
	// Spans in which something is not as it should be: a problem is open, the
	// state is unknown, the scrape fails.
	degraded, unknown, unscraped span
	// proxyOnly is a pod without a watchdog, unfound one whose watchdog no scrape
	// configuration finds, unlisted one that kube-state-metrics does not know.
	proxyOnly, unfound, unlisted bool
}

// span is from a minute to before another.
type span struct{ from, to int }

func (s span) has(m int) bool { return s.from <= m && m < s.to }

// missing is no value.
var missing = math.NaN()

// series are the series of a pod over the minutes of a story, by their names.
func (p gatePod) series(namespace string, minutes int) map[string][]float64 {
	dies := p.dies
	if dies == 0 {
		dies = minutes
	}
	every, life, workload := p.every, p.life, p.workload
	if every == 0 {
		every = 20
	}
	if life == 0 {
		life = 61
	}
	if workload == "" {
		workload = "front-end"
	}
	series := make(map[string][]float64)
	// While it lives: there is a value unless has says otherwise.
	add := func(name string, has func(m int) bool, value func(m int) float64) {
		values := make([]float64, minutes)
		for m := range values {
			if values[m] = missing; p.born <= m && m < dies && has(m) {
				values[m] = value(m)
			}
		}
		series[name] = values
	}
	constant := func(v float64) func(int) float64 { return func(int) float64 { return v } }
	always := func(int) bool { return true }
	latest := func(starts []int, m int) int {
		at := p.born
		for _, s := range starts {
			if s <= m {
				at = s
			}
		}
		return at
	}
	if !p.unlisted {
		container := "svid-watchdog"
		if p.proxyOnly {
			container = "istio-proxy"
		}
		add(fmt.Sprintf(`kube_pod_container_info{namespace=%q, pod=%q, container=%q}`, namespace, p.name, container), always, constant(1))
		add(fmt.Sprintf(`kube_pod_status_phase{namespace=%q, pod=%q, phase="Running"}`, namespace, p.name), always, constant(1))
	}
	if p.proxyOnly || p.unfound {
		return series
	}
	labels := fmt.Sprintf(`job="svid-watchdog", namespace=%q, pod=%q, workload=%q, node="node-1"`, namespace, p.name, workload)
	scraped := func(m int) bool { return !p.unscraped.has(m) }
	add("up{"+labels+"}", always, func(m int) float64 { return truth(scraped(m)) })
	watchdog := func(name, more string, value func(m int) float64) {
		add("svid_watchdog_"+name+"{"+labels+more+"}", scraped, value)
	}
	watchdog("build_info", "", constant(1))
	watchdog("certificate_not_before_timestamp_seconds", `, stage="loaded"`, constant(0))
	watchdog("certificate_not_after_timestamp_seconds", `, stage="loaded"`, constant(float64(60*life)))
	watchdog("envoy_start_timestamp_seconds", "", func(m int) float64 { return float64(60 * latest(p.envoyStarts, m)) })
	for _, state := range []string{"healthy", "degraded", "broken", "unknown"} {
		watchdog("rotation_state", fmt.Sprintf(`, state=%q`, state), func(m int) float64 {
			now := "healthy"
			if p.degraded.has(m) {
				now = "degraded"
			} else if p.unknown.has(m) {
				now = "unknown"
			}
			return truth(now == state)
		})
	}
	watchdog("verified_rotations_total", "", func(m int) float64 {
		verified := 0
		for at := latest(p.watchdogStarts, m) + 1; at <= m; at++ {
			if age := at - latest(p.envoyStarts, at); age > 0 && age%every == 0 {
				verified++
			}
		}
		return float64(verified)
	})
	return series
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// notation writes values in promtool's notation.
func notation(values []float64) string {
	var b strings.Builder
	for i := 0; i < len(values); {
		n := 1
		for i+n < len(values) && (values[i+n] == values[i] || math.IsNaN(values[i+n]) && math.IsNaN(values[i])) {
			n++
		}
		if math.IsNaN(values[i]) {
			// What vanishes is marked stale, as when a target goes or a scrape fails.
			b.WriteString("stale")
			if n > 1 {
				fmt.Fprintf(&b, " _x%d", n-1)
			}
		} else {
			fmt.Fprintf(&b, "%gx%d", values[i], n-1)
		}
		b.WriteByte(' ')
		i += n
	}
	return b.String()
}

type promtoolFile struct {
	RuleFiles []string       `yaml:"rule_files"`
	Interval  string         `yaml:"evaluation_interval"`
	Tests     []promtoolTest `yaml:"tests"`
}

type promtoolTest struct {
	Name     string           `yaml:"name"`
	Interval string           `yaml:"interval"`
	Series   []promtoolSeries `yaml:"input_series"`
	Alerts   []struct {
		At     string `yaml:"eval_time"`
		Name   string `yaml:"alertname"`
		Expect []struct {
			Labels      map[string]string `yaml:"exp_labels"`
			Annotations map[string]string `yaml:"exp_annotations"`
		} `yaml:"exp_alerts"`
	} `yaml:"alert_rule_test,omitempty"`
	Queries []promtoolQuery `yaml:"promql_expr_test,omitempty"`
}

type promtoolSeries struct {
	Series string `yaml:"series"`
	Values string `yaml:"values"`
}

type promtoolQuery struct {
	Expr    string           `yaml:"expr"`
	At      string           `yaml:"eval_time"`
	Samples []promtoolSample `yaml:"exp_samples"`
}

type promtoolSample struct {
	Labels string  `yaml:"labels"`
	Value  float64 `yaml:"value"`
}

// at writes a time of a story.
func at(hours, minutes int) int { return 60*hours + minutes }

// TestGate tells promtool stories, each of a namespace of its own, and asks when
// their gates are open.
func TestGate(t *testing.T) {
	promtool := neighbour.Installed(t, "promtool", "prometheus")
	const absent = -1
	replaced := func(every, until int) (pods []gatePod) {
		for born := 0; born < until; born += every {
			pods = append(pods, gatePod{name: fmt.Sprintf("front-end-%d", born), born: born, dies: born + every})
		}
		return pods
	}
	steady := gatePod{name: "front-end-a"}
	stories := map[string]struct {
		hours int
		pods  []gatePod
		// gate is what it is at some minutes, ever whether it ever is 1.
		gate map[int]float64
		ever bool
	}{
		"all is well for a window and a day": {
			hours: 28, pods: []gatePod{steady, {name: "front-end-b"}, {name: "carts-a", workload: "carts"}},
			gate: map[int]float64{at(2, 0): 0, at(26, 29): 0, at(26, 32): 1, at(27, 59): 1}, ever: true,
		},
		"the CronJob replaces all pods": {
			hours: 30, pods: replaced(45, at(30, 0)),
			gate: map[int]float64{at(1, 0): 0, at(29, 59): 0},
		},
		"the CronJob restarts a StatefulSet, whose pods keep their names": {
			hours: 30, pods: func() []gatePod {
				p := gatePod{name: "front-end-0"}
				for m := 45; m < at(30, 0); m += 45 {
					p.envoyStarts, p.watchdogStarts = append(p.envoyStarts, m), append(p.watchdogStarts, m)
				}
				return []gatePod{p}
			}(),
			gate: map[int]float64{at(29, 59): 0},
		},
		"the CronJob replaces one workload of two": {
			hours: 30, pods: append(replaced(45, at(30, 0)), gatePod{name: "carts-a", workload: "carts"}),
			gate: map[int]float64{at(29, 59): 0},
		},
		"the CronJob comes only every six hours": {
			hours: 32, pods: replaced(at(6, 0), at(32, 0)),
			gate: map[int]float64{at(29, 59): 0},
		},
		"the CronJob is suspended after six hours": {
			hours: 34, pods: append(replaced(45, at(6, 0)), gatePod{name: "front-end-last", born: at(6, 0)}),
			gate: map[int]float64{at(32, 29): 0, at(32, 35): 1}, ever: true,
		},
		"a problem for a minute": {
			hours: 46, pods: []gatePod{steady, {name: "front-end-b", degraded: span{at(20, 0), at(20, 1)}}},
			gate: map[int]float64{at(26, 40): 0, at(43, 59): 0, at(44, 10): 1}, ever: true,
		},
		"a problem that is still open": {
			hours: 28, pods: []gatePod{steady, {name: "front-end-b", degraded: span{at(27, 30), at(28, 0)}}},
			gate: map[int]float64{at(27, 29): 1, at(27, 31): 0}, ever: true,
		},
		"unknown for ten minutes": {
			hours: 28, pods: []gatePod{steady, {name: "front-end-b", unknown: span{at(20, 0), at(20, 10)}}},
			gate: map[int]float64{at(27, 59): 0},
		},
		"unknown for two minutes, once in the past and once now": {
			hours: 28, pods: []gatePod{steady, {name: "front-end-b", unknown: span{at(20, 0), at(20, 2)}}, {name: "front-end-c", unknown: span{at(27, 0), at(27, 2)}}},
			gate: map[int]float64{at(26, 40): 1, at(27, 1): 0, at(27, 3): 1}, ever: true,
		},
		"unknown from its first minute": {
			hours: 28, pods: []gatePod{steady, {name: "front-end-b", unknown: span{0, at(28, 0)}}},
			gate: map[int]float64{at(27, 59): 0},
		},
		"a pod that no scrape configuration finds": {
			hours: 28, pods: []gatePod{steady, {name: "front-end-b", unfound: true}},
			gate: map[int]float64{at(27, 59): 0},
		},
		"a pod of the mesh without a watchdog": {
			hours: 28, pods: []gatePod{steady, {name: "carts-a", proxyOnly: true}},
			gate: map[int]float64{at(27, 59): 0},
		},
		"no pod with a watchdog": {
			hours: 28, pods: []gatePod{{name: "carts-a", proxyOnly: true}},
			gate: map[int]float64{at(27, 59): 0},
		},
		"a pod that cannot be scraped": {
			hours: 28, pods: []gatePod{steady, {name: "front-end-b", unscraped: span{0, at(28, 0)}}},
			gate: map[int]float64{at(27, 59): 0},
		},
		"a pod that could not be scraped for a quarter of an hour": {
			hours: 28, pods: []gatePod{steady, {name: "front-end-b", unscraped: span{at(20, 0), at(20, 15)}}},
			gate: map[int]float64{at(27, 59): 0},
		},
		"a pod whose scrape fails twice, once in the past and once now": {
			hours: 28, pods: []gatePod{steady, {name: "front-end-b", unscraped: span{at(20, 0), at(20, 2)}}, {name: "front-end-c", unscraped: span{at(27, 0), at(27, 1)}}},
			gate: map[int]float64{at(26, 40): 1, at(27, 0): 0, at(27, 2): 1}, ever: true,
		},
		"no kube-state-metrics": {
			hours: 28, pods: []gatePod{{name: "front-end-a", unlisted: true}},
			gate: map[int]float64{at(27, 59): 0},
		},
		"a pod that kube-state-metrics does not know": {
			hours: 28, pods: []gatePod{steady, {name: "front-end-b", unlisted: true}},
			gate: map[int]float64{at(27, 59): 0},
		},
		"no series at all for twenty minutes": {
			hours: 28, pods: []gatePod{{name: "front-end-a", dies: at(20, 0)}, {name: "front-end-a", born: at(20, 20)}},
			gate: map[int]float64{at(19, 59): 0, at(20, 10): absent, at(27, 59): 0},
		},
		"all series end": {
			hours: 28, pods: []gatePod{{name: "front-end-a", dies: at(27, 0)}},
			gate: map[int]float64{at(26, 59): 1, at(27, 1): absent}, ever: true,
		},
		"another pod comes": {
			hours: 31, pods: []gatePod{steady, {name: "front-end-b", born: at(27, 0)}},
			gate: map[int]float64{at(26, 59): 1, at(27, 1): 0, at(29, 29): 0, at(29, 32): 1}, ever: true,
		},
		"another pod comes and goes": {
			hours: 28, pods: []gatePod{steady, {name: "front-end-b", born: at(20, 0), dies: at(20, 30)}},
			gate: map[int]float64{at(26, 40): 1}, ever: true,
		},
		"another pod comes, is in trouble and goes": {
			hours: 28, pods: []gatePod{steady, {name: "front-end-b", born: at(20, 0), dies: at(20, 30), degraded: span{at(20, 10), at(20, 30)}}},
			gate: map[int]float64{at(27, 59): 0},
		},
		"all pods of a workload are replaced": {
			hours: 48, pods: []gatePod{steady, {name: "carts-a", workload: "carts", dies: at(20, 0)}, {name: "carts-b", workload: "carts", born: at(20, 0)}},
			gate: map[int]float64{at(26, 40): 0, at(46, 29): 0, at(46, 35): 1}, ever: true,
		},
		"Envoy restarts in one pod of two": {
			hours: 30, pods: []gatePod{steady, {name: "front-end-b", envoyStarts: []int{at(27, 0)}}},
			gate: map[int]float64{at(26, 59): 1, at(27, 1): 0, at(29, 25): 0, at(29, 35): 1}, ever: true,
		},
		"Envoy restarts in the only pod": {
			hours: 40, pods: []gatePod{{name: "front-end-a", envoyStarts: []int{at(20, 0)}}},
			gate: map[int]float64{at(26, 40): 0, at(39, 59): 0},
		},
		"the watchdog restarts in one pod of two": {
			hours: 30, pods: []gatePod{steady, {name: "front-end-b", watchdogStarts: []int{at(20, 0)}}},
			gate: map[int]float64{at(26, 40): 1}, ever: true,
		},
		"the watchdog restarts just now": {
			hours: 30, pods: []gatePod{steady, {name: "front-end-b", watchdogStarts: []int{at(27, 0)}}},
			gate: map[int]float64{at(26, 59): 1, at(27, 1): 0, at(29, 25): 0, at(29, 35): 1}, ever: true,
		},
		"certificates live longer than half the window": {
			hours: 28, pods: []gatePod{{name: "front-end-a", life: 76}},
			gate: map[int]float64{at(27, 59): 0},
		},
		"rotations are too few": {
			hours: 28, pods: []gatePod{steady, {name: "front-end-b", every: 50}},
			gate: map[int]float64{at(27, 59): 0},
		},
		"no rotation is verified": {
			hours: 28, pods: []gatePod{steady, {name: "front-end-b", every: at(100, 0)}},
			gate: map[int]float64{at(27, 59): 0},
		},
		"SPIRE renews at half life": {
			hours: 28, pods: []gatePod{{name: "front-end-a", every: 30, life: 60}},
			gate: map[int]float64{at(26, 40): 1}, ever: true,
		},
	}
	const gate = `namespace:svid_watchdog_cronjob_droppable:bool`
	test := promtoolTest{Name: "the gate", Interval: "1m"}
	longest := 0
	for name, story := range stories {
		namespace := strings.NewReplacer(" ", "-", ",", "").Replace(name)
		minutes := at(story.hours, 0)
		longest = max(longest, minutes)
		series := make(map[string][]float64)
		for _, pod := range story.pods {
			for name, values := range pod.series(namespace, minutes) {
				for m, before := range series[name] { // the same pod again
					if math.IsNaN(values[m]) {
						values[m] = before
					}
				}
				series[name] = values
			}
		}
		for name, values := range series {
			test.Series = append(test.Series, promtoolSeries{name, notation(append(values, missing))})
		}
		ask := func(expr, labels string, m int, want float64) {
			q := promtoolQuery{Expr: expr, At: fmt.Sprintf("%dm", m)}
			if want != absent {
				q.Samples = []promtoolSample{{Labels: labels, Value: want}}
			}
			test.Queries = append(test.Queries, q)
		}
		labels := fmt.Sprintf("{namespace=%q}", namespace)
		for m, want := range story.gate {
			ask(gate+labels, gate+labels, m, want)
		}
		ask("max_over_time("+gate+labels+"[100h])", labels, minutes, truth(story.ever))
	}
	// The gate and what it rests on.
	rules := prom.ShippedRules(t)
	for i := range rules.Groups {
		rules.Groups[i].Rules = slices.DeleteFunc(rules.Groups[i].Rules, func(r prom.Rule) bool {
			return rules.Groups[i].Name != "svid-watchdog-cronjob-gate" && r.Record != "pod:svid_watchdog_injected:bool"
		})
	}
	dir := t.TempDir()
	writeYAML(t, filepath.Join(dir, "rules.yaml"), rules)
	file := filepath.Join(dir, "test.yaml")
	writeYAML(t, file, promtoolFile{RuleFiles: []string{"rules.yaml"}, Interval: "1m", Tests: []promtoolTest{test}})
	if out, err := exec.CommandContext(t.Context(), promtool, "test", "rules", file).CombinedOutput(); err != nil {
		t.Errorf("after %d hours of %d stories: %v\n%s", longest/60, len(stories), err, out)
	}
}

func writeYAML(t *testing.T, path string, content any) {
	t.Helper()
	text, err := yaml.Marshal(content)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
}
