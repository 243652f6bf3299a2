package fswatch

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"svid-watchdog/internal/rotation"
)

// All three files are watched for being opened; only the chain may be.
func TestTheKeyIsNeverOpened(t *testing.T) {
	dir := t.TempDir()
	for _, name := range rotation.CredentialFileNames() {
		write(t, chainPEM(t, 1), dir, string(name))
	}
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		t.Skipf("no inotify: %v", err)
	}
	defer unix.Close(fd)
	names := map[int32]rotation.CredentialFile{}
	for _, name := range rotation.CredentialFileNames() {
		wd, err := unix.InotifyAddWatch(fd, filepath.Join(dir, string(name)), unix.IN_OPEN)
		if err != nil {
			t.Fatal(err)
		}
		names[int32(wd)] = name
	}

	if got := Look(dir, time.Now()); got.Count() != 3 || got.Leaf == nil {
		t.Fatalf("look: %+v", got)
	}

	opened := map[rotation.CredentialFile]int{}
	buf := make([]byte, 4096)
	n, err := unix.Read(fd, buf)
	if err != nil {
		t.Fatalf("read events: %v, want at least the opened chain", err)
	}
	for at := 0; at < n; at += unix.SizeofInotifyEvent {
		// The events of a watched file carry no name.
		wd := int32(buf[at]) | int32(buf[at+1])<<8 | int32(buf[at+2])<<16 | int32(buf[at+3])<<24
		opened[names[wd]]++
	}
	if len(opened) != 1 || opened[rotation.CertChainFile] != 1 {
		t.Errorf("opened %v, want %s only", opened, rotation.CertChainFile)
	}
}

// As a user without rights: nothing is known, and that is not "no file".
func TestLookWithoutRights(t *testing.T) {
	dir := mkdir(t, t.TempDir(), "parent", "creds")
	write(t, chainPEM(t, 1), dir, "cert-chain.pem")
	write(t, nil, dir, "key.pem")
	asNobody := func(look func() rotation.CredentialFiles) rotation.CredentialFiles {
		if os.Getuid() != 0 {
			return look()
		}
		done := make(chan rotation.CredentialFiles)
		go func() {
			// The file system's view of a user is a matter of the thread,
			// which ends with the goroutine that locked it.
			runtime.LockOSThread()
			if err := dropFileRights(); err != nil {
				t.Error(err)
			}
			done <- look()
		}()
		return <-done
	}
	// The temporary directory is root's alone.
	for d := dir; d != filepath.Dir(os.TempDir()) && d != "/"; d = filepath.Dir(d) {
		if os.Getuid() == 0 && d != os.TempDir() {
			if err := os.Chmod(d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}

	if err := os.Chmod(filepath.Join(dir, "cert-chain.pem"), 0); err != nil {
		t.Fatal(err)
	}
	got := asNobody(func() rotation.CredentialFiles { return Look(dir, time.Now()) })
	if got.Err != "" || present(got) != "ck" || !strings.Contains(got.LeafErr, "permission denied") {
		t.Errorf("unreadable chain: %+v", got)
	}

	chmod(t, dir, 0) // The directory can be seen, but not what is in it.
	got = asNobody(func() rotation.CredentialFiles { return Look(dir, time.Now()) })
	if !got.DirExists || !strings.Contains(got.Err, "permission denied") || present(got) != "" {
		t.Errorf("closed directory: %+v", got)
	}

	chmod(t, filepath.Dir(dir), 0)
	got = asNobody(func() rotation.CredentialFiles { return Look(dir, time.Now()) })
	if got.DirExists || !strings.Contains(got.Err, "permission denied") {
		t.Errorf("closed parent: %+v", got)
	}
}

// dropFileRights makes the thread an ordinary user to the file system.
func dropFileRights() error {
	_, _, errno := syscall.RawSyscall(unix.SYS_SETFSUID, 65534, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
