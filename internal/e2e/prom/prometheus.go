package prom

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"go.yaml.in/yaml/v2"

	"svid-watchdog/internal/e2e/neighbour"
)

// In real life Prometheus scrapes and evaluates this often. What it finds older
// than lookback it takes to be gone.
const (
	scrapeInterval     = time.Minute
	evaluationInterval = 30 * time.Second
	lookback           = 5 * time.Minute
)

// Target is something to scrape, with the labels that its series get.
type Target struct {
	Address string
	Labels  map[string]string
}

// Config says what Prometheus does.
type Config struct {
	// Jobs are the targets by the name of their job.
	Jobs map[string][]Target
	// Rules are evaluated, if there are any.
	Rules Rules
	// Factor divides all durations; 1 if zero.
	Factor int
	// Alertmanager is told of alerts, if there is one.
	Alertmanager *Alertmanager
	// Elsewhere has it run in another network namespace.
	Elsewhere *Elsewhere
}

// Elsewhere is another network namespace than the test's.
type Elsewhere struct {
	// Command is put before the command line, and runs it there.
	Command []string
	// Listen is the address to serve at there, Reach is where the test finds it.
	Listen, Reach string
}

// Prometheus is a running Prometheus.
type Prometheus struct {
	*neighbour.Process

	// URL is where it serves.
	URL string

	t testing.TB
}

type static struct {
	Targets []string          `yaml:"targets"`
	Labels  map[string]string `yaml:"labels,omitempty"`
}

type job struct {
	Name        string   `yaml:"job_name"`
	Static      []static `yaml:"static_configs"`
	HonorLabels bool     `yaml:"honor_labels"`
}

// Start starts a Prometheus, which ends with the test.
func Start(t testing.TB, cfg Config) *Prometheus {
	t.Helper()
	path := neighbour.Installed(t, "prometheus", "prometheus")
	factor := max(cfg.Factor, 1)
	dir := t.TempDir()
	config := struct {
		Global   map[string]model.Duration `yaml:"global"`
		Rules    []string                  `yaml:"rule_files,omitempty"`
		Alerting map[string]any            `yaml:"alerting,omitempty"`
		Scrape   []job                     `yaml:"scrape_configs"`
	}{Global: map[string]model.Duration{
		"scrape_interval":     model.Duration(scrapeInterval) / model.Duration(factor),
		"scrape_timeout":      min(model.Duration(10*time.Second), model.Duration(scrapeInterval)/model.Duration(factor)),
		"evaluation_interval": model.Duration(evaluationInterval) / model.Duration(factor),
	}}
	if len(cfg.Rules.Groups) > 0 {
		rules, err := cfg.Rules.Faster(factor)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, "rules.yaml")
		write(t, file, rules)
		config.Rules = []string{file}
	}
	if cfg.Alertmanager != nil {
		config.Alerting = map[string]any{"alertmanagers": []any{
			map[string]any{"static_configs": []static{{Targets: []string{cfg.Alertmanager.Address}}}},
		}}
	}
	for name, targets := range cfg.Jobs {
		j := job{Name: name, HonorLabels: true}
		for _, target := range targets {
			j.Static = append(j.Static, static{Targets: []string{target.Address}, Labels: target.Labels})
		}
		config.Scrape = append(config.Scrape, j)
	}
	file := filepath.Join(dir, "prometheus.yaml")
	write(t, file, config)

	return start(t, path, file, factor, cfg.Elsewhere)
}

// StartFile starts a Prometheus with a configuration file.
func StartFile(t testing.TB, file string) *Prometheus {
	t.Helper()
	return start(t, neighbour.Installed(t, "prometheus", "prometheus"), file, 1, nil)
}

func start(t testing.TB, path, file string, factor int, elsewhere *Elsewhere) *Prometheus {
	t.Helper()
	if elsewhere == nil {
		address := neighbour.Address(t)
		elsewhere = &Elsewhere{Listen: address, Reach: address}
	}
	p := &Prometheus{t: t, URL: "http://" + elsewhere.Reach}
	command := append(slices.Clone(elsewhere.Command), path, "--config.file="+file, "--storage.tsdb.path="+filepath.Join(t.TempDir(), "data"),
		"--web.listen-address="+elsewhere.Listen, "--query.lookback-delta="+(lookback/time.Duration(factor)).String(),
		"--rules.alert.resend-delay="+(time.Minute/time.Duration(factor)).String())
	p.Process = neighbour.Start(t, command[0], command[1:]...)
	ready(t, p.URL, p.Process)
	return p
}

