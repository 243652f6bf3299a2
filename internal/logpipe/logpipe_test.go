package logpipe

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func text(w io.Writer) slog.Handler { return slog.NewTextHandler(w, nil) }

// reader takes lines when it is let.
type reader struct {
	let chan struct{}
	got bytes.Buffer
}

func (r *reader) Write(p []byte) (int, error) {
	<-r.let
	return r.got.Write(p)
}

// TestInOrder: all lines come, in their order, also those just before the end.
func TestInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out, want bytes.Buffer
		p := New(&out, text)
		for i := range 1000 {
			fmt.Fprintf(io.MultiWriter(p, &want), "line %d\n", i)
			if i%50 == 0 {
				synctest.Wait()
			}
		}
		p.Close()
		if out.String() != want.String() {
			t.Errorf("%d bytes, want %d: %.200q", out.Len(), want.Len(), out.String())
		}
	})
}

// TestNobodyReads: writing goes on, what there is no room for is counted, and
// that is told once somebody reads again.
func TestNobodyReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &reader{let: make(chan struct{})}
		p := New(r, text)
		log := slog.New(text(p))
		log.Info("first")
		synctest.Wait() // it is being written
		for range most + 44 {
			log.Info("more")
		}
		synctest.Wait()
		begin := time.Now()
		p.Close()
		if took := time.Since(begin); took != patience {
			t.Errorf("it closes after %s", took)
		}
		close(r.let)
		synctest.Wait()
		if n := strings.Count(r.got.String(), "msg=more"); n != most {
			t.Errorf("%d lines were kept, want %d", n, most)
		}
		if !strings.HasSuffix(r.got.String(), "lines=44\n") {
			t.Errorf("what was lost is not told: %q", r.got.String()[r.got.Len()-200:])
		}
	})
}

// TestBroken: a pipe that is broken is no error.
func TestBroken(t *testing.T) {
	r, w := io.Pipe()
	r.CloseWithError(errors.New("gone"))
	p := New(w, text)
	if n, err := p.Write([]byte("line\n")); n != 5 || err != nil {
		t.Error(n, err)
	}
	p.Close()
	if _, err := p.Write([]byte("too late\n")); err != nil {
		t.Error(err)
	}
}
