// Command dashboard-lint judges dashboards by the types that Grafana's
// developers generate from Grafana's own schemas: a field or an option that
// Grafana does not know, one of the wrong type and one that is missing are
// errors. It is a module of its own, as nothing else needs those types.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/cog/plugins"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
)

func main() {
	plugins.RegisterDefaultPlugins()
	code := 0
	for _, path := range os.Args[1:] {
		raw, err := os.ReadFile(path)
		if err == nil {
			err = judge(raw)
		}
		if err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", path, err)
			code = 1
		}
	}
	os.Exit(code)
}

func judge(raw []byte) error {
	if err := found(new(dashboard.Dashboard).UnmarshalJSONStrict(raw)); err != nil {
		return err
	}
	// The strict way leaves out every panel from what it has read.
	var d dashboard.Dashboard
	if err := json.Unmarshal(raw, &d); err != nil {
		return err
	}
	errs := []error{found(d.Validate())}
	// What is of no kind that is known was not judged above.
	for _, p := range d.Panels {
		if p.Panel == nil {
			continue
		}
		errs = append(errs, found(p.Panel.Validate()))
		if _, generic := p.Panel.Options.(map[string]any); generic {
			errs = append(errs, fmt.Errorf("panel %q: Grafana has no panel of the type %q", *p.Panel.Title, p.Panel.Type))
		}
		for _, t := range p.Panel.Targets {
			if t.DataqueryType() != "prometheus" {
				errs = append(errs, fmt.Errorf("panel %q: not a query for Prometheus, but for %q", *p.Panel.Title, t.DataqueryType()))
			}
		}
	}
	return errors.Join(errs...)
}

// found is nil for an empty list of errors, which is not nil by itself.
func found(err error) error {
	if list, ok := errors.AsType[cog.BuildErrors](err); ok && len(list) == 0 {
		return nil
	}
	return err
}
