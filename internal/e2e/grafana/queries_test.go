package grafana

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"svid-watchdog/internal/e2e/fenced"
	"svid-watchdog/internal/e2e/neighbour"
	"svid-watchdog/internal/e2e/prom"
	"svid-watchdog/internal/e2e/sidecar"
	"svid-watchdog/internal/lab"
	"svid-watchdog/internal/rotation"
)

func TestMain(m *testing.M) { os.Exit(sidecar.Main(m)) }

// An hour takes a minute: certificates live for an hour and are renewed each
// twenty minutes, and the rules run sixty times as fast.
const (
	factor  = 60
	ttl     = time.Hour / factor
	renewal = 20 * time.Minute / factor
)

// query is one query of a dashboard.
type query struct {
	panel, expr, legend string
	columns             []string // of a table
}

func (q query) String() string { return fmt.Sprintf("%s: %s", q.panel, q.expr) }

// replaced is what Grafana puts in the place of variables, and of the time that
// it knows by the width of a panel.
var replaced = strings.NewReplacer(
	"$namespace", "sock-shop", "$workload", ".+", "$pod", "front-end-1",
	"$__rate_interval", "4m", "$__range", "1h",
)

// read finds the queries of a dashboard, and those of its variables.
func read(t *testing.T, name string) []query {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(neighbour.Root(t), "deploy", "grafana", name))
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		Templating struct {
			List []struct {
				Name  string `json:"name"`
				Type  string `json:"type"`
				Query any    `json:"query"`
			} `json:"list"`
		} `json:"templating"`
		Panels []struct {
			Title   string `json:"title"`
			Targets []struct {
				Expr         string `json:"expr"`
				LegendFormat string `json:"legendFormat"`
			} `json:"targets"`
			Transformations []struct {
				Options struct {
					IndexByName map[string]int `json:"indexByName"`
				} `json:"options"`
			} `json:"transformations"`
		} `json:"panels"`
	}
	if err := json.Unmarshal(text, &dashboard); err != nil {
		t.Fatal(err)
	}
	var queries []query
	labelValues := regexp.MustCompile(`^label_values\((.*), ([a-z]+)\)$`)
	for _, v := range dashboard.Templating.List {
		if v.Type != "query" {
			continue
		}
		text := fmt.Sprint(v.Query.(map[string]any)["query"])
		parts := labelValues.FindStringSubmatch(text)
		if parts == nil {
			t.Fatalf("%s: the variable %s asks %q, which is no label_values", name, v.Name, text)
		}
		queries = append(queries, query{panel: "variable " + v.Name, expr: parts[1], legend: "{{" + parts[2] + "}}"})
	}
	for _, p := range dashboard.Panels {
		var columns []string
		for _, transformation := range p.Transformations {
			for column := range transformation.Options.IndexByName {
				if column != "Value" {
					columns = append(columns, column)
				}
			}
		}
		for _, target := range p.Targets {
			queries = append(queries, query{panel: p.Title, expr: target.Expr, legend: target.LegendFormat, columns: columns})
		}
	}
	if len(queries) < 20 {
		t.Fatalf("%s has %d queries", name, len(queries))
	}
	return queries
}

var legendLabel = regexp.MustCompile(`\{\{(\w+)\}\}`)

// answer runs a query with all its durations divided, as the rules have it.
// What comes must have the labels that the legend or the table shows.
func answer(t *testing.T, prometheus *prom.Prometheus, q query) []prom.Sample {
	t.Helper()
	rules, err := prom.Rules{Groups: []prom.Group{{Rules: []prom.Rule{{Expr: replaced.Replace(q.expr)}}}}}.Faster(factor)
	if err != nil {
		t.Fatalf("%s: %v", q, err)
	}
	expr := rules.Groups[0].Rules[0].Expr
	if strings.Contains(expr, "$") {
		t.Fatalf("%s: a variable is left: %s", q, expr)
	}
	samples, err := prometheus.Query(expr)
	if err != nil {
		t.Fatalf("%s: %v", q, err)
	}
	for _, sample := range samples {
		labels := q.columns
		for _, l := range legendLabel.FindAllStringSubmatch(q.legend, -1) {
			labels = append(slices.Clone(labels), l[1])
		}
		for _, l := range labels {
			if sample.Labels[l] == "" {
				t.Errorf("%s: a series without the label %s, which is shown: %v", q, l, sample.Labels)
			}
		}
	}
	return samples
}

// podsOfTheMesh stands for kube-state-metrics, as no kubelet runs these pods: what it
// would say of them.
func podsOfTheMesh(t *testing.T, names ...string) string {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for _, name := range names {
			fmt.Fprintf(w, "kube_pod_container_info{namespace=\"sock-shop\",pod=%q,container=\"svid-watchdog\"} 1\n", name)
			fmt.Fprintf(w, "kube_pod_status_phase{namespace=\"sock-shop\",pod=%q,phase=\"Running\"} 1\n", name)
		}
	}))
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}

// inPod is how a command of a document gets into the watchdog's container.
var inPod = regexp.MustCompile(`kubectl [^\n]* -c svid-watchdog -- /watchdog `)

