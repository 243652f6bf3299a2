package fswatch

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"

	"svid-watchdog/internal/rotation"
)

const (
	// defaultRescan is the distance of two looks without an event.
	defaultRescan = 5 * time.Second
	// pollInterval replaces it while inotify is not to be had.
	pollInterval = time.Second
	// settle is how long after an event the look is taken. Files that are
	// written together are so seen together, and a burst of events costs one
	// look. It is counted from the first event, not from the last: a directory
	// that is never at rest is looked at all the same, and more rarely, by
	// unrest, if the look before was less than calm ago.
	settle = 5 * time.Millisecond
	unrest = 40 * time.Millisecond
	calm   = 200 * time.Millisecond
	// armAttempts bounds how often the watches are set anew within one scan
	// because the directory changed under them.
	armAttempts = 4
)

// Config says what to watch.
type Config struct {
	// Dir is the directory of the credential files. It need not exist.
	Dir string
	// Rescan is the distance of two looks without an event, 5 s if zero.
	Rescan time.Duration
	// Log is where the watcher tells that it fell back to polling, and that it
	// came back; nil for nowhere.
	Log *slog.Logger
	// Observe is called with each look: the first one at once, then one for
	// each event (a burst counts as one) and each re-scan. All calls come from
	// the goroutine of [Watcher.Run], which waits for them.
	Observe func(rotation.CredentialFiles)
}

// Watcher looks at a directory again and again.
type Watcher struct {
	cfg         Config
	newNotifier func() (notifier, error)

	notifier notifier // nil while there is none to be had
	// watched is what the notifier watches, by path, each as it was when the
	// watch was set.
	watched map[string]fs.FileInfo
	polling string // why we poll, empty while we do not

	wokenAt time.Time // when an event last caused a look

	failure  string    // the last error of an inotify at work, as it was logged
	failedAt time.Time // and when it was
}

// notifier is the part of fsnotify that is used. Tests put one in its place
// that can be exhausted at will.
type notifier interface {
	Add(path string) error
	Remove(path string) error
	Close() error
	Channels() (<-chan fsnotify.Event, <-chan error)
}

type inotify struct{ *fsnotify.Watcher }

func (i inotify) Channels() (<-chan fsnotify.Event, <-chan error) { return i.Events, i.Errors }

func newInotify() (notifier, error) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, err
	}
	return inotify{w}, nil
}

// New returns a watcher. Nothing is looked at before [Watcher.Run].
func New(cfg Config) *Watcher {
	if cfg.Rescan <= 0 {
		cfg.Rescan = defaultRescan
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Observe == nil {
		cfg.Observe = func(rotation.CredentialFiles) {}
	}
	cfg.Dir = filepath.Clean(cfg.Dir)
	return &Watcher{
		cfg:         cfg,
		newNotifier: newInotify,
		watched:     make(map[string]fs.FileInfo),
	}
}

// Run looks at the directory until the context ends, and then returns nil. It
// returns for no other reason. It must be called only once.
func (w *Watcher) Run(ctx context.Context) error {
	defer w.drop()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		if ctx.Err() != nil {
			return nil
		}
		w.scan()
		timer.Reset(w.interval())
		if !w.wait(ctx, timer) {
			return nil
		}
	}
}

// interval is the time until the next look if no event comes.
func (w *Watcher) interval() time.Duration {
	if w.polling != "" {
		return min(w.cfg.Rescan, pollInterval)
	}
	return w.cfg.Rescan
}

// scan sets the watches and then looks, in this order: what happens in between
// is an event.
func (w *Watcher) scan() {
	w.arm()
	files := Look(w.cfg.Dir, time.Now())
	files.Polling = w.polling != ""
	files.PollingReason = w.polling
	w.cfg.Observe(files)
}

// wait returns true when it is time to look again, and false when the context
// has ended. The timer is set to the next re-scan.
func (w *Watcher) wait(ctx context.Context, timer *time.Timer) bool {
	var events <-chan fsnotify.Event
	var errs <-chan error
	if w.notifier != nil {
		events, errs = w.notifier.Channels()
	}
	woken := false
	for {
		select {
		case <-ctx.Done():
			return false
		case <-timer.C:
			if woken {
				w.wokenAt = time.Now()
			}
			return true
		case _, ok := <-events:
			switch {
			case !ok:
				events, errs = nil, nil
				timer.Reset(w.failed(errClosed))
			case !woken:
				woken = true
				timer.Reset(w.pause())
			}
		case err, ok := <-errs:
			if errors.Is(err, fsnotify.ErrEventOverflow) {
				// The kernel's queue was full: events are lost, look at once.
				return true
			}
			if !ok {
				err = errClosed
			}
			events, errs = nil, nil
			timer.Reset(w.failed(err))
		}
	}
}

