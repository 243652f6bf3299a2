package main

import "strings"

// What Grafana reads, as far as these dashboards need it.
type (
	dashboard struct {
		UID           string     `json:"uid"`
		Title         string     `json:"title"`
		Description   string     `json:"description"`
		Tags          []string   `json:"tags"`
		Editable      bool       `json:"editable"`
		GraphTooltip  int        `json:"graphTooltip"`
		SchemaVersion int        `json:"schemaVersion"`
		Version       int        `json:"version"`
		Timezone      string     `json:"timezone"`
		Refresh       string     `json:"refresh"`
		Time          timeRange  `json:"time"`
		Links         []link     `json:"links"`
		Templating    templating `json:"templating"`
		Annotations   object     `json:"annotations"`
		Panels        []panel    `json:"panels"`
	}
	timeRange struct {
		From string `json:"from"`
		To   string `json:"to"`
	}
	link struct {
		Title       string   `json:"title"`
		Type        string   `json:"type"`
		Tags        []string `json:"tags"`
		Icon        string   `json:"icon"`
		Tooltip     string   `json:"tooltip"`
		URL         string   `json:"url"`
		IncludeVars bool     `json:"includeVars"`
		KeepTime    bool     `json:"keepTime"`
		AsDropdown  bool     `json:"asDropdown"`
		TargetBlank bool     `json:"targetBlank"`
	}
	templating struct {
		List []variable `json:"list"`
	}
	variable struct {
		Name       string  `json:"name"`
		Label      string  `json:"label"`
		Type       string  `json:"type"`
		Query      any     `json:"query"`
		Datasource *source `json:"datasource,omitempty"`
		Refresh    int     `json:"refresh,omitempty"`
		Sort       int     `json:"sort,omitempty"`
		Multi      bool    `json:"multi"`
		IncludeAll bool    `json:"includeAll"`
		AllValue   string  `json:"allValue,omitempty"`
	}
	variableQuery struct {
		Query string `json:"query"`
		RefID string `json:"refId"`
	}
	source struct {
		Type string `json:"type"`
		UID  string `json:"uid"`
	}
	panel struct {
		ID              int              `json:"id"`
		Type            string           `json:"type"`
		Title           string           `json:"title"`
		Description     string           `json:"description,omitempty"`
		Datasource      *source          `json:"datasource,omitempty"`
		GridPos         gridPos          `json:"gridPos"`
		Collapsed       *bool            `json:"collapsed,omitempty"` // rows only
		Panels          *[]panel         `json:"panels,omitempty"`    // rows only
		Targets         []target         `json:"targets,omitempty"`
		FieldConfig     *fieldConfig     `json:"fieldConfig,omitempty"`
		Options         any              `json:"options,omitempty"`
		Transformations []transformation `json:"transformations,omitempty"`
	}
	gridPos struct {
		X int `json:"x"`
		Y int `json:"y"`
		W int `json:"w"`
		H int `json:"h"`
	}
	target struct {
		RefID        string  `json:"refId"`
		Datasource   *source `json:"datasource"`
		Expr         string  `json:"expr"`
		LegendFormat string  `json:"legendFormat"`
		Format       string  `json:"format"`
		Instant      bool    `json:"instant"`
		Range        bool    `json:"range"`
	}
	fieldConfig struct {
		Defaults  fieldDefaults `json:"defaults"`
		Overrides []override    `json:"overrides"`
	}
	fieldDefaults struct {
		Unit       string     `json:"unit"`
		Decimals   *int       `json:"decimals,omitempty"`
		Min        *float64   `json:"min,omitempty"`
		Max        *float64   `json:"max,omitempty"`
		NoValue    string     `json:"noValue,omitempty"`
		Color      color      `json:"color"`
		Thresholds thresholds `json:"thresholds"`
		Mappings   []any      `json:"mappings,omitempty"`
		Links      []dataLink `json:"links,omitempty"`
		Custom     any        `json:"custom,omitempty"`
	}
	color struct {
		Mode       string `json:"mode"`
		FixedColor string `json:"fixedColor,omitempty"`
	}
	thresholds struct {
		Mode  string `json:"mode"`
		Steps []step `json:"steps"`
	}
	step struct {
		Value *float64 `json:"value"` // nil: from minus infinity
		Color string   `json:"color"`
	}
	override struct {
		Matcher    matcher    `json:"matcher"`
		Properties []property `json:"properties"`
	}
	matcher struct {
		ID      string `json:"id"`
		Options any    `json:"options"`
	}
	property struct {
		ID    string `json:"id"`
		Value any    `json:"value"`
	}
	dataLink struct {
		Title       string `json:"title"`
		URL         string `json:"url"`
		TargetBlank bool   `json:"targetBlank"`
	}
	transformation struct {
		ID      string `json:"id"`
		Options any    `json:"options"`
	}
	object map[string]any
)

var prometheus = &source{Type: "prometheus", UID: "${datasource}"}

