package web

import (
	"bytes"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// maxScrapes is how many pages of metrics are made at a time; more wait.
const maxScrapes = 2

// scrape serves the metrics. A page is made before it is sent, so that clients
// who read slowly take no turn from others.
func scrape(registry prometheus.Gatherer) http.Handler {
	pages := promhttp.HandlerFor(registry, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError})
	turns := make(chan struct{}, maxScrapes)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case turns <- struct{}{}:
		case <-r.Context().Done():
			return
		}
		p := &made{header: w.Header(), status: http.StatusOK}
		func() {
			defer func() { <-turns }()
			pages.ServeHTTP(p, r)
		}()
		w.WriteHeader(p.status)
		_, _ = p.body.WriteTo(w) // that the client went away is no matter of ours
	})
}

// made is an answer that is not sent yet.
type made struct {
	header http.Header
	status int
	body   bytes.Buffer
}

// Header implements http.ResponseWriter.
func (m *made) Header() http.Header { return m.header }

// WriteHeader implements http.ResponseWriter.
func (m *made) WriteHeader(status int) { m.status = status }

// Write implements http.ResponseWriter.
func (m *made) Write(p []byte) (int, error) { return m.body.Write(p) }
