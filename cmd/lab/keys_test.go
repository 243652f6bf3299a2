package main

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"svid-watchdog/internal/lab"
)

// TestKeys: each fault that a pod of the lab can have has a key of its own.
func TestKeys(t *testing.T) {
	seen := make(map[byte]string)
	for _, f := range lab.Faults() {
		key := keyOf(f.Name)
		if key == 0 {
			t.Errorf("%s has no key", f.Name)
		}
		if other, taken := seen[key]; taken {
			t.Errorf("%s and %s have the key %c", f.Name, other, key)
		}
		seen[key] = f.Name
		if back, ok := faultOf(key); !ok || back.Name != f.Name {
			t.Errorf("the key %c of %s is that of %q", key, f.Name, back.Name)
		}
	}
	for _, key := range []byte{keyFaults, keyHealAll, keyHelp, keyQuit, keyInterrupt, keyEscape} {
		if f, ok := faultOf(key); ok {
			t.Errorf("%q is a key of the lab and of %s", key, f.Name)
		}
	}
}

// openTerminal opens the two ends of a terminal.
func openTerminal(t *testing.T, width, height uint16) (ours, theirs *os.File) {
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
	if err := unix.IoctlSetWinsize(int(ours.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: width, Row: height}); err != nil {
		t.Fatal(err)
	}
	return ours, theirs
}

// frames collects what is drawn.
type frames struct {
	mu   sync.Mutex
	text string
}

func (f *frames) collect(r io.Reader) {
	buffer := make([]byte, 64<<10)
	for {
		n, err := r.Read(buffer)
		f.mu.Lock()
		f.text += string(buffer[:n])
		f.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// last is the frame that was drawn last.
func (f *frames) last() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	parts := strings.Split(f.text, beginFrame)
	return parts[len(parts)-1]
}

// TestShow: in a terminal the lab says what it is, keys open its panels, inject
// and heal faults, and end it.
func TestShow(t *testing.T) {
	t.Parallel()
	ours, theirs := openTerminal(t, 110, 60)
	seen := &frames{}
	collected := make(chan struct{})
	go func() {
		defer close(collected)
		seen.collect(ours)
	}()
	o, err := parseFlags(nil, []string{"NO_COLOR=1"})
	if err != nil {
		t.Fatal(err)
	}
	keys := make(chan byte)
	ended := make(chan error, 1)
	go func() { ended <- play(context.Background(), o, nil, keyboard{keys: keys}, theirs) }()
	until := func(want ...string) {
		t.Helper()
		deadline := time.NewTimer(20 * time.Second)
		defer deadline.Stop()
		look := time.NewTicker(50 * time.Millisecond)
		defer look.Stop()
		for !slices.ContainsFunc([]string{seen.last()}, func(frame string) bool {
			for _, w := range want {
				if !strings.Contains(frame, w) {
					return false
				}
			}
			return true
		}) {
			select {
			case <-look.C:
			case <-deadline.C:
				t.Fatalf("%q is not shown:\n%s", want, seen.last())
			}
		}
	}
	until("A pod in a box.", "[f] break something", "http://127.0.0.1:", "HEALTHY")
	keys <- keyHelp
	until("X.509-SVID", "the secret discovery")
	keys <- keyFaults
	until("Press a key to inject a fault", "tbot-resend", "files-complete")
	keys <- keyOf("files-complete")
	until("Injected: files-complete", "● files-complete")
	keys <- keyEscape
	until("BROKEN", "credential_files_complete", "Injected: files-complete")
	keys <- 'z' // no panel: no fault's key
	keys <- keyHealAll
	until("Everything is healed.", "HEALTHY", "No problem holds.")
	keys <- keyQuit
	if err := <-ended; err != nil {
		t.Error(err)
	}
	theirs.Close()
	<-collected
	if last := seen.last(); !strings.Contains(last, leaveScreen) || !strings.Contains(last, "Ran for") {
		t.Errorf("the terminal is left as:\n%q", last)
	}
}