// datasource lets who looks choose the Prometheus.
func datasource() variable {
	return variable{Name: "datasource", Label: "Prometheus", Type: "datasource", Query: "prometheus"}
}

// label is a variable with the values of a label of the metric that each
// watchdog has, narrowed down by the matchers.
func label(name, text, matchers string) variable {
	return variable{
		Name: name, Label: text, Type: "query", Datasource: prometheus,
		Query:   variableQuery{Query: "label_values(svid_watchdog_build_info" + matchers + ", " + name + ")", RefID: "variable"},
		Refresh: 2, // with the time range
		Sort:    1, // by name
	}
}

// several allows more than one value, and all.
func (v variable) several() variable {
	v.Multi, v.IncludeAll, v.AllValue = true, true, ".+"
	return v
}

// query is a query with what stands in the legend for each of its series.
type query struct{ expr, legend string }

// chart is a panel before it has found its place.
type chart struct {
	panel
	width, height int
}

func newChart(kind, title, description, unit string, width, height int, queries []query) chart {
	c := chart{width: width, height: height, panel: panel{
		Type: kind, Title: title, Description: description, Datasource: prometheus,
		FieldConfig: &fieldConfig{
			Defaults: fieldDefaults{
				Unit: unit, Color: color{Mode: "palette-classic"},
				Thresholds: thresholds{Mode: "absolute", Steps: []step{{Color: "green"}}},
			},
			Overrides: []override{},
		},
	}}
	for i, q := range queries {
		c.Targets = append(c.Targets, target{
			RefID: string(rune('A' + i)), Datasource: prometheus,
			Expr: strings.TrimSpace(q.expr), LegendFormat: q.legend, Format: "time_series", Range: true,
		})
	}
	return c
}

// now makes the queries ask for the present value only.
func (c chart) now(format string) chart {
	for i := range c.Targets {
		c.Targets[i].Format, c.Targets[i].Instant, c.Targets[i].Range = format, true, false
	}
	return c
}

// series is a chart over time.
func series(title, description, unit string, width int, queries ...query) chart {
	c := newChart("timeseries", title, description, unit, width, 8, queries)
	c.FieldConfig.Defaults.Custom = object{"drawStyle": "line", "lineInterpolation": "stepAfter", "lineWidth": 1, "fillOpacity": 10, "showPoints": "never"}
	c.Options = object{
		"legend":  object{"displayMode": "list", "placement": "bottom", "showLegend": true, "calcs": []string{}},
		"tooltip": object{"mode": "multi", "sort": "desc"},
	}
	return c
}

// stacked piles the series of a chart up.
func (c chart) stacked() chart {
	c.FieldConfig.Defaults.Custom = object{
		"drawStyle": "line", "lineInterpolation": "stepAfter", "lineWidth": 0, "fillOpacity": 70, "showPoints": "never",
		"stacking": object{"mode": "normal", "group": "A"},
	}
	return c
}

// number is the present value, large.
func number(title, description, unit string, width int, queries ...query) chart {
	c := newChart("stat", title, description, unit, width, 4, queries).now("time_series")
	c.FieldConfig.Defaults.Color = color{Mode: "thresholds"}
	c.Options = object{
		"colorMode": "value", "graphMode": "none", "justifyMode": "auto", "orientation": "auto", "textMode": "auto",
		"wideLayout": true, "showPercentChange": false, "percentChangeColorMode": "standard",
		"reduceOptions": object{"calcs": []string{"lastNotNull"}, "values": false, "fields": ""},
	}
	return c
}

// word shows the name of the series in place of its value.
func (c chart) word() chart {
	c.Options.(object)["textMode"] = "name"
	return c
}

// bars are present values side by side.
func bars(title, description, unit string, width int, queries ...query) chart {
	c := newChart("bargauge", title, description, unit, width, 8, queries).now("time_series")
	c.FieldConfig.Defaults.Color = color{Mode: "thresholds"}
	c.Options = object{
		"displayMode": "basic", "orientation": "horizontal", "showUnfilled": true, "valueMode": "color", "namePlacement": "auto", "sizing": "auto",
		"minVizWidth": 8, "minVizHeight": 16, "maxVizHeight": 300,
		"legend":        object{"displayMode": "list", "placement": "bottom", "showLegend": false, "calcs": []string{}},
		"reduceOptions": object{"calcs": []string{"lastNotNull"}, "values": false, "fields": ""},
	}
	return c
}

// table is a row for each series, with its labels in columns. Those that are
// named stand in that order; the value has the name that is given.
func table(title, description, value string, width int, q query, columns ...string) chart {
	c := newChart("table", title, description, "short", width, 8, []query{q}).now("table")
	c.FieldConfig.Defaults.Color = color{Mode: "thresholds"}
	c.FieldConfig.Defaults.Custom = object{"align": "auto", "cellOptions": object{"type": "auto"}, "inspect": false, "filterable": true}
	c.Options = object{"frameIndex": 0, "showHeader": true, "cellHeight": "sm"}
	order := object{"Value": len(columns)}
	for i, name := range columns {
		order[name] = i
	}
	c.Transformations = []transformation{{
		ID:      "organize",
		Options: object{"excludeByName": object{"Time": true}, "indexByName": order, "renameByName": object{"Value": value}},
	}}
	return c
}

