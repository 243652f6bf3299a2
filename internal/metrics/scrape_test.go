package metrics_test

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"svid-watchdog/internal/metrics"
	"svid-watchdog/internal/rotation"
)

// What a scrape may cost. Ten thousand pods are scraped.
const (
	maxPageBytes = 14_000
	// maxScrapeObjects and maxScrapeBytes bound what one scrape allocates: a
	// fifth above what it is, so that a new series is no failure and a new
	// copy of all of them is.
	maxScrapeObjects = 1800
	maxScrapeBytes   = 215_000
)

// scraper is what Prometheus does, without the network.
func scraper(tb testing.TB, verdict rotation.Verdict) func() int {
	handler := promhttp.HandlerFor(metrics.NewRegistry(metrics.Config{
		Verdict:        func() rotation.Verdict { return verdict },
		Build:          metrics.Build{Version: "v1.2.3", Revision: "0123456789012345678901234567890123456789", GoVersion: "go1.26.8"},
		IdentitySecret: "default", BundleSecret: "ROOTCA",
	}), promhttp.HandlerOpts{})
	return func() int {
		request := httptest.NewRequest(http.MethodGet, "/metrics", nil)
		request.Header.Set("Accept", "text/plain;version=0.0.4")
		response := httptest.NewRecorder()
		handler.ServeHTTP(response, request)
		if response.Code != http.StatusOK {
			tb.Fatalf("%d %s", response.Code, response.Body)
		}
		return response.Body.Len()
	}
}

// TestScrapeBudget: with everything seen, the page is as short as the contract
// says, and a scrape allocates no more than it did.
func TestScrapeBudget(t *testing.T) {
	scrape := scraper(t, everything())
	if n := scrape(); n > maxPageBytes {
		t.Errorf("a page of %d bytes, at most %d", n, maxPageBytes)
	} else {
		t.Logf("%d bytes", n)
	}
	_, series := page(t, registry(everything))
	if series > maxSeries {
		t.Errorf("%d series, at most %d", series, maxSeries)
	}
	result := testing.Benchmark(func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			scrape()
		}
	})
	t.Logf("%d series, %d objects and %d bytes allocated", series, result.AllocsPerOp(), result.AllocedBytesPerOp())
	if raced {
		return // the race detector allocates for itself
	}
	if result.AllocsPerOp() > maxScrapeObjects || result.AllocedBytesPerOp() > maxScrapeBytes {
		t.Errorf("a scrape allocates %d objects and %d bytes, at most %d and %d",
			result.AllocsPerOp(), result.AllocedBytesPerOp(), maxScrapeObjects, maxScrapeBytes)
	}
}

func BenchmarkScrape(b *testing.B) {
	scrape := scraper(b, everything())
	b.ReportAllocs()
	for b.Loop() {
		scrape()
	}
}
