//go:build !linux

package child

import "os/exec"

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
