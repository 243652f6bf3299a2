package child

import (
	"errors"
	"fmt"
	"os/exec"
	"runtime"
	"syscall"
)

// Start starts a process that ends with us, however we end, and returns a
// channel that is closed when it has ended.
//
// The kernel sends the signal when the thread ends that started the child
// (prctl(2), PR_SET_PDEATHSIG), so that this thread is kept for as long.
func Start(cmd *exec.Cmd) (<-chan struct{}, error) { return StartHeld(cmd, nil) }

// StartHeld is Start, and holds the process before its first instruction until
// a function, which is told its number, returns. The function may be nil.
func StartHeld(cmd *exec.Cmd, begin func(pid int) error) (<-chan struct{}, error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	cmd.SysProcAttr.Ptrace = begin != nil
	started := make(chan error, 1)
	exited := make(chan struct{})
	go func() {
		defer close(exited)
		runtime.LockOSThread() // which a tracer needs too
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		if err != nil {
			started <- err
			return
		}
		if begin != nil {
			if err = hold(cmd.Process.Pid, begin); err != nil {
				_ = cmd.Process.Kill() // it may have ended
			}
		}
		started <- err
		_ = cmd.Wait() // that it ended is all that matters
	}()
	return exited, <-started
}

// hold waits until a process that is traced stops at its first instruction, and
// lets it go once the function has returned.
func hold(pid int, begin func(pid int) error) error {
	var status syscall.WaitStatus
	_, err := syscall.Wait4(pid, &status, 0, nil)
	for errors.Is(err, syscall.EINTR) {
		_, err = syscall.Wait4(pid, &status, 0, nil)
	}
	if err != nil || !status.Stopped() {
		return fmt.Errorf("hold process %d at its start: status %#x, %w", pid, status, errors.Join(err, syscall.ECHILD))
	}
	return errors.Join(begin(pid), syscall.PtraceDetach(pid))
}
