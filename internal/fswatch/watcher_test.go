package fswatch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fsnotify/fsnotify"

	"svid-watchdog/internal/rotation"
)

// watching runs a watcher on a real inotify. The re-scan is an hour away, so
// that what is seen was seen by an event.
type watching struct {
	t    *testing.T
	seen chan rotation.CredentialFiles
}

func watch(t *testing.T, dir string) *watching {
	t.Helper()
	w := &watching{t: t, seen: make(chan rotation.CredentialFiles, 10_000)}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	watcher := New(Config{
		Dir:     dir,
		Rescan:  time.Hour,
		Observe: func(f rotation.CredentialFiles) { w.seen <- f },
	})
	go func() { done <- watcher.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v, want nil", err)
		}
	})
	if first := w.next(); first.Polling {
		t.Skipf("no inotify to be had here: %s", first.PollingReason)
	}
	return w
}

// next returns the next look.
func (w *watching) next() rotation.CredentialFiles {
	w.t.Helper()
	select {
	case f := <-w.seen:
		return f
	case <-time.After(20 * time.Second):
		w.t.Fatal("nothing was seen for 20 s")
		panic("unreachable")
	}
}

// until returns the first look that satisfies the condition.
func (w *watching) until(what string, ok func(rotation.CredentialFiles) bool) rotation.CredentialFiles {
	w.t.Helper()
	deadline := time.After(20 * time.Second)
	var last rotation.CredentialFiles
	for {
		select {
		case last = <-w.seen:
			if ok(last) {
				return last
			}
		case <-deadline:
			w.t.Fatalf("not seen in 20 s: %s; last look: %+v", what, last)
		}
	}
}

func (w *watching) untilPresent(files string) rotation.CredentialFiles {
	w.t.Helper()
	return w.until("present "+files, func(f rotation.CredentialFiles) bool { return f.DirExists && present(f) == files })
}

func (w *watching) untilSerial(s string) rotation.CredentialFiles {
	w.t.Helper()
	return w.until("serial "+s, func(f rotation.CredentialFiles) bool { return serial(f) == s })
}

func (w *watching) untilGone() {
	w.t.Helper()
	w.until("no directory", func(f rotation.CredentialFiles) bool { return !f.DirExists && f.Err == "" })
}

func TestFilesComeAndGo(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	w := watch(t, dir)
	write(t, chainPEM(t, 0x1), dir, "cert-chain.pem")
	w.untilPresent("c")
	write(t, nil, dir, "key.pem")
	w.untilPresent("ck")
	write(t, nil, dir, "root-cert.pem")
	w.untilPresent("ckr")
	write(t, chainPEM(t, 0x2), dir, "cert-chain.pem")
	w.untilSerial("2")
	remove(t, filepath.Join(dir, "key.pem"))
	w.untilPresent("cr")
	rename(t, filepath.Join(dir, "cert-chain.pem"), filepath.Join(dir, "away"))
	w.untilPresent("r")
}

// A fault of the files must be seen within 100 ms. The bound here is for a
// machine under load; the usual time is logged.
func TestAnEventIsSeenSoon(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	w := watch(t, dir)
	fastest := time.Hour
	for range 5 {
		began := time.Now()
		write(t, nil, dir, "key.pem")
		w.untilPresent("k")
		fastest = min(fastest, time.Since(began))
		remove(t, filepath.Join(dir, "key.pem"))
		w.untilPresent("")
	}
	t.Logf("seen after %v", fastest)
	if fastest > 100*time.Millisecond {
		t.Errorf("seen after %v at best, want at most 100 ms", fastest)
	}
}

func TestTheDirectoryAppearsLater(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	dir := filepath.Join(root, "a", "b", "creds")
	w := watch(t, dir)
	mkdir(t, root, "a")
	mkdir(t, root, "a", "b")
	mkdir(t, dir)
	w.untilPresent("")
	write(t, nil, dir, "key.pem")
	w.untilPresent("k")
	remove(t, filepath.Join(root, "a"))
	w.untilGone()
	// All at once: the watch on the root sees only the first of them.
	mkdir(t, dir)
	write(t, nil, dir, "root-cert.pem")
	w.untilPresent("r")
}

