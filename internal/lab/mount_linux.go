package lab

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

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