// pause is how long the look waits that an event asks for.
func (w *Watcher) pause() time.Duration {
	if !w.wokenAt.IsZero() && time.Since(w.wokenAt) < calm {
		return unrest
	}
	return settle
}

var errClosed = errors.New("its channels are closed")

// failed gives up an inotify that failed while it was at work, and returns how
// long to wait before the next scan starts it anew.
func (w *Watcher) failed(err error) time.Duration {
	w.drop()
	if text := err.Error(); text != w.failure {
		w.failure = text
		w.cfg.Log.Warn("inotify failed and is started anew", "error", text)
	}
	wait := settle
	if !w.failedAt.IsZero() && time.Since(w.failedAt) < pollInterval {
		wait = pollInterval // It fails again and again.
	}
	w.failedAt = time.Now()
	return wait
}

// drop gives up the notifier; the next scan makes a new one.
func (w *Watcher) drop() {
	if w.notifier != nil {
		// What is lost with it is only a file descriptor.
		_ = w.notifier.Close()
	}
	w.notifier = nil
	clear(w.watched)
}

// arm brings the watches in line with the directories that exist now, and
// notes why polling is needed, if it is.
func (w *Watcher) arm() {
	reason := w.tryArm()
	switch reason {
	case w.polling:
	case "":
		w.cfg.Log.Info("watching the credentials directory with inotify again", "dir", w.cfg.Dir)
	default:
		w.cfg.Log.Warn("cannot watch the credentials directory, polling it instead", "dir", w.cfg.Dir, "reason", reason)
	}
	w.polling = reason
}

func (w *Watcher) tryArm() (reason string) {
	if w.notifier == nil {
		n, err := w.newNotifier()
		if err != nil {
			return explain("inotify cannot be started", err)
		}
		w.notifier = n
	}
	for range armAttempts {
		nearest, info := nearestDir(w.cfg.Dir)
		parent := filepath.Dir(w.cfg.Dir)
		for path := range w.watched {
			if path != nearest && path != parent {
				w.unwatch(path)
			}
		}
		if parent != nearest {
			// The parent tells of a directory that is a symbolic link and is
			// swapped. It is an extra: without it the re-scan finds out.
			if info, err := os.Stat(parent); err == nil {
				_ = w.watch(parent, info)
			}
		}
		if err := w.watch(nearest, info); err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				continue // It has just vanished.
			}
			return explain(nearest+" cannot be watched", err)
		}
		// Before the watch was set the directory may have appeared, vanished
		// or been replaced, and no event told.
		if again, info := nearestDir(w.cfg.Dir); again == nearest && os.SameFile(info, w.watched[nearest]) {
			return ""
		}
	}
	return "The credentials directory changes too quickly to be watched."
}

// watch sets a watch on a directory, also where there is one already: the
// inode of a deleted directory can be given to its successor, which then looks
// like the watched one and is not. To add a watch twice changes nothing.
func (w *Watcher) watch(path string, info fs.FileInfo) error {
	if old, ok := w.watched[path]; ok && !os.SameFile(old, info) {
		w.unwatch(path)
	}
	if err := w.notifier.Add(path); err != nil {
		w.unwatch(path)
		return err
	}
	w.watched[path] = info
	return nil
}

func (w *Watcher) unwatch(path string) {
	// It fails when the kernel has dropped the watch together with the
	// directory, and that is what is wanted.
	_ = w.notifier.Remove(path)
	delete(w.watched, path)
}

// nearestDir returns the directory, or the nearest one above it that exists.
func nearestDir(dir string) (string, fs.FileInfo) {
	for {
		info, err := os.Stat(dir)
		if err == nil && info.IsDir() {
			return dir, info
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			// Not even the root directory: the watch will fail and say why.
			return dir, info
		}
		dir = parent
	}
}

// explain is a sentence about an error of inotify. The kernel's own texts
// ("too many open files", "no space left on device") mislead.
func explain(what string, err error) string {
	hint := ""
	switch {
	case errors.Is(err, syscall.ENOSPC):
		hint = "; the watches of this user are used up (fs.inotify.max_user_watches)"
	case errors.Is(err, syscall.EMFILE):
		hint = "; the instances of this user are used up on this node (fs.inotify.max_user_instances), or the open files of this process"
	}
	return fmt.Sprintf("%s: %v%s.", what, err, hint)
}