// commands runs those of the documents that take more than an API server: what
// asks Prometheus must get an answer that is not empty, and what runs in a pod is
// run as the same command of the same binary.
func commands(t *testing.T, prometheus *prom.Prometheus, w *sidecar.Sidecar) {
	t.Helper()
	run := 0
	for _, document := range []string{"docs/drop-the-cronjob.md"} {
		for _, b := range fenced.Read(t, document) {
			switch b.Kind {
			case "sh":
				continue
			case "sh prometheus":
				neighbour.Installed(t, "promtool", "prometheus")
			case "sh pod":
				if !inPod.MatchString(b.Text) {
					t.Errorf("%s:%d: not run in the watchdog's container: %s", document, b.Line, b.Text)
				}
			default:
				t.Errorf("%s:%d: nothing runs what is %q", document, b.Line, b.Kind)
			}
			for line := range strings.Lines(b.Text) {
				line = inPod.ReplaceAllString(line, sidecar.Binary(t)+" ")
				cmd := exec.Command("bash", "-euo", "pipefail", "-c", line)
				cmd.Env = append(os.Environ(), "PROMETHEUS="+prometheus.URL, "SVID_WATCHDOG_WATCHDOG_ADDRESS=http://"+w.Address)
				out, err := cmd.CombinedOutput()
				if err != nil || len(strings.TrimSpace(string(out))) == 0 {
					t.Errorf("%s:%d: %v, %q from %s", document, b.Line, err, out, line)
				}
				run++
			}
		}
	}
	if run < 6 {
		t.Errorf("only %d commands were run", run)
	}
}

// TestQueries: every query of every dashboard returns data; those about
// problems when a problem holds, and not before.
func TestQueries(t *testing.T) {
	t.Parallel()
	var targets []prom.Target
	var pods []*lab.Pod
	var watchdogs []*sidecar.Sidecar
	for i, version := range []string{"1.36.4", "1.40.0"} {
		pod, err := lab.Start(t.Context(), lab.Config{Issuer: lab.Tbot, TTL: ttl, Renewal: renewal, EnvoyPath: neighbour.Need(t, "envoy", version, "envoy")})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { pod.Close() })
		w := sidecar.Start(t, "--workload-api.address="+pod.SocketAddress(), "--credentials.dir="+pod.CredentialsDir(),
			"--envoy.admin-address="+pod.Envoy().AdminAddress(), "--handshake.address="+pod.Envoy().ListenerAddress(),
			"--envoy.poll-interval=500ms", "--envoy.budget=50", "--rotation.interval="+renewal.String(), "--rotation.grace=5s")
		pods, watchdogs = append(pods, pod), append(watchdogs, w)
		targets = append(targets, prom.Target{Address: w.Address, Labels: map[string]string{
			"namespace": "sock-shop", "pod": fmt.Sprintf("front-end-%d", i+1), "workload": "front-end", "node": fmt.Sprintf("node-%d", i+1),
		}})
	}
	prometheus := prom.Start(t, prom.Config{
		Jobs: map[string][]prom.Target{
			"svid-watchdog":      targets,
			"kube-state-metrics": {{Address: podsOfTheMesh(t, "front-end-1", "front-end-2")}},
		},
		Rules: prom.ShippedRules(t), Factor: factor,
	})
	for _, w := range watchdogs {
		w.Until(2*renewal+30*time.Second, "health and a verified rotation", func(v rotation.Verdict) bool {
			return v.State == rotation.Healthy && v.VerifiedRotations > 0
		})
	}

	var always, inTrouble []query
	for _, name := range []string{"fleet.json", "pod.json"} {
		for _, q := range read(t, name) {
			q.panel = name + ", " + q.panel
			if strings.Contains(q.expr, "svid_watchdog_problem") {
				inTrouble = append(inTrouble, q)
			} else {
				always = append(always, q)
			}
		}
	}
	if len(always) < 40 || len(inTrouble) != 4 {
		t.Fatalf("%d queries, and %d about problems", len(always), len(inTrouble))
	}
	for _, q := range always {
		neighbour.Until(t, 30*time.Second, "data for "+q.String(), func() bool { return len(answer(t, prometheus, q)) > 0 })
	}
	for _, q := range inTrouble {
		if samples := answer(t, prometheus, q); len(samples) > 0 {
			t.Errorf("%s: in two healthy pods: %v", q, samples)
		}
	}
	// Their values, where a wrong one is easily told.
	for expr, want := range map[string]float64{
		`sum(svid_watchdog_rotation_state{namespace=~"$namespace", workload=~"$workload", state="healthy"}) / count(svid_watchdog_build_info{namespace=~"$namespace", workload=~"$workload"})`: 1,
		`count(svid_watchdog_build_info{namespace=~"$namespace", workload=~"$workload"})`:                                                                                                      2,
	} {
		i := slices.IndexFunc(always, func(q query) bool { return q.expr == expr })
		if i < 0 {
			t.Errorf("no panel asks %s", expr)
			continue
		}
		neighbour.Until(t, 30*time.Second, fmt.Sprintf("%v from %s", want, always[i]), func() bool {
			samples := answer(t, prometheus, always[i])
			return len(samples) == 1 && samples[0].Value == want
		})
	}

	commands(t, prometheus, watchdogs[0])

	if err := pods[0].Inject(t.Context(), "files-complete"); err != nil {
		t.Fatal(err)
	}
	for _, q := range inTrouble {
		neighbour.Until(t, 30*time.Second, "data for "+q.String(), func() bool { return len(answer(t, prometheus, q)) > 0 })
	}
	// And still all the others.
	for _, q := range always {
		if len(answer(t, prometheus, q)) == 0 {
			t.Errorf("%s: no data any more", q)
		}
	}
}
