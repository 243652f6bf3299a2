package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// output runs a program and returns what it prints.
func output(ctx context.Context, path string, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, path, args...).Output()
	if failed, ok := errors.AsType[*exec.ExitError](err); ok {
		return "", fmt.Errorf("%s: %w: %s", filepath.Base(path), err, failed.Stderr)
	}
	return string(out), err
}

// process is a running program.
type process struct {
	cmd    *exec.Cmd
	exited chan struct{}
	log    buffer
}

type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func start(path string, args ...string) (*process, error) {
	p := &process{cmd: exec.Command(path, args...), exited: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = &p.log, &p.log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(p.exited)
		_ = p.cmd.Wait() // what it says is not needed
	}()
	return p, nil
}

func (p *process) pid() int { return p.cmd.Process.Pid }

func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	patience := time.NewTimer(5 * time.Second)
	defer patience.Stop()
	select {
	case <-p.exited:
	case <-patience.C:
		_ = p.cmd.Process.Kill()
		<-p.exited
	}
}

// cpu is the time that all threads of a process were running, by the
// scheduler's own count, or by its ticks where that is not to be had. A thread
// that has ended is in the ticks only; servers keep theirs.
func cpu(pid int) (time.Duration, error) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err == nil && len(tasks) > 0 {
		var sum time.Duration
		counted := true
		for _, t := range tasks {
			text, err := os.ReadFile(t)
			if err != nil {
				continue // it has just ended
			}
			ns, err := strconv.ParseInt(strings.Fields(string(text))[0], 10, 64)
			counted = counted && err == nil
			sum += time.Duration(ns)
		}
		if counted && sum > 0 {
			return sum, nil
		}
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	user, err1 := strconv.Atoi(fields[11])
	system, err2 := strconv.Atoi(fields[12])
	return time.Duration(user+system) * 10 * time.Millisecond, errors.Join(err1, err2)
}

// status is what /proc says of a process.
type status struct {
	resident, anonymous, peak float64 // KiB
	wakeups                   float64 // voluntary context switches of all threads
	read                      float64 // bytes, from sockets too
	threads                   float64
}

func look(pid int) (s status, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return s, err
	}
	number := func(text []byte, name string) float64 {
		m := regexp.MustCompile(`(?m)^` + name + `:\s+(\d+)`).FindSubmatch(text)
		if m == nil {
			return 0
		}
		n, err := strconv.ParseFloat(string(m[1]), 64)
		if err != nil {
			return 0
		}
		return n
	}
	s.resident, s.anonymous, s.peak = number(text, "VmRSS"), number(text, "RssAnon"), number(text, "VmHWM")
	s.threads = number(text, "Threads")
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil {
		return s, err
	}
	for _, t := range tasks {
		if text, err := os.ReadFile(t); err == nil {
			s.wakeups += number(text, "voluntary_ctxt_switches")
		}
	}
	if text, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", pid)); err == nil {
		s.read = number(text, "rchar")
	}
	return s, nil
}

var client = &http.Client{Timeout: 60 * time.Second}

// get asks, and returns the answer.
func get(ctx context.Context, url string) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	response, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", url, response.Status)
	}
	return string(text), err
}

// value is that of a series of a page, 0 if it is not there.
func value(page, series string) float64 {
	for line := range strings.Lines(page) {
		if rest, ok := strings.CutPrefix(line, series+" "); ok {
			n, err := strconv.ParseFloat(strings.TrimSpace(rest), 64)
			if err == nil {
				return n
			}
		}
	}
	return 0
}

// wait waits, unless ctx ends.
func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// until waits for a condition.
func until(ctx context.Context, bound time.Duration, what string, satisfied func() bool) error {
	deadline := time.Now().Add(bound)
	for !satisfied() {
		if time.Now().After(deadline) {
			return fmt.Errorf("waited %s in vain for %s", bound, what)
		}
		if err := wait(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}

// sidecar is a running watchdog.
type sidecar struct {
	*process
	base string
}

var listens = regexp.MustCompile(`listen_address=(\S+)`)

func startWatchdog(ctx context.Context, path string, args ...string) (*sidecar, error) {
	p, err := start(path, append([]string{"run", "--web.listen-address=127.0.0.1:0"}, args...)...)
	if err != nil {
		return nil, err
	}
	s := &sidecar{process: p}
	err = until(ctx, 20*time.Second, "the watchdog to listen", func() bool {
		m := listens.FindStringSubmatch(p.log.String())
		if m != nil {
			s.base = "http://" + m[1]
		}
		return m != nil
	})
	if err != nil {
		p.stop()
		return nil, fmt.Errorf("%w: %s", err, p.log.String())
	}
	return s, nil
}

func (s *sidecar) metrics(ctx context.Context) (string, error) { return get(ctx, s.base+"/metrics") }

// percentile of sorted durations.
func percentile(sorted []time.Duration, p float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(len(sorted)-1, int(p*float64(len(sorted))))]
}

func ms(d time.Duration) string { return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond)) }
