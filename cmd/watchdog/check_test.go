package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"svid-watchdog/internal/check"
	"svid-watchdog/internal/lab"
)

// TestCheckBadUsage: one clear line, exit 64.
func TestCheckBadUsage(t *testing.T) {
	for _, tt := range []struct {
		args, env []string
		says      string
	}{
		{args: []string{"--no-such-flag"}, says: "no-such-flag"},
		{args: []string{"extra"}, says: "extra"},
		{args: []string{"--timeout=0s"}, says: "--timeout"},
		{args: []string{"--watch=-1s"}, says: "--watch"},
		{args: []string{"--watchdog.address=localhost"}, says: "http://HOST:PORT"},
		{args: []string{"--root=here", "--own-look"}, says: "absolute"},
		{args: []string{"--envoy.admin-address=ftp://x", "--own-look"}, says: "admin address"},
		{args: []string{"--workload-api.address=/run/socket", "--own-look"}, says: "Workload API address"},
		{args: []string{"--handshake.address=x", "--own-look"}, says: "handshake address"},
		{env: []string{"SVID_WATCHDOG_TIMEOUT=long"}, says: "SVID_WATCHDOG_TIMEOUT"},
	} {
		t.Run(strings.Join(append(tt.args, tt.env...), " "), func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			if code := run(t.Context(), append([]string{"check"}, tt.args...), tt.env, &stdout, &stderr); code != exitBadUsage {
				t.Errorf("exit %d", code)
			}
			if strings.Count(stderr.String(), "\n") != 1 || !strings.Contains(stderr.String(), tt.says) || stdout.Len() > 0 {
				t.Errorf("stderr %q, stdout %q", stderr.String(), stdout.String())
			}
		})
	}
}

// openTerminal opens the two ends of a terminal.
func openTerminal(t *testing.T, width uint16) (ours, theirs *os.File) {
	t.Helper()
	ours, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("no terminal to be had: %v", err)
	}
	t.Cleanup(func() { ours.Close() })
	if err := unix.IoctlSetPointerInt(int(ours.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(ours.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err = os.OpenFile(filepath.Join("/dev/pts", strconv.Itoa(n)), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { theirs.Close() })
	if err := unix.IoctlSetWinsize(int(ours.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: width, Row: 50}); err != nil {
		t.Fatal(err)
	}
	return ours, theirs
}

// TestCheck runs the program on a pod: for a pipe, for a terminal, and as JSON,
// with the exit codes of the contract.
func TestCheck(t *testing.T) {
	pod, err := lab.Start(t.Context(), lab.Config{Issuer: lab.Tbot, TTL: time.Hour, StandIn: "1.37"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := pod.Close(); err != nil {
			t.Error(err)
		}
	})
	args := []string{
		"check", "--own-look", "--credentials.dir=" + pod.CredentialsDir(),
		"--workload-api.address=" + pod.SocketAddress(), "--envoy.admin-address=" + pod.Envoy().AdminAddress(),
	}
	var stdout, stderr bytes.Buffer
	healthy := func() bool {
		stdout.Reset()
		return run(t.Context(), args, nil, &stdout, &stderr) == check.ExitHealthy
	}
	for deadline := time.Now().Add(10 * time.Second); !healthy(); {
		if time.Now().After(deadline) {
			t.Fatalf("not healthy: %s", stdout.String())
		}
	}
	if text := stdout.String(); !strings.HasPrefix(text, "HEALTHY: ") || strings.Contains(text, "\x1b") || stderr.Len() > 0 {
		t.Errorf("stdout %q, stderr %q", text, stderr.String())
	}

	if err := pod.Inject(t.Context(), "files-complete"); err != nil {
		t.Fatal(err)
	}
	stdout.Reset()
	if code := run(t.Context(), append(args, "--json"), nil, &stdout, &stderr); code != check.ExitProblem {
		t.Errorf("exit %d", code)
	}
	var report check.Report
	if err := json.Unmarshal(stdout.Bytes(), &report); err != nil || report.ExitCode != check.ExitProblem || report.Credentials.Outcome != check.OutcomeB {
		t.Errorf("%v %+v", err, report)
	}

	for _, env := range [][]string{nil, {"NO_COLOR=1"}, {"TERM=dumb"}} {
		ours, theirs := openTerminal(t, 50)
		if code := run(t.Context(), args, env, theirs, &stderr); code != check.ExitProblem {
			t.Errorf("exit %d", code)
		}
		buffer := make([]byte, 64<<10)
		if err := ours.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Logf("no deadline: %v", err)
		}
		n, err := ours.Read(buffer)
		if err != nil {
			t.Fatal(err)
		}
		text := string(buffer[:n])
		if coloured := strings.Contains(text, "\x1b["); coloured != (env == nil) {
			t.Errorf("with %v coloured is %t", env, coloured)
		}
		plain := regexp.MustCompile("\x1b\\[[0-9;]*m").ReplaceAllString(text, "")
		for line := range strings.Lines(plain) {
			line = strings.TrimRight(line, "\r\n")
			if utf8.RuneCountInString(line) > 50 && len(strings.Fields(line)) > 1 {
				t.Errorf("wider than the terminal: %q", line)
			}
		}
		if !strings.Contains(plain, "BROKEN") {
			t.Errorf("%q", plain)
		}
	}
}

// TestCheckOnABrokenPipe: what could not be told is not called healthy.
func TestCheckOnABrokenPipe(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	defer w.Close()
	var stderr bytes.Buffer
	dir := t.TempDir()
	code := run(t.Context(), []string{
		"check", "--own-look", "--credentials.dir=" + dir, "--workload-api.address=unix://" + dir + "/x", "--envoy.admin-address=unix://" + dir + "/y",
	}, nil, w, &stderr)
	if code != check.ExitCannotTell || stderr.Len() == 0 {
		t.Errorf("exit %d, stderr %q", code, stderr.String())
	}
}
