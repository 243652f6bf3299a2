package watchdog

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"svid-watchdog/internal/rotation"
)

// monitor owns the ledger: the sources record in it, the judge and the
// reports ask it for verdicts.
type monitor struct {
	log *slog.Logger

	mu     sync.Mutex
	ledger *rotation.Ledger
	judged bool

	// wake tells the judge that there is new evidence.
	wake chan struct{}
	// logged is the last event that was logged; it belongs to the judge.
	logged uint64
}

func newMonitor(cfg rotation.Config, log *slog.Logger) *monitor {
	return &monitor{log: log, ledger: rotation.NewLedger(cfg), wake: make(chan struct{}, 1)}
}

// record takes evidence, and has it judged.
func (m *monitor) record(take func(*rotation.Ledger)) {
	m.mu.Lock()
	take(m.ledger)
	m.mu.Unlock()
	select {
	case m.wake <- struct{}{}:
	default: // the judge is about to look
	}
}

// Verdict judges what is known now.
func (m *monitor) Verdict() rotation.Verdict {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.judged = true
	return m.ledger.Judge(time.Now())
}

// loaded counts the rotations of Envoy's TLS contexts.
func (m *monitor) loaded() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ledger.Rotations(rotation.Loaded)
}

func (m *monitor) ready() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.judged
}

// maxRecheck bounds how long the judge sleeps: the time until a certificate
// expires is one of the wall clock, which may be set, or go on while a
// suspended node's monotonic clock stands still.
const maxRecheck = 15 * time.Second

// judge turns evidence into verdicts, and says what changed: at once when
// there is new evidence, and when time alone may have changed the verdict.
func (m *monitor) judge(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-m.wake:
		case <-timer.C:
		}
		verdict := m.Verdict()
		m.logEvents(ctx, verdict)
		wait := maxRecheck
		if !verdict.Recheck.IsZero() {
			wait = min(wait, max(0, time.Until(verdict.Recheck))+time.Millisecond)
		}
		timer.Reset(wait)
	}
}

// logEvents writes one line for each transition.
func (m *monitor) logEvents(ctx context.Context, v rotation.Verdict) {
	for _, e := range v.Events {
		if e.Seq <= m.logged {
			continue
		}
		m.logged = e.Seq
		level := slog.LevelInfo
		if e.Type == rotation.EventSourceDown {
			level = slog.LevelWarn
		}
		attrs := []slog.Attr{slog.String("event", string(e.Type)), slog.String("detail", e.Message)}
		if e.Stage != "" {
			attrs = append(attrs, slog.String("stage", string(e.Stage)))
		}
		if e.Source != "" {
			attrs = append(attrs, slog.String("source", string(e.Source)))
		}
		if e.Problem != "" {
			attrs = append(attrs, slog.String("problem", string(e.Problem)))
			if p, holds := v.Find(e.Problem); holds {
				level = slog.LevelWarn
				attrs = append(attrs, slog.String("severity", string(p.Severity)))
				if p.Reason != rotation.ReasonNone {
					attrs = append(attrs, slog.String("reason", string(p.Reason)))
				}
				attrs = append(attrs, slog.String("advice", p.Advice))
			}
		}
		m.log.LogAttrs(ctx, level, "transition", attrs...)
	}
}
