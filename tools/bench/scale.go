package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"svid-watchdog/internal/freeport"
)

// scrapeInterval is how often the fleet is scraped.
const scrapeInterval = 30 * time.Second

// scalePart lets a real Prometheus scrape a fleet: pages of a real watchdog,
// with the labels of so many pods.
func scalePart(ctx context.Context, b *bench) (string, error) {
	prometheus, err := exec.LookPath("prometheus")
	if err != nil {
		return "", errors.New("there is no prometheus here, install Debian's package")
	}
	page, err := os.ReadFile(filepath.Join(b.root, "internal/metrics/testdata/healthy.prom"))
	if err != nil {
		return "", err
	}
	// The values of process_* are left out in the golden file.
	text := regexp.MustCompile(`(?m)^(process_\S+) X$`).ReplaceAllString(string(page), "$1 17000000")

	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	fleet := &http.Server{Handler: pages(text), ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = fleet.Serve(listener) }() // ends with Close
	defer fleet.Close()

	t := newTable("pods", "memory, a pod", "series", "resident", "CPU of Prometheus", "rules, one evaluation of all", "slowest query of the dashboard", "all queries of the dashboard")
	for i, n := range b.fleets {
		log.Printf("a fleet of %d pods", n)
		d := b.fleetFor
		if i < len(b.fleets)-1 {
			d = b.fleetFor / 2
		}
		row, err := b.fleet(ctx, prometheus, listener.Addr().String(), n, d)
		if err != nil {
			return "", err
		}
		t.add(row...)
	}
	return t.String() + "\n" + b.questions().note, nil
}

// pages answers for every pod, with a start that is that pod's own.
func pages(text string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4")
		_, _ = w.Write([]byte(text)) // the scraper hung up
	})
}

