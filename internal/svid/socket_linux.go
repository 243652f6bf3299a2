package svid

import (
	"os"
	"path/filepath"
	"syscall"

	"svid-watchdog/internal/rotation"
)

// agentDir and agentSocket are where Istio's agent looks for the socket, and
// where it serves itself (istio: pkg/security/security.go).
const (
	agentDir    = "workload-spiffe-uds"
	agentSocket = "socket"
)

// lookAtSocket looks at what Istio's agent would find at the endpoint, nil
// when that is no path or its directory cannot be looked at.
func lookAtSocket(e endpoint) *rotation.Socket {
	if e.network != "unix" {
		return nil
	}
	dir, name := filepath.Split(e.address)
	var fs syscall.Statfs_t
	if syscall.Statfs(dir, &fs) != nil {
		return nil
	}
	s := &rotation.Socket{
		File:        rotation.SocketFileAbsent,
		DirReadOnly: fs.Flags&stReadOnly != 0,
		Renamed:     filepath.Base(dir) == agentDir && name != agentSocket,
	}
	if info, err := os.Stat(e.address); err == nil {
		s.File = rotation.SocketFileSocket
		if info.Mode().IsRegular() {
			s.File = rotation.SocketFileRegular
		}
	}
	return s
}

// stReadOnly is ST_RDONLY: the mount or its filesystem is read-only
// (statfs(2)).
const stReadOnly = 1