// lanes show when something held.
func lanes(title, description string, width int, queries ...query) chart {
	c := newChart("state-timeline", title, description, "short", width, 8, queries)
	c.FieldConfig.Defaults.Color = color{Mode: "thresholds"}
	c.FieldConfig.Defaults.Custom = object{"lineWidth": 0, "fillOpacity": 80}
	c.Options = object{
		"showValue": "never", "mergeValues": true, "alignValue": "left", "rowHeight": 0.8,
		"legend":  object{"displayMode": "list", "placement": "bottom", "showLegend": false, "calcs": []string{}},
		"tooltip": object{"mode": "single", "sort": "none"},
	}
	return c
}

// from colours what is at least the value; steps are in rising order.
func (c chart) from(value float64, name string) chart {
	t := &c.FieldConfig.Defaults.Thresholds
	t.Steps = append(t.Steps, step{Value: &value, Color: name})
	return c
}

// below colours what is less than the first step.
func (c chart) below(name string) chart {
	c.FieldConfig.Defaults.Thresholds.Steps[0].Color = name
	return c
}

// share is of something that has the scale from nothing to all.
func (c chart) share() chart {
	none, all := 0.0, 1.0
	c.FieldConfig.Defaults.Min, c.FieldConfig.Defaults.Max = &none, &all
	return c
}

// called names a value.
func (c chart) called(value, text, name string) chart {
	c.FieldConfig.Defaults.Mappings = append(c.FieldConfig.Defaults.Mappings,
		object{"type": "value", "options": object{value: object{"text": text, "color": name, "index": len(c.FieldConfig.Defaults.Mappings)}}})
	return c
}

// orElse is what is shown where there is nothing.
func (c chart) orElse(text string) chart {
	c.FieldConfig.Defaults.NoValue = text
	return c
}

// painted gives the series of that name that colour, on any dashboard.
func (c chart) painted(name, colour string) chart {
	c.FieldConfig.Overrides = append(c.FieldConfig.Overrides, override{
		Matcher:    matcher{ID: "byName", Options: name},
		Properties: []property{{ID: "color", Value: color{Mode: "fixed", FixedColor: colour}}},
	})
	return c
}

// leading to the dashboard of a pod, by the labels of a series.
func (c chart) leadingToPod() chart {
	c.FieldConfig.Defaults.Links = []dataLink{{
		Title: "The pod's pipeline",
		URL:   "/d/" + podUID + "?var-datasource=${datasource}&var-namespace=${__field.labels.namespace}&var-pod=${__field.labels.pod}&${__url_time_range}",
	}}
	return c
}

// tall is for what needs more room.
func (c chart) tall() chart {
	c.height = 10
	return c
}

// section is a row with its charts.
type section struct {
	title  string
	charts []chart
}

// place lays the sections out on Grafana's grid of 24 columns, from left to
// right and from top to bottom.
func place(sections ...section) []panel {
	var panels []panel
	y, id := 0, 0
	no, none := false, []panel{}
	for _, s := range sections {
		id++
		panels = append(panels, panel{ID: id, Type: "row", Title: s.title, GridPos: gridPos{Y: y, W: 24, H: 1}, Collapsed: &no, Panels: &none})
		y++
		x, tallest := 0, 0
		for _, c := range s.charts {
			if x+c.width > 24 {
				x, y, tallest = 0, y+tallest, 0
			}
			id++
			p := c.panel
			p.ID, p.GridPos = id, gridPos{X: x, Y: y, W: c.width, H: c.height}
			panels = append(panels, p)
			x += c.width
			tallest = max(tallest, c.height)
		}
		y += tallest
	}
	return panels
}

func newDashboard(uid, title, description, from string, variables []variable, sections ...section) dashboard {
	return dashboard{
		UID: uid, Title: title, Description: description,
		Tags: []string{"svid-watchdog"}, SchemaVersion: 39, Version: 1, Timezone: "utc", Refresh: "1m",
		GraphTooltip: 1, // one crosshair for all
		Time:         timeRange{From: from, To: "now"},
		Links: []link{{
			Title: "svid-watchdog", Type: "dashboards", Tags: []string{"svid-watchdog"}, Icon: "external link",
			IncludeVars: true, KeepTime: true, AsDropdown: true,
		}},
		Templating: templating{List: append([]variable{datasource()}, variables...)},
		// Empty is said, as Grafana's schema wants it said.
		Annotations: object{"list": []object{}},
		Panels:      place(sections...),
	}
}