// The same path, another directory; a file system may even give it the inode
// of the former one.
func TestTheDirectoryIsDeletedAndMadeAnew(t *testing.T) {
	t.Parallel()
	dir := mkdir(t, t.TempDir(), "creds")
	w := watch(t, dir)
	for i := range 10 {
		remove(t, dir)
		if i%2 == 0 {
			w.untilGone()
		}
		mkdir(t, dir)
		write(t, nil, dir, "key.pem")
		w.untilPresent("k")
		// And the new one is watched.
		write(t, nil, dir, "root-cert.pem")
		w.untilPresent("kr")
	}
}

func TestTheDirectoryIsMovedAwayAndReplaced(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	dir := mkdir(t, root, "creds")
	w := watch(t, dir)
	for i := range 2 {
		next := mkdir(t, root, fmt.Sprint("next", i))
		write(t, chainPEM(t, int64(i+1)), next, "cert-chain.pem")
		rename(t, dir, filepath.Join(root, fmt.Sprint("old", i)))
		rename(t, next, dir)
		w.untilSerial(fmt.Sprint(i + 1))
		write(t, nil, dir, "key.pem")
		w.untilPresent("ck")
	}
}

// Kubernetes writes a volume as links to ..data/FILE and swaps ..data. The
// first swap is easy; watchers of files miss the second (istio/istio#33293).
func TestAVolumeIsSwappedTwice(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	swap := func(version int) {
		t.Helper()
		name := fmt.Sprint("..version", version)
		mkdir(t, dir, name)
		write(t, chainPEM(t, int64(version)), dir, name, "cert-chain.pem")
		write(t, nil, dir, name, "key.pem")
		symlink(t, name, filepath.Join(dir, "..data_tmp"))
		rename(t, filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data"))
		if version > 1 {
			remove(t, filepath.Join(dir, fmt.Sprint("..version", version-1)))
		}
	}
	swap(1)
	symlink(t, "..data/cert-chain.pem", filepath.Join(dir, "cert-chain.pem"))
	symlink(t, "..data/key.pem", filepath.Join(dir, "key.pem"))
	w := watch(t, dir)
	for version := 2; version <= 4; version++ {
		swap(version)
		f := w.untilSerial(fmt.Sprint(version))
		if present(f) != "ck" {
			t.Errorf("version %d: present %q, want ck", version, present(f))
		}
	}
}

// The directory itself is a link.
func TestALinkedDirectoryIsSwappedTwice(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	dir := filepath.Join(root, "creds")
	swap := func(version int) {
		t.Helper()
		target := mkdir(t, root, "versions", fmt.Sprint(version))
		write(t, chainPEM(t, int64(version)), target, "cert-chain.pem")
		symlink(t, target, filepath.Join(root, "tmp"))
		rename(t, filepath.Join(root, "tmp"), dir)
	}
	swap(1)
	w := watch(t, dir)
	for version := 2; version <= 3; version++ {
		swap(version)
		w.untilSerial(fmt.Sprint(version))
		write(t, nil, dir, "key.pem")
		w.untilPresent("ck")
	}
}

// fake is an inotify in the hands of the test.
type fake struct {
	mu     sync.Mutex
	events chan fsnotify.Event
	errs   chan error
	added  map[string]int
	// removed counts the watches that were taken off.
	removed map[string]int
	closed  bool
	full    error // what Add answers
	// onAdd runs before Add, as the world goes on while watches are set.
	onAdd func(path string)
}

func newFake() *fake {
	return &fake{added: map[string]int{}, removed: map[string]int{}}
}

func (f *fake) Add(path string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.onAdd != nil {
		f.onAdd(path)
	}
	if f.full != nil {
		return f.full
	}
	f.added[path]++
	return nil
}

func (f *fake) Remove(path string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.added[path] == 0 {
		return fsnotify.ErrNonExistentWatch
	}
	delete(f.added, path)
	f.removed[path]++
	return nil
}

func (f *fake) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	return nil
}

// Channels makes the channels, so that they belong to the watcher's bubble.
func (f *fake) Channels() (<-chan fsnotify.Event, <-chan error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.events == nil {
		f.events, f.errs = make(chan fsnotify.Event), make(chan error)
	}
	return f.events, f.errs
}

// during makes something happen while watches are set.
func (f *fake) during(onAdd func(path string)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.onAdd = onAdd
}

func (f *fake) removals(path string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.removed[path]
}

