package metrics_test

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"

	"svid-watchdog/internal/contract"
)

// TestDocument: docs/metrics.md is what a scrape of a pod says in which
// everything was seen.
func TestDocument(t *testing.T) {
	families, err := registry(everything).Gather()
	if err != nil {
		t.Fatal(err)
	}
	if problems, err := promlint.NewWithMetricFamilies(families).Lint(); err != nil || len(problems) > 0 {
		t.Errorf("%v %v", err, problems)
	}
	want := document(families)
	path := filepath.Join("..", "..", "docs", "metrics.md")
	if contract.Update() {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil { //nolint:gosec // a document
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Error("docs/metrics.md is not what the code does; write it anew with: go test ./internal/metrics -run TestDocument -update")
	}
}

// TestContract: names, types, labels and the closed sets of their values, upon
// which dashboards and alerts are built.
func TestContract(t *testing.T) {
	families, err := registry(everything).Gather()
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, f := range families {
		fmt.Fprintf(&b, "%s %s\n", f.GetName(), strings.ToLower(f.GetType().String()))
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				value := " = " + l.GetValue()
				if free := []string{"build_info", "identity_info"}; slices.Contains(free, strings.TrimPrefix(f.GetName(), "svid_watchdog_")) {
					value = ""
				}
				fmt.Fprintf(&b, "%s %s%s\n", f.GetName(), l.GetName(), value)
			}
		}
	}
	contract.Hold(t, filepath.Join("..", "..", "docs", "contract", "metrics.txt"), b.String())
}

const introduction = `# Metrics

What ` + "`/metrics`" + ` serves; this page is written by a test from the code. The names change only with a major version.
Every counter, problem and state exists from the start. What was never seen is absent: never 0, and never healthy.
No serial number and no content of a file is ever a label. ` + "`--web.runtime-metrics`" + ` adds those of the Go runtime.

`

func document(families []*dto.MetricFamily) string {
	var b strings.Builder
	b.WriteString(introduction)
	b.WriteString("| metric | type | labels | meaning |\n|---|---|---|---|\n")
	series := 0
	for _, f := range families {
		series += len(f.GetMetric())
		values := make(map[string]map[string]bool)
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if values[l.GetName()] == nil {
					values[l.GetName()] = make(map[string]bool)
				}
				values[l.GetName()][l.GetValue()] = true
			}
		}
		var labels []string
		for _, name := range slices.Sorted(maps.Keys(values)) {
			text := "`" + name + "`"
			switch {
			case name == "problem":
				text += " ([faults.md](faults.md))"
			case len(values[name]) > 1:
				text += ": " + strings.Join(slices.Sorted(maps.Keys(values[name])), ", ")
			}
			labels = append(labels, text)
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", f.GetName(), strings.ToLower(f.GetType().String()), strings.Join(labels, "; "), f.GetHelp())
	}
	fmt.Fprintf(&b, "\nThat is %d series of a pod in which everything was seen, the handshake included.\n", series)
	return b.String()
}
