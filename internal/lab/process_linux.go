package lab

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// startChild starts a process that ends with us, however we end, and returns
// a channel that is closed when it has ended.
//
// The kernel sends the signal when the thread ends that started the child
// (prctl(2), PR_SET_PDEATHSIG), so that this thread is kept for as long.
func startChild(cmd *exec.Cmd) (<-chan struct{}, error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error, 1)
	exited := make(chan struct{})
	go func() {
		defer close(exited)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // that it ended is all that matters
		}
	}()
	return exited, <-started
}

// mount shows a directory by an open file descriptor, as a bind mount does in
// a container: when the directory is deleted and made again on the node, the
// mount still shows the deleted one, with a link count of 0.
type mount struct {
	fd int
}

func newMount(dir string) (*mount, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w", dir, err)
	}
	return &mount{fd: fd}, nil
}

// path is a path below the mounted directory.
func (m *mount) path(name string) string {
	return filepath.Join(fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), m.fd), name)
}

// remount shows the directory that is at the path now, as in a new pod.
func (m *mount) remount(dir string) error {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("mount %s again: %w", dir, err)
	}
	defer unix.Close(fd)
	if err := unix.Dup3(fd, m.fd, unix.O_CLOEXEC); err != nil {
		return fmt.Errorf("mount %s again: %w", dir, err)
	}
	return nil
}

func (m *mount) close() { unix.Close(m.fd) }

// canOrphan tells whether this platform can show a deleted directory.
const canOrphan = true
