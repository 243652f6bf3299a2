package metrics_test

import (
	"bytes"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/common/expfmt"

	"svid-watchdog/internal/contract"
	"svid-watchdog/internal/metrics"
	"svid-watchdog/internal/podsim"
	"svid-watchdog/internal/rotation"
)

// maxSeries is the contract's bound for a pod, process_* included.
const maxSeries = 80

func registry(v func() rotation.Verdict) *prometheus.Registry {
	return metrics.NewRegistry(metrics.Config{
		Verdict:        v,
		Build:          metrics.Build{Version: "v1.2.3", Revision: "abc", GoVersion: "go1.26"},
		IdentitySecret: "default", BundleSecret: "ROOTCA",
	})
}

// healthy is the verdict on a pod that has rotated for hours.
func healthy() rotation.Verdict { return rotated(false) }

// everything is the same with handshakes.
func everything() rotation.Verdict { return rotated(true) }

func rotated(handshake bool) rotation.Verdict {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	pod := podsim.New(podsim.Config{Issuer: podsim.Tbot, TTL: time.Hour}, now)
	ledger := rotation.NewLedger(rotation.Config{Grace: 90 * time.Second, Verify: podsim.Verify, Handshake: handshake})
	var v rotation.Verdict
	for range 3 * 60 * 4 {
		pod.Advance(now)
		if i := pod.Issuance(); i != nil {
			ledger.RecordIssuance(*i)
		}
		ledger.RecordWorkloadAPI(pod.WorkloadAPI(now))
		ledger.RecordFiles(pod.CredentialFiles(now))
		e := pod.Envoy(now)
		ledger.RecordEnvoy(e)
		if handshake {
			ledger.RecordHandshake(pod.Handshake(now))
		}
		v = ledger.Judge(now)
		now = now.Add(15 * time.Second)
	}
	return v
}

func empty() rotation.Verdict {
	return rotation.NewLedger(rotation.Config{}).Judge(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
}

// page is the whole page as Prometheus gets it, the values of process_* left
// out: they are the machine's.
func page(t *testing.T, r *prometheus.Registry) (text string, series int) {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	for _, f := range families {
		series += len(f.GetMetric())
		if _, err := expfmt.MetricFamilyToText(&out, f); err != nil {
			t.Fatal(err)
		}
	}
	return regexp.MustCompile(`(?m)^(process_\S+) .*$`).ReplaceAllString(out.String(), "$1 X"), series
}

// TestWholePage: the page of a pod to the last byte.
func TestWholePage(t *testing.T) {
	for name, verdict := range map[string]func() rotation.Verdict{"healthy": healthy, "empty": empty} {
		t.Run(name, func(t *testing.T) {
			got, series := page(t, registry(verdict))
			if series > maxSeries {
				t.Errorf("%d series, want at most %d", series, maxSeries)
			}
			path := "testdata/" + name + ".prom"
			if contract.Update() {
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("the page differs from %s; -update writes it:\n%s", path, got)
			}
		})
	}
}

// TestUnseenIsAbsent: before anything was seen there is no time stamp and no
// file, and every problem, state and counter is there.
func TestUnseenIsAbsent(t *testing.T) {
	text, _ := page(t, registry(empty))
	for _, absent := range []string{"_timestamp_seconds{stage", "_file_present", "sds_streams", "identity_info", "rotation_interval", "envoy_start"} {
		if strings.Contains(text, "svid_watchdog_"+absent) || strings.Contains(text, absent+"{") {
			t.Errorf("%s is there before it was seen", absent)
		}
	}
	for _, present := range []string{
		`problem{problem="hollow_update"} 0`, `rotation_state{state="unknown"} 1`, `rotation_state{state="healthy"} 0`,
		`rotations_total{stage="loaded"} 0`, `verified_rotations_total 0`, `source_up{source="envoy_admin"} 0`, `identity_mode{mode="unknown"} 1`,
	} {
		if !strings.Contains(text, "svid_watchdog_"+present+"\n") {
			t.Errorf("%s is missing", present)
		}
	}
}

func TestLint(t *testing.T) {
	problems, err := testutil.GatherAndLint(registry(healthy))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// TestOneVerdictPerScrape: no scrape shows half of a change.
func TestOneVerdictPerScrape(t *testing.T) {
	calls := 0
	r := registry(func() rotation.Verdict { calls++; return empty() })
	for range 3 {
		page(t, r)
	}
	if calls != 3 {
		t.Errorf("3 scrapes took %d verdicts", calls)
	}
}

// TestRuntimeMetricsOnlyOnRequest keeps the page small by default.
func TestRuntimeMetricsOnlyOnRequest(t *testing.T) {
	text, _ := page(t, registry(empty))
	if strings.Contains(text, "\ngo_") {
		t.Error("go_* is there by default")
	}
	if !strings.Contains(text, "process_resident_memory_bytes") {
		t.Error("process_* is missing")
	}
	r := metrics.NewRegistry(metrics.Config{Verdict: empty, Runtime: true})
	if text, _ := page(t, r); !strings.Contains(text, "\ngo_goroutines") {
		t.Error("go_* is missing though asked for")
	}
}
