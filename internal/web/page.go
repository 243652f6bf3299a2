package web

import (
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"fmt"
	"html"
	"net/http"
	"strings"

	"svid-watchdog/internal/rotation"
)

//go:embed page/index.html
var indexHTML string

//go:embed page/style.css
var styleCSS string

//go:embed page/script.js
var scriptJS string

// page is an HTML page and the policy that it is served with: nothing may be
// loaded from anywhere, and nothing runs but the one script whose digest is in
// the policy (W3C Content Security Policy Level 3).
type page struct{ body, policy string }

// newPage puts style and script, if any, into a page.
func newPage(text, script string) page {
	policy := "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; style-src " + digest(styleCSS)
	if script != "" {
		policy += "; script-src " + digest(script) + "; connect-src 'self'"
	}
	return page{strings.NewReplacer("{{style}}", styleCSS, "{{script}}", script).Replace(text), policy}
}

func digest(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
}

func (p page) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Security-Policy", p.policy)
	w.Header().Set("Referrer-Policy", "no-referrer")
	_, _ = w.Write([]byte(p.body)) // the client is gone
}

// problemsHTML is the catalogue as a page: the runbook that needs no network.
func problemsHTML() string {
	var b strings.Builder
	b.WriteString(`<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>All problems – svid-watchdog</title>
<link rel="icon" href="data:,">
<style>{{style}}</style>
</head>
<body>
<header><h1>All problems and what to do</h1> <a href="/">to the status</a></header>
<main>
`)
	for _, d := range rotation.Catalogue() {
		fmt.Fprintf(&b, "<article class=%q id=%q>\n<h2>%s</h2>\n<p><span class=\"tag\">%s</span> %s</p>\n",
			d.Severity, d.Name, d.Name, d.Severity, html.EscapeString(d.Summary))
		fmt.Fprintf(&b, "<p><b>Cause:</b> %s</p>\n<p><b>Advice:</b> %s</p>\n", html.EscapeString(d.Cause), html.EscapeString(d.Advice))
		if len(d.Reasons) > 0 {
			b.WriteString("<dl>\n")
			for _, r := range d.Reasons {
				cause, advice := d.Explain(r.Reason)
				if advice == d.Advice {
					advice = ""
				}
				fmt.Fprintf(&b, "<dt class=\"mono\">%s</dt><dd>%s %s</dd>\n", r.Reason, html.EscapeString(cause), html.EscapeString(advice))
			}
			b.WriteString("</dl>\n")
		}
		b.WriteString("</article>\n")
	}
	b.WriteString("</main>\n</body>\n</html>\n")
	return b.String()
}

// wantsHTML tells whether a person's browser asks: curl gets text.
func wantsHTML(r *http.Request) bool {
	return strings.Contains(r.Header.Get("Accept"), "text/html") && !r.URL.Query().Has("text")
}