func (f *fake) watches() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var names []string
	for path := range f.added {
		names = append(names, filepath.Base(path))
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

// bubble runs a watcher under fake time, on real files.
type bubble struct {
	dir string
	log bytes.Buffer
	// mu orders the test and the watcher, which synctest does only one way.
	mu   sync.Mutex
	seen []rotation.CredentialFiles
	// make is what the watcher is given as inotify.
	make func() (notifier, error)
}

func (b *bubble) run(t *testing.T, test func(t *testing.T)) {
	t.Helper()
	b.dir = mkdir(t, t.TempDir(), "creds")
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		w := New(Config{
			Dir: b.dir,
			Log: slog.New(slog.NewTextHandler(&b.log, nil)),
			Observe: func(f rotation.CredentialFiles) {
				b.mu.Lock()
				defer b.mu.Unlock()
				b.seen = append(b.seen, f)
			},
		})
		w.newNotifier = func() (notifier, error) {
			b.mu.Lock()
			defer b.mu.Unlock()
			return b.make()
		}
		done := make(chan error, 1)
		go func() { done <- w.Run(ctx) }()
		synctest.Wait()
		test(t)
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v, want nil", err)
		}
	})
}

// after lets time pass and returns the looks that were taken meanwhile.
func (b *bubble) after(d time.Duration) []rotation.CredentialFiles {
	from := len(b.looks())
	time.Sleep(d)
	synctest.Wait()
	return b.looks()[from:]
}

// looks returns the looks that were taken so far.
func (b *bubble) looks() []rotation.CredentialFiles {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.seen
}

func TestTheRescanIsTheTruth(t *testing.T) {
	n := newFake() // which never tells anything
	b := &bubble{make: func() (notifier, error) { return n, nil }}
	b.run(t, func(t *testing.T) {
		if seen := b.looks(); len(seen) != 1 || !seen[0].DirExists || seen[0].Polling {
			t.Fatalf("at start: %+v, want one look", seen)
		}
		write(t, nil, b.dir, "key.pem")
		if early := b.after(defaultRescan - time.Millisecond); len(early) != 0 {
			t.Errorf("%d looks before the re-scan", len(early))
		}
		looks := b.after(time.Millisecond)
		if len(looks) != 1 || present(looks[0]) != "k" {
			t.Errorf("looks at the re-scan: %+v", looks)
		}
		if looks := b.after(time.Minute); len(looks) != 12 {
			t.Errorf("%d looks in a minute, want 12", len(looks))
		}
	})
	if !n.closed {
		t.Error("the notifier was not closed")
	}
}

func TestABurstOfEventsCostsOneLook(t *testing.T) {
	n := newFake()
	b := &bubble{make: func() (notifier, error) { return n, nil }}
	b.run(t, func(t *testing.T) {
		write(t, nil, b.dir, "key.pem")
		for range 1000 {
			n.events <- fsnotify.Event{Name: "of no matter"}
		}
		if early := b.after(settle - time.Millisecond); len(early) != 0 {
			t.Errorf("%d looks before the burst has settled", len(early))
		}
		looks := b.after(time.Millisecond)
		if len(looks) != 1 || present(looks[0]) != "k" {
			t.Errorf("looks after the burst: %+v, want one", looks)
		}
		if looks := b.after(defaultRescan - time.Millisecond); len(looks) != 0 {
			t.Errorf("%d looks more", len(looks))
		}
	})
}

// A directory that is never at rest must not put the look off for ever.
func TestADirectoryThatIsNeverAtRest(t *testing.T) {
	n := newFake()
	b := &bubble{make: func() (notifier, error) { return n, nil }}
	b.run(t, func(t *testing.T) {
		from := len(b.looks())
		for range 1000 {
			n.events <- fsnotify.Event{}
			time.Sleep(time.Millisecond)
		}
		synctest.Wait()
		if looks := len(b.looks()) - from; looks < 20 || looks > 25 {
			t.Errorf("%d looks in a second of events, want 20 to 25", looks)
		}
	})
}

func TestAnOverflowIsLookedAtAtOnce(t *testing.T) {
	n := newFake()
	b := &bubble{make: func() (notifier, error) { return n, nil }}
	b.run(t, func(t *testing.T) {
		n.errs <- fsnotify.ErrEventOverflow
		if looks := b.after(0); len(looks) != 1 {
			t.Errorf("%d looks at once, want 1", len(looks))
		}
	})
	if strings.Contains(b.log.String(), "inotify") {
		t.Errorf("log: %s", b.log.String())
	}
}

