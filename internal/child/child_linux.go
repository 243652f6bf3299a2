package child

import (
	"os/exec"
	"runtime"
	"syscall"
)

// Start starts a process that ends with us, however we end, and returns a
// channel that is closed when it has ended.
//
// The kernel sends the signal when the thread ends that started the child
// (prctl(2), PR_SET_PDEATHSIG), so that this thread is kept for as long.
func Start(cmd *exec.Cmd) (<-chan struct{}, error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
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
