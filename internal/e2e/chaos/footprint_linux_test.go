package chaos

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
)

// footprint is what the watchdog takes.
type footprint struct{ goroutines, files, kib int }

var (
	goroutines = regexp.MustCompile(`(?m)^go_goroutines (\d+)`)
	resident   = regexp.MustCompile(`VmRSS:\s+(\d+) kB`)
)

func (r *rig) footprint() (f footprint) {
	r.t.Helper()
	dir := filepath.Join("/proc", fmt.Sprint(r.w.Cmd.Process.Pid))
	files, err := os.ReadDir(filepath.Join(dir, "fd"))
	r.must(err)
	status, err := os.ReadFile(filepath.Join(dir, "status"))
	r.must(err)
	number := func(pattern *regexp.Regexp, text string) (n int) {
		found := pattern.FindStringSubmatch(text)
		if found == nil {
			r.t.Fatalf("no %s in %s", pattern, text)
		}
		r.must(json.Unmarshal([]byte(found[1]), &n))
		return n
	}
	return footprint{number(goroutines, r.w.Get("/metrics")), len(files), number(resident, string(status))}
}
