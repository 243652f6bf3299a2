// Package metrics turns verdicts into Prometheus metrics. Users build alerts
// on the names, so they change only with a major version: golden files hold
// the whole page.
//
// Each scrape takes one verdict and makes all series from it, so that no
// scrape shows half of a change. What was never seen is absent, never zero:
// a certificate's time stamps, for example. Counters, problems and state sets
// exist from the start.
package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"svid-watchdog/internal/rotation"
)

const namespace = "svid_watchdog"

// Config says what the metrics are made of.
type Config struct {
	// Verdict is called once for each scrape.
	Verdict func() rotation.Verdict
	// Build describes the binary.
	Build Build
	// IdentitySecret and BundleSecret are Envoy's names of the two secrets.
	IdentitySecret, BundleSecret string
	// Runtime adds the metrics of the Go runtime.
	Runtime bool
}

// Build describes the binary.
type Build struct {
	Version, Revision, GoVersion string
}

// NewRegistry returns a registry that holds the watchdog's metrics and those
// of its process, and nothing of anybody else.
func NewRegistry(cfg Config) *prometheus.Registry {
	registry := prometheus.NewRegistry()
	registry.MustRegister(
		&collector{cfg},
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	if cfg.Runtime {
		registry.MustRegister(collectors.NewGoCollector())
	}
	return registry
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(prometheus.BuildFQName(namespace, "", name), help, labels, nil)
}

var (
	buildInfo = desc("build_info",
		"Always 1; the labels describe the binary.", "version", "revision", "goversion")
	rotationState = desc("rotation_state",
		"The verdict in one word: 1 for the state that holds, 0 for the others.", "state")
	problem = desc("problem",
		"1 while the problem holds.", "problem")
	identityMode = desc("identity_mode",
		"What Istio's agent will do when it next starts: 1 for the mode that holds, 0 for the others.", "mode")
	sourceUp = desc("source_up",
		"Whether the last attempt to read this source of evidence worked.", "source")
	notBefore = desc("certificate_not_before_timestamp_seconds",
		"Not-before of the leaf last seen at the stage, absent while none was seen.", "stage")
	notAfter = desc("certificate_not_after_timestamp_seconds",
		"Not-after of the leaf last seen at the stage (of several the earliest), absent while none was seen.", "stage")
	rotations = desc("rotations_total",
		"New leaves seen at the stage after the first.", "stage")
	verified = desc("verified_rotations_total",
		"New leaves that reached the last observable stage within one life of Envoy.")
	hollow = desc("hollow_updates_total",
		"Updates of the identity secret that changed nothing.")
	rejected = desc("rejected_updates_total",
		"Updates of the identity secret that Envoy refused.")
	interval = desc("rotation_interval_seconds",
		"Renewal interval, configured or learned; absent until it is known.")
	bundleNotAfter = desc("trust_bundle_not_after_timestamp_seconds",
		"Not-after of the authority of the trust bundle that expires first, absent while none was seen.", "stage")
	lastUpdated = desc("secret_last_updated_timestamp_seconds",
		"When Envoy says that the secret was last updated. A hint only: an update may change nothing.", "secret")
	sdsStreams = desc("sds_streams",
		"Open requests on Envoy's SDS cluster, absent while not seen.")
	adminSeconds = desc("envoy_admin_seconds_total",
		"Time that Envoy took to answer the watchdog.")
	filePresent = desc("credential_file_present",
		"Whether the credential file exists; all three together switch Istio's agent to files.", "file")
	watchPolling = desc("credential_watch_polling",
		"1 while inotify is not to be had and the credentials directory is polled instead.")
	envoyStart = desc("envoy_start_timestamp_seconds",
		"When Envoy's present life began, absent while not seen.")
	identityInfo = desc("identity_info",
		"Always 1; the labels tell the identity that is issued to this workload, or else the one that Envoy has.", "spiffe_id", "trust_domain")

	all = []*prometheus.Desc{
		buildInfo, rotationState, problem, identityMode, sourceUp, notBefore, notAfter, rotations, verified, hollow,
		rejected, interval, bundleNotAfter, lastUpdated, sdsStreams, adminSeconds, filePresent, watchPolling,
		envoyStart, identityInfo,
	}
)

type collector struct{ cfg Config }

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range all {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	v := c.cfg.Verdict()
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	counter := func(d *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, value, labels...)
	}
	gauge(buildInfo, 1, c.cfg.Build.Version, c.cfg.Build.Revision, c.cfg.Build.GoVersion)
	for _, s := range rotation.States() {
		gauge(rotationState, truth(v.State == s), string(s))
	}
	for _, d := range rotation.Catalogue() {
		gauge(problem, truth(v.Has(d.Name)), string(d.Name))
	}
	for _, m := range rotation.IdentityModes() {
		gauge(identityMode, truth(v.IdentityMode == m), string(m))
	}
	for _, s := range v.Sources {
		gauge(sourceUp, truth(s.Up), string(s.Source))
	}
	for _, s := range v.Stages {
		counter(rotations, float64(s.Rotations), string(s.Stage))
		if s.Certificate != nil {
			gauge(notBefore, unix(s.Certificate.NotBefore), string(s.Stage))
			gauge(notAfter, unix(s.Certificate.NotAfter), string(s.Stage))
		}
	}
	counter(verified, float64(v.VerifiedRotations))
	counter(hollow, float64(v.HollowUpdates))
	counter(rejected, float64(v.RejectedUpdates))
	if v.IntervalSource == rotation.IntervalConfigured || v.IntervalSource == rotation.IntervalLearned {
		gauge(interval, v.IntervalSeconds)
	}
	for _, s := range rotation.Stages() {
		if t, ok := v.BundleNotAfter[s]; ok {
			gauge(bundleNotAfter, unix(t), string(s))
		}
	}
	if t := v.Envoy.IdentityUpdated; t != nil {
		gauge(lastUpdated, unix(*t), c.cfg.IdentitySecret)
	}
	if t := v.Envoy.BundleUpdated; t != nil {
		gauge(lastUpdated, unix(*t), c.cfg.BundleSecret)
	}
	if n := v.Envoy.SDSStreams; n != nil {
		gauge(sdsStreams, float64(*n))
	}
	counter(adminSeconds, v.Envoy.AdminSeconds)
	for _, name := range rotation.CredentialFileNames() {
		if present, known := v.Files.Present[name]; known {
			gauge(filePresent, truth(present), string(name))
		}
	}
	gauge(watchPolling, truth(v.Files.Polling))
	if t := v.Envoy.Started; t != nil {
		gauge(envoyStart, unix(*t))
	}
	if id := identity(v); id != "" {
		gauge(identityInfo, 1, id, rotation.Certificate{SPIFFEID: id}.TrustDomain())
	}
}

func identity(v rotation.Verdict) string {
	for _, s := range v.Stages {
		if s.Certificate != nil && s.Certificate.SPIFFEID != "" {
			return s.Certificate.SPIFFEID
		}
	}
	return ""
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func unix(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }
