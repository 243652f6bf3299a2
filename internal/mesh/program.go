package mesh

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"svid-watchdog/internal/child"
)

// program is a running program of the control plane.
type program struct {
	name   string
	cmd    *exec.Cmd
	exited <-chan struct{}
}

// run starts a program, and waits until it serves or has ended.
func (c *ControlPlane) run(ctx context.Context, path string, env, args []string, serves func(context.Context) error) error {
	name := filepath.Base(path)
	log, err := os.Create(c.logPath(name))
	if err != nil {
		return fmt.Errorf("open the log of %s: %w", name, err)
	}
	defer log.Close()
	// Not CommandContext: the process lives longer than the call.
	cmd := exec.Command(path, args...) //nolint:gosec,noctx // see above
	cmd.Dir = c.dir
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = log, log
	// A group of its own: a Ctrl-C is for us, who end it in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	began := time.Now()
	exited, err := child.Start(cmd)
	if err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	c.mu.Lock()
	c.programs = append(c.programs, &program{name: name, cmd: cmd, exited: exited})
	c.mu.Unlock()

	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	go func() {
		select {
		case <-exited:
			cancel()
		case <-ctx.Done():
		}
	}()
	if err := Await(ctx, name+" to serve", serves); err != nil {
		select {
		case <-exited:
			err = errors.New(name + " ended at its start")
		default:
		}
		return fmt.Errorf("start %s: %w; the end of its log:\n%s", name, err, c.Log(name))
	}
	c.cfg.Log.Info("started", "program", name, "took", time.Since(began).Round(time.Millisecond))
	return nil
}

// stop ends the program at once: it has nothing to save.
func (p *program) stop() {
	_ = p.cmd.Process.Kill() // it may have ended
	<-p.exited
}

// Await calls a function until it returns no error, or until the context ends;
// then the error tells what was waited for, and the last failure.
func Await(ctx context.Context, what string, satisfied func(context.Context) error) error {
	retry := time.NewTicker(pollInterval)
	defer retry.Stop()
	began := time.Now()
	var last error
	for {
		err := satisfied(ctx)
		if err == nil {
			return nil
		}
		// What the end of the context itself broke off says nothing.
		if ctx.Err() == nil || last == nil {
			last = err
		}
		select {
		case <-retry.C:
		case <-ctx.Done():
			return fmt.Errorf("waited %s in vain for %s: %w", time.Since(began).Round(time.Second), what, last)
		}
	}
}
