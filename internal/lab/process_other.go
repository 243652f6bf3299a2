//go:build !linux

package lab

import (
	"os/exec"
	"path/filepath"
)

// startChild starts a process and returns a channel that is closed when it has
// ended.
func startChild(cmd *exec.Cmd) (<-chan struct{}, error) {
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

// mount is the directory itself where there is no /proc.
type mount struct{ dir string }

func newMount(dir string) (*mount, error) { return &mount{dir}, nil }
func (m *mount) path(name string) string  { return filepath.Join(m.dir, name) }
func (m *mount) remount(string) error     { return nil }
func (m *mount) close()                   {}

const canOrphan = false
