//go:build !linux

package child

import (
	"errors"
	"os/exec"
)

// Start starts a process and returns a channel that is closed when it has
// ended.
func Start(cmd *exec.Cmd) (<-chan struct{}, error) {
	exited := make(chan struct{})
	if err := cmd.Start(); err != nil {
		close(exited)
		return exited, err
	}
	go func() {
		defer close(exited)
		_ = cmd.Wait() // that it ended is all that matters
	}()
	return exited, nil
}

// StartHeld is Start; that a process is held at its start takes Linux.
func StartHeld(cmd *exec.Cmd, begin func(pid int) error) (<-chan struct{}, error) {
	if begin != nil {
		exited := make(chan struct{})
		close(exited)
		return exited, errors.New("only on Linux a process is held at its start")
	}
	return Start(cmd)
}