// targets writes the pods that are there, of which the first so many are new.
func targets(path, address string, pods, replaced int) error {
	type target struct {
		Targets []string          `json:"targets"`
		Labels  map[string]string `json:"labels"`
	}
	all := make([]target, pods)
	for i := range all {
		generation := 0
		if i < replaced {
			generation = 1
		}
		workload := fmt.Sprintf("service-%d", i/20) // twenty pods each
		pod := fmt.Sprintf("%s-%d-%d", workload, i, generation)
		all[i] = target{[]string{address}, map[string]string{
			"__metrics_path__": fmt.Sprintf("/%s", pod), "instance": pod, "pod": pod, "workload": workload,
			"namespace": fmt.Sprintf("namespace-%d", i/400), "node": fmt.Sprintf("node-%d", i/50), "container": "svid-watchdog",
		}}
	}
	text, err := json.Marshal(all)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", text, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

func (b *bench) fleet(ctx context.Context, prometheus, address string, pods int, d time.Duration) ([]any, error) {
	dir := filepath.Join(b.scratch, fmt.Sprintf("fleet-%d", pods))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	discovery := filepath.Join(dir, "pods.json")
	if err := targets(discovery, address, pods, 0); err != nil {
		return nil, err
	}
	config := fmt.Sprintf("global: {scrape_interval: %s, evaluation_interval: %[1]s}\nscrape_configs:\n- job_name: svid-watchdog\n  file_sd_configs: [{files: [%[2]q], refresh_interval: 5s}]\n",
		scrapeInterval, discovery)
	rules := filepath.Join(b.root, "deploy/prometheus/rules.yaml")
	_, missing := os.Stat(rules)
	if missing == nil {
		config += fmt.Sprintf("rule_files: [%q]\n", rules)
	}
	path := filepath.Join(dir, "prometheus.yml")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		return nil, err
	}
	listen, err := freeport.Address()
	if err != nil {
		return nil, err
	}
	p, err := start(prometheus, "--config.file="+path, "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+listen)
	if err != nil {
		return nil, err
	}
	defer p.stop()
	base := "http://" + listen
	if err := until(ctx, time.Minute, "Prometheus", func() bool {
		_, err := get(ctx, base+"/-/ready")
		return err == nil
	}); err != nil {
		return nil, fmt.Errorf("%w: %s", err, p.log.String())
	}
	before, err := cpu(p.pid())
	if err != nil {
		return nil, err
	}
	if err := wait(ctx, d*2/3); err != nil {
		return nil, err
	}
	if err := targets(discovery, address, pods, pods/10); err != nil {
		return nil, err
	}
	if err := wait(ctx, d/3); err != nil {
		return nil, err
	}
	after, err := cpu(p.pid())
	if err != nil {
		return nil, err
	}
	seen, err := look(p.pid())
	if err != nil {
		return nil, err
	}
	own, err := get(ctx, base+"/metrics")
	if err != nil {
		return nil, err
	}
	heads := value(own, "prometheus_tsdb_head_series")
	if heads < float64(pods)*50 {
		return nil, fmt.Errorf("only %.0f series of %d pods: %s", heads, pods, oneLine(p.log.String()))
	}
	evaluation := "there are no rules in deploy/prometheus"
	if missing == nil {
		var sum float64
		groups := 0
		for line := range strings.Lines(own) {
			if name, rest, ok := strings.Cut(line, "} "); ok && strings.HasPrefix(name, "prometheus_rule_group_last_duration_seconds{") {
				sum += value("x "+rest, "x")
				groups++
			}
		}
		evaluation = fmt.Sprintf("%.0f ms in %d groups", 1000*sum, groups)
	}
	var slowest, all time.Duration
	q := b.questions()
	for _, expression := range q.expressions {
		began := time.Now()
		if _, err := get(ctx, base+"/api/v1/query?query="+url.QueryEscape(expression)); err != nil {
			return nil, fmt.Errorf("query %s: %w", expression, err)
		}
		took := time.Since(began)
		slowest, all = max(slowest, took), all+took
	}
	return []any{
		pods, fmt.Sprintf("%.0f KiB", seen.resident/float64(pods)), fmt.Sprintf("%.0f", heads), fmt.Sprintf("%.0f MiB", seen.resident/1024),
		fmt.Sprintf("%.0f %% of a core", 100*float64(after-before)/float64(d)), evaluation, ms(slowest), fmt.Sprintf("%s for %d", ms(all), len(q.expressions)),
	}, nil
}

// questions are what a dashboard asks.
type questions struct {
	expressions []string
	note        string
}

var (
	variable = regexp.MustCompile(`\$\{?(\w+)(?::\w+)?\}?`)
	duration = regexp.MustCompile(`^__(rate_)?(interval|range)`)
)

// questions returns those of the dashboards in deploy, or else such as people
// ask of the contract's metrics.
func (b *bench) questions() questions {
	seen := make(map[string]bool)
	var all []string
	var walk func(any)
	walk = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			if e, ok := v["expr"].(string); ok {
				e = variable.ReplaceAllStringFunc(e, func(m string) string {
					if duration.MatchString(variable.FindStringSubmatch(m)[1]) {
						return "5m"
					}
					return ".*"
				})
				if !seen[e] {
					seen[e] = true
					all = append(all, e)
				}
			}
			for _, child := range v {
				walk(child)
			}
		case []any:
			for _, child := range v {
				walk(child)
			}
		}
	}
	_ = filepath.WalkDir(filepath.Join(b.root, "deploy"), func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() || filepath.Ext(path) != ".json" {
			return nil //nolint:nilerr // what cannot be read has no queries
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return nil //nolint:nilerr // as above
		}
		var document any
		if json.Unmarshal(text, &document) == nil {
			walk(document)
		}
		return nil
	})
	if len(all) > 0 {
		slices.Sort(all)
		return questions{all, "The queries are those of the dashboards in deploy/.\n"}
	}
	return questions{[]string{
		`sum by (state) (svid_watchdog_rotation_state)`,
		`sum by (problem) (svid_watchdog_problem) > 0`,
		`svid_watchdog_problem == 1`,
		`min by (namespace) (svid_watchdog_certificate_not_after_timestamp_seconds{stage="loaded"} - time())`,
		`sum by (namespace, workload) (increase(svid_watchdog_verified_rotations_total[1h]))`,
		`histogram_quantile(0.9, count_values("le", floor(time() - svid_watchdog_certificate_not_before_timestamp_seconds{stage="loaded"})))`,
		`topk(10, svid_watchdog_envoy_admin_seconds_total)`,
		`sum(process_resident_memory_bytes)`,
	}, "There is no dashboard in deploy/: the queries are such as people ask of these metrics.\n"}
}