func TestAFailedInotifyIsStartedAnew(t *testing.T) {
	var all []*fake
	b := &bubble{make: func() (notifier, error) {
		all = append(all, newFake())
		return all[len(all)-1], nil
	}}
	notifiers := func() []*fake {
		b.mu.Lock()
		defer b.mu.Unlock()
		return all
	}
	b.run(t, func(t *testing.T) {
		broken := errors.New("broken")
		notifiers()[0].errs <- broken
		if looks := b.after(settle); len(looks) != 1 || looks[0].Polling {
			t.Errorf("after the first failure: %+v", looks)
		}
		if all := notifiers(); len(all) != 2 || !all[0].closed {
			t.Fatalf("%d notifiers, the first one closed: %v", len(all), all[0].closed)
		}
		// The second time in a row it is given more time.
		notifiers()[1].errs <- broken
		if looks := b.after(pollInterval - time.Millisecond); len(looks) != 0 {
			t.Errorf("%d looks too early", len(looks))
		}
		if looks := b.after(time.Millisecond); len(looks) != 1 {
			t.Errorf("%d looks after a second, want 1", len(looks))
		}
		b.after(time.Hour)
		// Closed channels must not be mistaken for a flood of events.
		close(notifiers()[2].events)
		if looks := b.after(settle); len(looks) != 1 {
			t.Errorf("%d looks after the channel was closed, want 1", len(looks))
		}
		b.after(time.Hour)
		close(notifiers()[3].errs)
		if looks := b.after(settle); len(looks) != 1 {
			t.Errorf("%d looks after the channel was closed, want 1", len(looks))
		}
		if all := notifiers(); len(all) != 5 || all[4].watches() != "001 creds" {
			t.Errorf("%d notifiers, the last one watches %s", len(all), all[len(all)-1].watches())
		}
	})
	if got := strings.Count(b.log.String(), "level=WARN"); got != 2 {
		t.Errorf("%d warnings, want one per distinct error:\n%s", got, b.log.String())
	}
}

func TestInotifyIsUsedUpAndComesBack(t *testing.T) {
	for name, test := range map[string]struct {
		exhaust func(n *fake, create *error)
		release func(n *fake, create *error)
		reason  string
	}{
		"instances": {
			exhaust: func(_ *fake, create *error) {
				*create = fmt.Errorf("couldn't initialize inotify: %w", syscall.EMFILE)
			},
			release: func(_ *fake, create *error) { *create = nil },
			reason:  "max_user_instances",
		},
		"watches": {
			exhaust: func(n *fake, _ *error) { n.full = syscall.ENOSPC },
			release: func(n *fake, _ *error) {
				n.mu.Lock()
				defer n.mu.Unlock()
				n.full = nil
			},
			reason: "max_user_watches",
		},
		"rights": {
			exhaust: func(n *fake, _ *error) { n.full = syscall.EACCES },
			release: func(n *fake, _ *error) {
				n.mu.Lock()
				defer n.mu.Unlock()
				n.full = nil
			},
			reason: "permission denied",
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := newFake()
			var create error
			test.exhaust(n, &create)
			b := &bubble{make: func() (notifier, error) {
				if create != nil {
					return nil, create
				}
				return n, nil
			}}
			b.run(t, func(t *testing.T) {
				seen := b.looks()
				if len(seen) != 1 || !seen[0].Polling {
					t.Fatalf("at start: %+v, want one look that polls", seen)
				}
				if got := seen[0].PollingReason; !strings.Contains(got, test.reason) || !strings.HasSuffix(got, ".") {
					t.Errorf("reason %q, want a sentence with %q", got, test.reason)
				}
				write(t, nil, b.dir, "key.pem")
				looks := b.after(pollInterval)
				if len(looks) != 1 || present(looks[0]) != "k" || !looks[0].Polling {
					t.Errorf("looks in the first second: %+v", looks)
				}
				if looks := b.after(time.Minute); len(looks) != 60 {
					t.Errorf("%d looks in a minute, want 60", len(looks))
				}

				b.mu.Lock()
				test.release(n, &create)
				b.mu.Unlock()
				looks = b.after(pollInterval)
				if len(looks) != 1 || looks[0].Polling || looks[0].PollingReason != "" {
					t.Errorf("looks after the recovery: %+v", looks)
				}
				if looks := b.after(time.Minute); len(looks) != 12 {
					t.Errorf("%d looks in a minute, want 12", len(looks))
				}
				n.events <- fsnotify.Event{}
				if looks := b.after(settle); len(looks) != 1 {
					t.Errorf("%d looks after an event, want 1", len(looks))
				}
			})
			if got := strings.Count(b.log.String(), "\n"); got != 2 {
				t.Errorf("%d log lines, want one for each change:\n%s", got, b.log.String())
			}
		})
	}
}

