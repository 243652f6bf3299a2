package fswatch

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"svid-watchdog/internal/rotation"
)

// exhaustedChild names the directory in the environment of the child process.
const exhaustedChild = "FSWATCH_TEST_EXHAUSTED"

// A process that has no file descriptor left gets no inotify from the kernel.
// Its limit would hit the other tests too, so it is a process of its own.
func TestRealInotifyIsUsedUpAndComesBack(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), exhaustedChild+"="+dir)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{"max_user_instances", "polled: k", "watched: kr"} {
		if !bytes.Contains(out, []byte(want)) {
			t.Errorf("%q is not told:\n%s", want, out)
		}
	}
}

// runExhausted is the child: it tells what it sees, first without a file
// descriptor to spare, then with.
func runExhausted() int {
	dir := os.Getenv(exhaustedChild)
	// The runtime opens its own poller at the first use of a pipe, and would
	// not survive without.
	r, w, err := os.Pipe()
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer r.Close()
	defer w.Close()

	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		fmt.Println(err)
		return 1
	}
	before := limit.Cur
	setLimit := func(n uint64) {
		limit.Cur = n
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
	setLimit(3)

	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	looks := make(chan rotation.CredentialFiles, 1000)
	watcher := New(Config{
		Dir:     dir,
		Rescan:  time.Hour,
		Log:     slog.New(slog.NewTextHandler(os.Stdout, nil)),
		Observe: func(f rotation.CredentialFiles) { looks <- f },
	})
	done := make(chan error, 1)
	go func() { done <- watcher.Run(ctx) }()

	wait := func(label string, polling bool, files string) bool {
		for {
			select {
			case f := <-looks:
				if f.Polling == polling && strings.Contains(present(f), files) {
					fmt.Println(label, present(f))
					return true
				}
			case <-ctx.Done():
				fmt.Println("never seen:", label, files)
				return false
			}
		}
	}
	if !wait("exhausted:", true, "") {
		return 1
	}
	// To make a file takes a descriptor, to make a directory does not.
	if err := os.Mkdir(dir+"/key.pem", 0o700); err != nil {
		fmt.Println(err)
		return 1
	}
	if !wait("polled:", true, "k") {
		return 1
	}
	setLimit(before)
	if !wait("recovered:", false, "k") {
		return 1
	}
	if err := os.Mkdir(dir+"/root-cert.pem", 0o700); err != nil {
		fmt.Println(err)
		return 1
	}
	if !wait("watched:", false, "kr") {
		return 1
	}
	cancel()
	if err := <-done; err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}
