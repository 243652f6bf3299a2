package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"svid-watchdog/internal/e2e/neighbour"
)

var directory = filepath.Join("..", "..", "deploy", "grafana")

// TestCommitted: deploy/grafana is what the sources here say.
func TestCommitted(t *testing.T) {
	written := files()
	for name, want := range written {
		got, err := os.ReadFile(filepath.Join(directory, name))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("deploy/grafana/%s is not what its source says: run `make dashboards`", name)
		}
	}
	there, err := filepath.Glob(filepath.Join(directory, "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range there {
		if written[filepath.Base(path)] == nil {
			t.Errorf("%s has no source here", path)
		}
	}
}

// TestKnownToGrafana: Grafana's own types know each field and option.
func TestKnownToGrafana(t *testing.T) {
	lint := neighbour.Need(t, "bin", "dashboard-lint")
	judge := func(content []byte) (string, error) {
		path := filepath.Join(t.TempDir(), "dashboard.json")
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(lint, path).CombinedOutput()
		return string(out), err
	}
	for name, content := range files() {
		if out, err := judge(content); err != nil {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
	// It finds what is wrong.
	for _, wrong := range []struct{ from, to, finding string }{
		{`"cellHeight"`, `"cellHight"`, "unexpected field 'cellHight'"},
		{`"legendFormat"`, `"legend"`, "unexpected field 'legend'"},
		{`"bargauge"`, `"bargage"`, "no panel of the type"},
		{`"h": 4`, `"h": 0`, "must be > 0"},
		{`"textMode": "auto"`, `"textMode": 3`, "cannot unmarshal number"},
	} {
		spoiled := bytes.ReplaceAll(files()["fleet.json"], []byte(wrong.from), []byte(wrong.to))
		if out, err := judge(spoiled); err == nil || !strings.Contains(out, wrong.finding) {
			t.Errorf("%s in place of %s: %v, found %q, not %q", wrong.to, wrong.from, err, out, wrong.finding)
		}
	}
}

var (
	// selector is a metric with its matchers, if any.
	selector = regexp.MustCompile(`\b((?:(?:[a-z]+:)?svid_watchdog|process)_[a-z0-9_:]+)(\{[^}]*\})?`)
	rated    = regexp.MustCompile(`\b(rate|increase)\(([a-z_:]+)(?:\{[^}]*\})?\[([^\]]+)\]\)`)
	used     = regexp.MustCompile(`\$\{?([a-z_]+)`)
)

// metrics are those that the watchdog serves, by docs/metrics.md, and those
// that deploy/prometheus/rules.yaml records.
func metrics(t *testing.T) map[string]string {
	t.Helper()
	document, err := os.ReadFile(filepath.Join("..", "..", "docs", "metrics.md"))
	if err != nil {
		t.Fatal(err)
	}
	rules, err := os.ReadFile(filepath.Join("..", "..", "deploy", "prometheus", "rules.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	kinds := make(map[string]string)
	for _, record := range regexp.MustCompile(`(?m)^  - record: (\S+)$`).FindAllStringSubmatch(string(rules), -1) {
		kinds[record[1]] = "gauge"
	}
	for _, row := range regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\| ([a-z]+) ").FindAllStringSubmatch(string(document), -1) {
		kinds[row[1]] = row[2]
	}
	if len(kinds) < 30 {
		t.Fatalf("only %d metrics were found", len(kinds))
	}
	return kinds
}

// TestManners are the rules of Grafana's dashboard-linter, as far as they are
// of use here, and some of our own. Of its rules these are not kept, for a
// reason: variables for job and instance, as namespace, workload and pod tell
// more; and a refresh of variables that only a change of time sets off.
func TestManners(t *testing.T) {
	kinds := metrics(t)
	uids := make(map[string]bool)
	for _, d := range []dashboard{fleet(), pod()} {
		if uids[d.UID] || !regexp.MustCompile(`^[a-z-]{1,40}$`).MatchString(d.UID) {
			t.Errorf("%s: no unique and plain UID: %q", d.Title, d.UID)
		}
		uids[d.UID] = true
		if d.Editable {
			t.Errorf("%s: is edited in Grafana, where the change is lost", d.Title)
		}
		if first := d.Templating.List[0]; first.Type != "datasource" || first.Name != "datasource" || first.Query != "prometheus" {
			t.Errorf("%s: the data source cannot be chosen: %+v", d.Title, first)
		}

		text, err := json.Marshal(d)
		if err != nil {
			t.Fatal(err)
		}
		var variables []string
		for _, v := range d.Templating.List {
			variables = append(variables, v.Name)
			if v.Type == "query" && (v.Datasource == nil || v.Datasource.UID != "${datasource}") {
				t.Errorf("%s: the variable %s comes from a fixed data source", d.Title, v.Name)
			}
		}
		for _, use := range used.FindAllStringSubmatch(string(text), -1) {
			if !slices.Contains(variables, use[1]) && !strings.HasPrefix(use[1], "__") {
				t.Errorf("%s: uses the variable %s, which it does not have", d.Title, use[1])
			}
		}

		titles := make(map[string]bool)
		taken := make(map[[2]int]string)
		for _, p := range d.Panels {
			for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
				for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
					if other := taken[[2]int{x, y}]; other != "" || x >= 24 {
						t.Fatalf("%s: %q lies on %q, or beyond the edge", d.Title, p.Title, other)
					}
					taken[[2]int{x, y}] = p.Title
				}
			}
			if p.Title == "" || titles[p.Title] {
				t.Errorf("%s: the title %q is empty or taken", d.Title, p.Title)
			}
			titles[p.Title] = true
			if p.Type == "row" {
				continue
			}
			if p.Description == "" || !strings.HasSuffix(p.Description, ".") {
				t.Errorf("%s, %s: needs a description in sentences", d.Title, p.Title)
			}
			if p.FieldConfig.Defaults.Unit == "" || p.Datasource.UID != "${datasource}" || len(p.Targets) == 0 {
				t.Errorf("%s, %s: needs a unit, the data source of the variable, and a query", d.Title, p.Title)
			}
			for _, q := range p.Targets {
				if q.Datasource.UID != "${datasource}" {
					t.Errorf("%s, %s: a fixed data source: %s", d.Title, p.Title, q.Expr)
				}
				if q.Instant == q.Range {
					t.Errorf("%s, %s: neither now nor over time: %s", d.Title, p.Title, q.Expr)
				}
				if (q.LegendFormat == "") != (q.Format == "table") {
					t.Errorf("%s, %s: a series has no legend, or a table has one: %s", d.Title, p.Title, q.Expr)
				}
				if strings.Count(q.Expr, "(") != strings.Count(q.Expr, ")") {
					t.Errorf("%s, %s: parentheses do not match: %s", d.Title, p.Title, q.Expr)
				}
				inside := make(map[string]bool)
				for _, r := range rated.FindAllStringSubmatch(q.Expr, -1) {
					inside[r[2]] = true
					if kinds[r[2]] != "counter" {
						t.Errorf("%s, %s: %s of %s, which is no counter", d.Title, p.Title, r[1], r[2])
					}
					// Over a fixed time where the title says so.
					if r[3] != "$__rate_interval" && (r[1] != "increase" || r[3] != "1h" || !strings.Contains(p.Title, "one hour")) {
						t.Errorf("%s, %s: %s over %s", d.Title, p.Title, r[1], r[3])
					}
				}
				found := selector.FindAllStringSubmatch(q.Expr, -1)
				if len(found) == 0 {
					t.Errorf("%s, %s: no metric of ours in %s", d.Title, p.Title, q.Expr)
				}
				for _, s := range found {
					kind, known := kinds[s[1]]
					if !known {
						t.Errorf("%s, %s: there is no metric %s", d.Title, p.Title, s[1])
					}
					if kind == "counter" && !inside[s[1]] {
						t.Errorf("%s, %s: the counter %s without rate or increase", d.Title, p.Title, s[1])
					}
					if !strings.Contains(s[2], "$namespace") {
						t.Errorf("%s, %s: %s of all namespaces", d.Title, p.Title, s[1])
					}
				}
			}
		}
	}
}
