package prom

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"go.yaml.in/yaml/v2"

	"svid-watchdog/internal/e2e/neighbour"
)

// Rules is a rules file of Prometheus.
type Rules struct {
	Groups []Group `yaml:"groups"`
}

// Group is a group of rules.
type Group struct {
	Name     string         `yaml:"name"`
	Interval model.Duration `yaml:"interval,omitempty"`
	Rules    []Rule         `yaml:"rules"`
}

// Rule is an alert or a recording rule.
type Rule struct {
	Record      string            `yaml:"record,omitempty"`
	Alert       string            `yaml:"alert,omitempty"`
	Expr        string            `yaml:"expr"`
	For         model.Duration    `yaml:"for,omitempty"`
	KeepFiring  model.Duration    `yaml:"keep_firing_for,omitempty"`
	Labels      map[string]string `yaml:"labels,omitempty"`
	Annotations map[string]string `yaml:"annotations,omitempty"`
}

// Dir is the directory of what is shipped for Prometheus.
func Dir(t testing.TB) string {
	t.Helper()
	return filepath.Join(neighbour.Root(t), "deploy", "prometheus")
}

// ShippedRules are the rules that are shipped.
func ShippedRules(t testing.TB) Rules {
	t.Helper()
	path := filepath.Join(Dir(t), "rules.yaml")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var rules Rules
	if err := yaml.UnmarshalStrict(text, &rules); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return rules
}

// Alerts are the alerts among the rules.
func (r Rules) Alerts() []Rule {
	var alerts []Rule
	for _, g := range r.Groups {
		for _, rule := range g.Rules {
			if rule.Alert != "" {
				alerts = append(alerts, rule)
			}
		}
	}
	return alerts
}

// inExpression finds the durations of an expression: ranges, with the step of a
// subquery, and offsets.
var (
	inExpression = regexp.MustCompile(`\[[^\]]*\]|\boffset\s+\S+`)
	duration     = regexp.MustCompile(`\b(?:\d+(?:ms|[smhdwy]))+\b`)
)

// Durations are the durations that an expression names, as they are written.
func Durations(expr string) []string {
	var found []string
	for _, part := range inExpression.FindAllString(expr, -1) {
		found = append(found, duration.FindAllString(part, -1)...)
	}
	return found
}

// Faster divides every duration of the rules by a factor.
func (r Rules) Faster(factor int) (Rules, error) {
	var faster Rules
	for _, g := range r.Groups {
		g.Interval /= model.Duration(factor)
		var rules []Rule
		for _, rule := range g.Rules {
			rule.For /= model.Duration(factor)
			rule.KeepFiring /= model.Duration(factor)
			var failed error
			rule.Expr = inExpression.ReplaceAllStringFunc(rule.Expr, func(part string) string {
				return duration.ReplaceAllStringFunc(part, func(text string) string {
					d, err := model.ParseDuration(text)
					if err == nil && time.Duration(d)/time.Duration(factor) < time.Millisecond {
						err = fmt.Errorf("%s divided by %d is nothing", text, factor)
					}
					if err != nil {
						failed = err
					}
					return (d / model.Duration(factor)).String()
				})
			})
			if failed != nil {
				return Rules{}, fmt.Errorf("make %s%s faster: %w", rule.Record, rule.Alert, failed)
			}
			rules = append(rules, rule)
		}
		g.Rules = rules
		faster.Groups = append(faster.Groups, g)
	}
	return faster, nil
}