// Sample is one value of an answer.
type Sample struct {
	Labels map[string]string
	Value  float64
}

// Query asks for the present value of an expression.
func (p *Prometheus) Query(expr string) ([]Sample, error) {
	var answer struct {
		ResultType string          `json:"resultType"`
		Result     json.RawMessage `json:"result"`
	}
	if err := p.get("/api/v1/query?query="+url.QueryEscape(expr), &answer); err != nil {
		return nil, fmt.Errorf("query %s: %w", expr, err)
	}
	switch answer.ResultType {
	case "vector":
		var vector []struct {
			Metric map[string]string `json:"metric"`
			Value  sampleValue       `json:"value"`
		}
		if err := json.Unmarshal(answer.Result, &vector); err != nil {
			return nil, fmt.Errorf("query %s: %w", expr, err)
		}
		samples := make([]Sample, 0, len(vector))
		for _, v := range vector {
			samples = append(samples, Sample{Labels: v.Metric, Value: float64(v.Value)})
		}
		return samples, nil
	case "scalar":
		var value sampleValue
		if err := json.Unmarshal(answer.Result, &value); err != nil {
			return nil, fmt.Errorf("query %s: %w", expr, err)
		}
		return []Sample{{Value: float64(value)}}, nil
	default:
		return nil, fmt.Errorf("query %s: the answer is a %s, neither a vector nor a scalar", expr, answer.ResultType)
	}
}

// sampleValue is a pair of a time and a number that is written as a string.
type sampleValue float64

// UnmarshalJSON implements json.Unmarshaler.
func (v *sampleValue) UnmarshalJSON(text []byte) error {
	var pair [2]any
	if err := json.Unmarshal(text, &pair); err != nil {
		return err
	}
	number, _ := pair[1].(string)
	f, err := strconv.ParseFloat(number, 64)
	*v = sampleValue(f)
	return err
}

// MustQuery is Query, and fails the test where it does not answer.
func (p *Prometheus) MustQuery(expr string) []Sample {
	p.t.Helper()
	samples, err := p.Query(expr)
	if err != nil {
		p.t.Fatal(err)
	}
	return samples
}

// Alert is an alert that is pending or firing.
type Alert struct {
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
	State       string            `json:"state"`
}

// Alerts are the alerts that are pending or firing now.
func (p *Prometheus) Alerts() []Alert {
	p.t.Helper()
	var answer struct {
		Alerts []Alert `json:"alerts"`
	}
	if err := p.get("/api/v1/alerts", &answer); err != nil {
		p.t.Fatal(err)
	}
	return answer.Alerts
}

// Targets are the labels of the targets that are scraped, by scrape URL.
func (p *Prometheus) Targets() map[string]map[string]string {
	p.t.Helper()
	var answer struct {
		Active []struct {
			ScrapeURL string            `json:"scrapeUrl"`
			Labels    map[string]string `json:"labels"`
		} `json:"activeTargets"`
	}
	if err := p.get("/api/v1/targets?state=active", &answer); err != nil {
		p.t.Fatal(err)
	}
	targets := make(map[string]map[string]string)
	for _, a := range answer.Active {
		targets[a.ScrapeURL] = a.Labels
	}
	return targets
}

func (p *Prometheus) get(path string, data any) error {
	body, err := fetch(p.t, p.URL+path)
	if err != nil {
		return err
	}
	answer := struct {
		Status string `json:"status"`
		Error  string `json:"error"`
		Data   any    `json:"data"`
	}{Data: data}
	if err := json.Unmarshal(body, &answer); err != nil {
		return fmt.Errorf("read the answer of Prometheus: %w", err)
	}
	if answer.Status != "success" {
		return fmt.Errorf("the answer of Prometheus: %s", answer.Error)
	}
	return nil
}

// fetch is the body of an answer, whatever its status.
func fetch(t testing.TB, address string) ([]byte, error) {
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	return io.ReadAll(response.Body)
}

func ready(t testing.TB, base string, p *neighbour.Process) {
	t.Helper()
	neighbour.Until(t, 30*time.Second, filepath.Base(p.Cmd.Path)+" to be ready", func() bool {
		select {
		case <-p.Exited:
			t.Fatalf("it ended at its start: %s", p)
		default:
		}
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, base+"/-/ready", nil)
		if err != nil {
			t.Fatal(err)
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			return false
		}
		response.Body.Close()
		return response.StatusCode == http.StatusOK
	}, p)
}

func write(t testing.TB, path string, content any) {
	t.Helper()
	text, err := yaml.Marshal(content)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
}
