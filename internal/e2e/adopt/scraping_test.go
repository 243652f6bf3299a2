package adopt

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"svid-watchdog/internal/e2e/fenced"
)

// merged are the annotations by which Istio points Prometheus to its agent.
var merged = map[string]string{"prometheus.io/scrape": "true", "prometheus.io/port": "15020", "prometheus.io/path": "/stats/prometheus"}

// target is something that the agent scrapes.
type target struct {
	Port string `json:"port"`
	Path string `json:"path"`
}

// scraped is what Istio's agent will scrape, by the environment of istio-proxy.
type scraped struct {
	target

	Targets []target `json:"targets"`
}

// TestScrapeAnnotations shows with the real injector what each annotation of
// docs/scraping.md comes out as.
func TestScrapeAnnotations(t *testing.T) {
	plane := controlPlane(t)
	// The two templates of the document: what works from one, and what does not.
	text, err := os.ReadFile(ours)
	if err != nil {
		t.Fatal(err)
	}
	var template string
	for _, b := range fenced.Read(t, "docs/scraping.md") {
		if b.Kind == "yaml template" {
			template += b.Text
		}
	}
	if !strings.Contains(template, "scrape-targets") {
		t.Fatal("docs/scraping.md has no template")
	}
	more := `        merging: |
` + indent(template, 10) + `        excluding: |
          metadata:
            annotations:
              traffic.sidecar.istio.io/excludeInboundPorts: "7777"
`
	operator := filepath.Join(t.TempDir(), "istio-config.yaml")
	if err := os.WriteFile(operator, append(slices.Clone(text), more...), 0o600); err != nil {
		t.Fatal(err)
	}
	configure(t, plane, templatesAfter+",merging", watched, operator)

	const (
		targets = "prometheus.istio.io/scrape-targets"
		exclude = "traffic.sidecar.istio.io/excludeInboundPorts"
	)
	own := target{"9816", "/metrics"}
	app := target{"8080", "/app"}
	appNotes := map[string]string{"prometheus.io/scrape": "true", "prometheus.io/port": "8080", "prometheus.io/path": "/app"}
	for _, tt := range []struct {
		name        string
		templates   string
		annotations map[string]string
		want        map[string]string // the annotations for Prometheus
		scraped     *scraped          // nil: Envoy and the agent alone
		excluded    string            // ports that are not redirected, beside Istio's own
		refused     string
	}{
		{name: "nothing asked for", want: merged, excluded: "9816"},
		{name: "the mesh's port and the pod's own", annotations: map[string]string{exclude: "7777"}, want: merged, excluded: "7777"},
		{name: "both in the pod's list", annotations: map[string]string{exclude: "7777,9816"}, want: merged, excluded: "7777,9816"},
		{name: "excluded by a template", templates: ",excluding", want: merged, excluded: "9816"},

		{name: "the application alone", annotations: appNotes, want: merged, scraped: &scraped{target: app}, excluded: "9816"},
		{name: "the watchdog alone", annotations: map[string]string{"prometheus.io/port": "9816"}, want: merged, scraped: &scraped{target: target{Port: "9816"}}, excluded: "9816"},
		{name: "no merging", annotations: with(appNotes, "prometheus.istio.io/merge-metrics", "false"), want: appNotes, excluded: "9816"},
		{name: "not to be scraped", annotations: map[string]string{"prometheus.io/scrape": "false", targets: "9816:/metrics"},
			want: map[string]string{"prometheus.io/scrape": "false", targets: "9816:/metrics"}, excluded: "9816"},

		{name: "both as targets", annotations: map[string]string{targets: "8080:/app,9816:/metrics"}, want: merged,
			scraped: &scraped{app, []target{app, own}}, excluded: "9816"},
		{name: "the path may be left out", annotations: map[string]string{targets: "8080:/app,9816"}, want: merged,
			scraped: &scraped{app, []target{app, own}}, excluded: "9816"},
		// The list takes the place of the port and the path.
		{name: "a target takes the application's place", annotations: with(appNotes, targets, "9816:/metrics"), want: merged,
			scraped: &scraped{own, []target{own}}, excluded: "9816"},
		{name: "a reserved port", annotations: map[string]string{targets: "15020:/metrics"}, refused: "conflicts with agent port"},

		{name: "by a template", templates: ",merging", want: merged, scraped: &scraped{own, []target{own}}, excluded: "9816"},
		{name: "by a template, beside the application", templates: ",merging", annotations: appNotes, want: merged,
			scraped: &scraped{app, []target{app, own}}, excluded: "9816"},
		{name: "by a template, beside an application with the default path", templates: ",merging", annotations: map[string]string{"prometheus.io/port": "8080"}, want: merged,
			scraped: &scraped{target{"8080", "/metrics"}, []target{{"8080", "/metrics"}, own}}, excluded: "9816"},
		{name: "by a template, and the pod has a list", templates: ",merging", annotations: map[string]string{targets: "8080:/app,9816:/metrics"}, want: merged,
			scraped: &scraped{app, []target{app, own}}, excluded: "9816"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			annotations := with(tt.annotations, "inject.istio.io/templates", templatesAfter+tt.templates)
			annotations["sidecar.istio.io/nativeSidecar"] = "false"
			p, err := try(t.Context(), plane, annotations)
			if tt.refused != "" {
				if err == nil || !strings.Contains(err.Error(), tt.refused) {
					t.Errorf("%v, not %q", err, tt.refused)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			got := maps.Clone(p.Metadata.Annotations)
			maps.DeleteFunc(got, func(name, _ string) bool {
				return !strings.HasPrefix(name, "prometheus.io/") && name != targets
			})
			if !maps.Equal(got, tt.want) {
				t.Errorf("annotations %v, not %v", got, tt.want)
			}
			env := environment(t, p)
			switch {
			case env == "" && tt.scraped != nil:
				t.Errorf("the agent scrapes nothing, not %v", *tt.scraped)
			case env != "":
				var agent scraped
				if err := json.Unmarshal([]byte(env), &agent); err != nil {
					t.Fatalf("%v: %s", err, env)
				}
				if tt.scraped == nil || agent.target != tt.scraped.target || !slices.Equal(agent.Targets, tt.scraped.Targets) {
					t.Errorf("the agent scrapes %s, not %v", env, tt.scraped)
				}
			}
			if got := excluded(t, p); got != tt.excluded {
				t.Errorf("not redirected are %q, not %q", got, tt.excluded)
			}
		})
	}
}

func with(annotations map[string]string, name, value string) map[string]string {
	more := map[string]string{name: value}
	maps.Copy(more, annotations)
	return more
}

// environment is how Istio's agent is told what to scrape.
func environment(t *testing.T, p pod) string {
	t.Helper()
	proxy := p.container("istio-proxy")
	if proxy == nil {
		t.Fatal("no istio-proxy")
	}
	for _, e := range proxy.Env {
		if e.Name == "ISTIO_PROMETHEUS_ANNOTATIONS" {
			return e.Value
		}
	}
	return ""
}

// excluded are the ports that istio-init does not redirect to Envoy; those of
// Istio itself, among them the agent's 15020, must always be there.
func excluded(t *testing.T, p pod) string {
	t.Helper()
	init := p.container("istio-init")
	if init == nil {
		t.Fatal("no istio-init")
	}
	args := strings.Join(init.Args, " ")
	list := regexp.MustCompile(` -d (\S+)`).FindStringSubmatch(args)
	if list == nil {
		t.Fatalf("istio-init excludes no ports: %s", args)
	}
	var ports []string
	istios := 0
	for port := range strings.SplitSeq(list[1], ",") {
		switch port {
		case "15020", "15021", "15090":
			istios++
		default:
			ports = append(ports, port)
		}
	}
	if istios != 3 {
		t.Errorf("istio-init excludes %s", list[1])
	}
	slices.Sort(ports)
	return strings.Join(ports, ",")
}
