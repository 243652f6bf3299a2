package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"svid-watchdog/internal/lab"
	"svid-watchdog/internal/rotation"
)

// soakTime is how long TestSoak goes on, unless SOAK says otherwise.
const soakTime = 100 * time.Second

// flat is by how much the memory may differ between the first half and the end.
const flat = 2 << 10 // KiB

// TestSoak: beside a real Envoy whose certificates live for a minute the
// watchdog raises nothing, verifies every rotation, and its memory stays where
// it is.
func TestSoak(t *testing.T) {
	length := soakTime
	if text := os.Getenv("SOAK"); text != "" {
		var err error
		if length, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
	}
	for _, version := range []string{"1.36.4", "1.40.0"} {
		t.Run("envoy"+version, func(t *testing.T) {
			t.Parallel()
			const renewal = 20 * time.Second
			pod, err := lab.Start(t.Context(), lab.Config{
				Issuer: lab.Tbot, TTL: time.Minute, Renewal: renewal, EnvoyPath: need(t, "envoy", version, "envoy"),
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { pod.Close() })
			w := startWatchdog(t, "--workload-api.address="+pod.SocketAddress(), "--envoy.admin-address="+pod.Envoy().AdminAddress(),
				"--credentials.dir="+pod.CredentialsDir(), "--handshake.address="+pod.Envoy().ListenerAddress(),
				"--envoy.poll-interval=1s", "--rotation.grace=10s", "--envoy.budget=5")
			begin := time.Now()
			w.Until(20*time.Second, "health", func(v rotation.Verdict) bool { return v.State == rotation.Healthy })

			// The heap grows to the runtime's minimum first.
			for range 200 {
				w.Get("/metrics")
			}
			half := 0
			scrape := time.NewTicker(time.Second)
			defer scrape.Stop()
			for time.Since(begin) < length {
				<-scrape.C
				page := w.Get("/metrics")
				for line := range strings.Lines(page) {
					if strings.HasPrefix(line, "svid_watchdog_problem{") && !strings.HasSuffix(line, " 0\n") {
						t.Fatalf("after %s: %s\n%s", time.Since(begin).Round(time.Second), line, w)
					}
				}
				if !strings.Contains(page, `svid_watchdog_rotation_state{state="healthy"} 1`) {
					t.Fatalf("after %s: not healthy\n%s", time.Since(begin).Round(time.Second), w)
				}
				if time.Since(begin) < length/2 {
					half = max(half, rss(t, w.Cmd.Process.Pid))
				}
			}
			end := rss(t, w.Cmd.Process.Pid)
			v := w.Verdict()
			t.Logf("%s: %d verified rotations, RSS %d KiB in the first half, %d KiB at the end", length, v.VerifiedRotations, half, end)
			if want := uint64(length/renewal) - 2; v.VerifiedRotations < want {
				t.Errorf("%d verified rotations, want at least %d", v.VerifiedRotations, want)
			}
			if end > half+flat {
				t.Errorf("the memory grew from %d to %d KiB", half, end)
			}
		})
	}
}

var vmRSS = regexp.MustCompile(`VmRSS:\s+(\d+) kB`)

// rss is the resident memory of a process in KiB.
func rss(t *testing.T, pid int) int {
	t.Helper()
	status, err := os.ReadFile(filepath.Join("/proc", fmt.Sprint(pid), "status"))
	if err != nil {
		t.Fatal(err)
	}
	found := vmRSS.FindSubmatch(status)
	if found == nil {
		t.Fatalf("no VmRSS in %s", status)
	}
	n, err := strconv.Atoi(string(found[1]))
	if err != nil {
		t.Fatal(err)
	}
	return n
}
