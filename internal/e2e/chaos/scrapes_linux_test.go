package chaos

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// quiet is what an answer of /metrics may take.
const quiet = 100 * time.Millisecond

// scrapes asks for the metrics all the time, on one connection as Prometheus
// does. How long an answer takes on a busy machine depends on the machine: what
// counts is for how long it is blocked, that is without the time that the
// processes on both ends had something to do and no processor to do it on.
type scrapes struct {
	url       string
	processes []int
	n, late   int
	// longest is the longest of all answers, blocked that of the answers
	// without the time on which they waited for a processor.
	longest, blocked time.Duration
	failed           []string
}

func (s *scrapes) String() string {
	return fmt.Sprintf("%d scrapes, the longest took %s, %d took longer than %s; the longest without the wait for a processor %s",
		s.n, s.longest.Round(100*time.Microsecond), s.late, quiet, s.blocked.Round(100*time.Microsecond))
}

func (s *scrapes) run(ctx context.Context, paused <-chan chan struct{}) error {
	client := &http.Client{Transport: &http.Transport{MaxConnsPerHost: 1}, Timeout: 30 * time.Second}
	defer client.CloseIdleConnections()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case resume := <-paused:
			<-resume
			continue
		case <-tick.C:
		}
		waited, err := s.waited()
		if err != nil {
			return err
		}
		begin := time.Now()
		err = s.one(client)
		took := time.Since(begin)
		s.n++
		if s.longest = max(s.longest, took); took > quiet {
			s.late++
		}
		if err != nil && len(s.failed) < 10 {
			s.failed = append(s.failed, err.Error())
		}
		now, err := s.waited()
		if err != nil {
			return err
		}
		s.blocked = max(s.blocked, took-now.since(waited))
	}
}

func (s *scrapes) one(client *http.Client) error {
	request, err := http.NewRequestWithContext(context.Background(), http.MethodGet, s.url, http.NoBody)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	page, err := io.ReadAll(response.Body)
	if err == nil && (response.StatusCode != http.StatusOK || !strings.Contains(string(page), "svid_watchdog_rotation_state")) {
		err = fmt.Errorf("status %d, %d bytes", response.StatusCode, len(page))
	}
	return err
}

// waits is for how long each thread has waited for a processor so far.
type waits map[string]time.Duration

// since is for how long the threads have waited since earlier, in all.
func (w waits) since(earlier waits) (sum time.Duration) {
	for thread, ns := range w {
		sum += ns - earlier[thread]
	}
	return sum
}

// waited asks for the threads of both ends. It is the scheduler's own count
// (Linux: Documentation/scheduler/sched-stats.rst).
func (s *scrapes) waited() (waits, error) {
	all := make(waits)
	for _, pid := range s.processes {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
		if err != nil {
			return nil, err
		}
		for _, thread := range threads {
			text, err := os.ReadFile(thread)
			if err != nil {
				continue // it has just ended
			}
			var running, waiting int64
			if _, err := fmt.Sscan(string(text), &running, &waiting); err != nil {
				return nil, fmt.Errorf("%s says %q: %w", thread, text, err)
			}
			all[thread] = time.Duration(waiting)
		}
	}
	return all, nil
}
