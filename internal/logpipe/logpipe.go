// Package logpipe passes a log on without waiting for who reads it: standard
// error is a pipe to the container runtime, and a runtime that hangs must not
// keep the watchdog from watching.
package logpipe

import (
	"io"
	"log/slog"
	"sync"
	"time"
)

// most is how many lines wait at most. A line has a few hundred bytes.
const most = 256

// patience is how long Close waits for the lines that are left.
const patience = time.Second

// Pipe is a writer of lines that never blocks and never fails. Lines for which
// there is no room are lost, and how many these were is the next line.
type Pipe struct {
	out  io.Writer
	lost func(n int)

	mu      sync.Mutex
	waiting [][]byte
	dropped int
	closed  bool
	more    chan struct{}
	done    chan struct{}
}

// New begins to write to out. The handler writes in the format of the log.
func New(out io.Writer, handler func(io.Writer) slog.Handler) *Pipe {
	log := slog.New(handler(out))
	p := &Pipe{
		out: out, more: make(chan struct{}, 1), done: make(chan struct{}),
		lost: func(n int) { log.Warn("nobody read the log for a while, and lines of it are lost", "lines", n) },
	}
	go p.pass()
	return p
}

// Write implements io.Writer. Each call is a line.
func (p *Pipe) Write(line []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.closed:
	case len(p.waiting) >= most:
		p.dropped++
	default:
		p.waiting = append(p.waiting, append([]byte(nil), line...))
		p.wake()
	}
	return len(line), nil
}

func (p *Pipe) wake() {
	select {
	case p.more <- struct{}{}:
	default: // it is awake
	}
}

// Close waits a moment until what is left is written.
func (p *Pipe) Close() {
	p.mu.Lock()
	p.closed = true
	p.wake()
	p.mu.Unlock()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-p.done:
	case <-timer.C: // nobody reads
	}
}

// pass writes what waits, until the pipe is closed.
func (p *Pipe) pass() {
	defer close(p.done)
	for range p.more {
		for {
			p.mu.Lock()
			lines, dropped, closed := p.waiting, p.dropped, p.closed
			p.waiting, p.dropped = nil, 0
			p.mu.Unlock()
			// What cannot be written is lost: there is nowhere to say so.
			for _, line := range lines {
				_, _ = p.out.Write(line)
			}
			if dropped > 0 {
				p.lost(dropped)
			}
			if closed {
				return
			}
			if len(lines) == 0 {
				break
			}
		}
	}
}
