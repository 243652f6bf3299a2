package watchdog

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"svid-watchdog/internal/fswatch"
	"svid-watchdog/internal/rotation"
)

// lookAgain is how long after a look at Envoy that found something wrong
// another is made. What heals at once is not named then, and counters that have
// grown meanwhile tell why a stream is down.
const lookAgain = 1500 * time.Millisecond

// Look looks at the pod once and judges what it finds, as far as one look can
// tell. Where something is wrong with Envoy it looks at Envoy once more, and
// again where that finds its streams open after all. What has not answered when
// ctx ends is not waited for. The error is about the configuration.
func Look(ctx context.Context, cfg Config) (rotation.Verdict, error) {
	if deadline, ok := ctx.Deadline(); ok {
		// A server that is silent is to be told from one that is not there.
		cfg.AnswerTimeout = time.Until(deadline) * 9 / 10
	}
	o, err := newObserver(cfg, true, slog.New(slog.DiscardHandler))
	if err != nil {
		return rotation.Verdict{}, err
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		files := fswatch.Look(cfg.CredentialsDir, time.Now())
		o.record(func(l *rotation.Ledger) { l.RecordFiles(files) })
	})
	wg.Go(func() { o.lookAtWorkloadAPI(ctx) })
	wg.Go(func() { o.lookAtEnvoy(ctx) })
	wg.Wait()
	if o.aboutEnvoy() && wait(ctx, lookAgain) {
		o.lookAtEnvoy(ctx)
		if o.opens() && wait(ctx, lookAgain) {
			o.lookAtEnvoy(ctx)
		}
	}
	o.envoy.Close()
	return o.Verdict(), nil
}

func (w *observer) lookAtWorkloadAPI(ctx context.Context) {
	if w.noSVID {
		state := w.svid.Knock(ctx)
		w.record(func(l *rotation.Ledger) { l.RecordWorkloadAPI(state) })
		return
	}
	state, issuance := w.svid.Look(ctx)
	w.record(func(l *rotation.Ledger) {
		l.RecordWorkloadAPI(state)
		if issuance != nil {
			l.RecordIssuance(*issuance)
		}
	})
}

// lookAtEnvoy makes the handshake last, so that what it shows is not older
// than what Envoy says it has.
func (w *observer) lookAtEnvoy(ctx context.Context) {
	look := w.envoy.Look(ctx)
	w.record(func(l *rotation.Ledger) { l.RecordEnvoy(look) })
	if w.handshake != nil {
		shown := w.handshake.Look(ctx)
		w.record(func(l *rotation.Ledger) { l.RecordHandshake(shown) })
	}
}

// aboutEnvoy tells whether a problem holds that a second look at Envoy can say
// more about.
func (w *observer) aboutEnvoy() bool {
	for _, p := range w.Verdict().Problems {
		switch p.Stage {
		case rotation.Delivered, rotation.Loaded, rotation.Served:
			return true
		}
	}
	return false
}

// opens tells whether Envoy's streams are called down though they were open at
// the latest look: for its blink only, or from now on, says another one.
func (w *observer) opens() bool {
	v := w.Verdict()
	open := v.Envoy.SDSStreams
	return v.Has(rotation.SDSStreamDown) && open != nil && *open > 0
}

// wait waits, unless ctx ends before that and another look.
func wait(ctx context.Context, d time.Duration) bool {
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) < 2*d {
		return false
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// Watch watches the pod as the daemon does, without serving anything, for a
// time or until ctx ends, and returns the last verdict.
func Watch(ctx context.Context, cfg Config, d time.Duration) (rotation.Verdict, error) {
	o, err := newObserver(cfg, false, slog.New(slog.DiscardHandler))
	if err != nil {
		return rotation.Verdict{}, err
	}
	// The sources go on until the last verdict was made.
	neighbours, dismiss := context.WithCancel(context.WithoutCancel(ctx))
	defer dismiss()
	group, neighbours := errgroup.WithContext(neighbours)
	if cfg.NoSVID {
		o.lookAtWorkloadAPI(ctx)
	}
	o.start(neighbours, group)
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	case <-neighbours.Done():
	}
	verdict := o.Verdict()
	dismiss()
	return verdict, group.Wait()
}