// What happens between a look and the watch raises no event.
func TestTheDirectoryChangesWhileItsWatchIsSet(t *testing.T) {
	n := newFake()
	b := &bubble{make: func() (notifier, error) { return n, nil }}
	b.run(t, func(t *testing.T) {
		remove(t, b.dir)
		n.during(func(string) {
			n.onAdd = nil
			mkdir(t, b.dir)
		})
		looks := b.after(defaultRescan)
		if len(looks) != 1 || !looks[0].DirExists || looks[0].Polling {
			t.Errorf("looks: %+v, want the directory", looks)
		}
		if n.watches() != "001 creds" {
			t.Errorf("watched: %s, want the directory and its parent", n.watches())
		}
	})
}

// The kernel keeps the watch of a directory that lives on elsewhere, and tells
// of it for ever.
func TestTheWatchOfAFormerDirectoryIsDropped(t *testing.T) {
	n := newFake()
	b := &bubble{make: func() (notifier, error) { return n, nil }}
	b.run(t, func(t *testing.T) {
		rename(t, b.dir, b.dir+".old")
		mkdir(t, b.dir)
		b.after(defaultRescan)
		if removed := n.removals(b.dir); removed != 1 || n.watches() != "001 creds" {
			t.Errorf("removed %d times and watched: %s; want once and the directory among them", removed, n.watches())
		}
		b.after(time.Minute)
		if removed := n.removals(b.dir); removed != 1 {
			t.Errorf("removed %d times, though nothing has changed", removed)
		}
	})
}

func TestADirectoryThatNeverStaysIsPolled(t *testing.T) {
	n := newFake()
	b := &bubble{make: func() (notifier, error) { return n, nil }}
	b.run(t, func(t *testing.T) {
		n.during(func(path string) {
			if path == b.dir {
				remove(t, b.dir)
			} else {
				mkdir(t, b.dir)
			}
		})
		looks := b.after(defaultRescan)
		if len(looks) != 1 || !looks[0].Polling || !strings.Contains(looks[0].PollingReason, "too quickly") {
			t.Errorf("looks: %+v, want polling", looks)
		}
	})
}

func TestRunEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := New(Config{Dir: t.TempDir()}).Run(ctx); err != nil {
		t.Errorf("Run = %v, want nil", err)
	}
}

func TestDefaults(t *testing.T) {
	w := New(Config{Dir: "a/../b/"})
	if w.cfg.Rescan != 5*time.Second || w.cfg.Log == nil || w.cfg.Observe == nil || w.cfg.Dir != "b" {
		t.Errorf("defaults: %+v", w.cfg)
	}
	if w.cfg.Log.Enabled(t.Context(), slog.LevelError) {
		t.Error("a watcher without a log logs")
	}
	if _, err := os.Stat("b"); err == nil {
		t.Error("New makes the directory")
	}
}

// The first event after a calm is looked at nearly at once, what follows it
// more rarely.
func TestUnrestIsLookedAtMoreRarely(t *testing.T) {
	n := newFake()
	b := &bubble{make: func() (notifier, error) { return n, nil }}
	b.run(t, func(t *testing.T) {
		for range 3 {
			n.events <- fsnotify.Event{}
			if looks := b.after(settle); len(looks) != 1 {
				t.Errorf("%d looks after the calm, want 1", len(looks))
			}
			n.events <- fsnotify.Event{}
			if looks := b.after(unrest - time.Millisecond); len(looks) != 0 {
				t.Errorf("%d looks too early", len(looks))
			}
			if looks := b.after(time.Millisecond); len(looks) != 1 {
				t.Errorf("%d looks in the unrest, want 1", len(looks))
			}
			b.after(calm)
		}
	})
}
