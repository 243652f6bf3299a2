package svid

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
	"unicode"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"svid-watchdog/internal/rotation"
)

// maxDetail bounds the texts of a server that are passed on, in bytes.
const maxDetail = 400

// dialFailure tells why there is no connection.
func dialFailure(e endpoint, err error) rotation.WorkloadAPI {
	state := rotation.WorkloadAPI{
		State:         rotation.WorkloadAPIUnreachable,
		Reason:        rotation.ReasonRefused,
		Detail:        tidy(err.Error()),
		SocketAnswers: new(false),
	}
	var timeout net.Error
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		state.Reason = rotation.ReasonNoSocket
		if dir := filepath.Dir(e.address); orphaned(dir) {
			state.Reason = rotation.ReasonDirectoryOrphaned
			state.Detail = fmt.Sprintf("the directory %s that is mounted here has been deleted on the node", dir)
		}
	case errors.Is(err, syscall.ECONNREFUSED):
		// The usual thing: the process is gone and its socket is left.
	case errors.Is(err, fs.ErrPermission):
		state.Detail = "this process may not use the socket: " + state.Detail
	case errors.Is(err, syscall.EAGAIN):
		// The queue of a unix socket is full (unix(7)): somebody listens and
		// does not accept.
		state.Reason = rotation.ReasonSilent
		state.Detail = "nobody accepts connections, the queue of the socket is full: " + state.Detail
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded),
		errors.As(err, &timeout) && timeout.Timeout():
		state.Reason = rotation.ReasonSilent
	}
	return state
}

// orphaned tells whether a directory was deleted while it is still in use, for
// example by a mount: its link count is then 0. When tbot's directory on the
// node is deleted and made anew, running pods keep the deleted one for ever
// (spiffe/spiffe-csi#16); a new pod gets the new one.
func orphaned(dir string) bool {
	info, err := os.Stat(dir)
	if err != nil {
		return false
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && stat.Nlink == 0
}

// streamFailure tells why a stream that could be opened brought no SVID.
func streamFailure(err error) rotation.WorkloadAPI {
	state := rotation.WorkloadAPI{
		State:         rotation.WorkloadAPIUnreachable,
		Reason:        rotation.ReasonServerError,
		Detail:        describe(err),
		SocketAnswers: new(true),
	}
	if status.Code(err) == codes.PermissionDenied {
		state.State, state.Reason = rotation.WorkloadAPIDenied, rotation.ReasonNone
	}
	return state
}

// silence tells that nothing came in time.
func silence(after time.Duration, answers bool) rotation.WorkloadAPI {
	state := rotation.WorkloadAPI{
		State:         rotation.WorkloadAPIUnreachable,
		Reason:        rotation.ReasonSilent,
		Detail:        fmt.Sprintf("the connection was accepted, but nothing speaks HTTP/2 on it within %v", after),
		SocketAnswers: &answers,
	}
	if answers {
		state.Detail = fmt.Sprintf("the stream is open, but no answer came within %v", after)
	}
	return state
}

// describe is a gRPC error for people: the code and the text.
func describe(err error) string {
	if errors.Is(err, io.EOF) {
		return "the server closed the stream"
	}
	if s, ok := status.FromError(err); ok {
		return tidy(fmt.Sprintf("%s: %s", s.Code(), s.Message()))
	}
	return tidy(err.Error())
}

// tidy makes one short line of a text that a server has written.
func tidy(text string) string {
	text = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == unicode.ReplacementChar {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, " "))
	if len(text) > maxDetail {
		text = strings.ToValidUTF8(text[:maxDetail], "") + "…"
	}
	return text
}
