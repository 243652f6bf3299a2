package svid

import (
	"context"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"

	"svid-watchdog/internal/rotation"
)

// TestLook: one stream, one answer, and the stream is closed.
func TestLook(t *testing.T) {
	t.Parallel()
	path := socketPath(t)
	ended := make(chan struct{}, 1)
	s := serve(t, listenUnix(t, path), func(n int, stream grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
		defer func() { ended <- struct{}{} }()
		return sendAndStay(message(t, 1), message(t, 2))(n, stream)
	})
	c, err := New(Config{Address: "unix://" + path})
	if err != nil {
		t.Fatal(err)
	}
	state, issued := c.Look(t.Context())
	if state.State != rotation.WorkloadAPIServing || issued == nil || issued.Leaf.Serial != "1" {
		t.Errorf("%+v %+v", state, issued)
	}
	<-ended
	if s.opened() != 1 {
		t.Errorf("%d streams", s.opened())
	}
}

// TestLookInVain: each failure is told once and ends the look.
func TestLookInVain(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		serve  func(int, grpc.ServerStreamingServer[workload.X509SVIDResponse]) error
		state  rotation.WorkloadAPIState
		reason rotation.Reason
		answer time.Duration
	}{
		"denied": {func(int, grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
			return status.Error(codes.PermissionDenied, "no identity issued")
		}, rotation.WorkloadAPIDenied, rotation.ReasonNone, atOnce},
		"error": {func(int, grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
			return status.Error(codes.Unknown, "out of order")
		}, rotation.WorkloadAPIUnreachable, rotation.ReasonServerError, atOnce},
		"silent": {func(_ int, stream grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
			<-stream.Context().Done()
			return nil
		}, rotation.WorkloadAPIUnreachable, rotation.ReasonSilent, busy},
		"nobody": {nil, rotation.WorkloadAPIUnreachable, rotation.ReasonNoSocket, atOnce},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := socketPath(t)
			if tt.serve != nil {
				serve(t, listenUnix(t, path), tt.serve)
			}
			c, err := New(Config{Address: "unix://" + path, AnswerTimeout: tt.answer})
			if err != nil {
				t.Fatal(err)
			}
			state, issued := c.Look(t.Context())
			if state.State != tt.state || state.Reason != tt.reason || issued != nil || state.At.IsZero() {
				t.Errorf("%+v %+v", state, issued)
			}
		})
	}
}

// TestLookIsCutShort: the caller's time counts too.
func TestLookIsCutShort(t *testing.T) {
	t.Parallel()
	path := socketPath(t)
	listenUnix(t, path) // and nobody accepts
	c, err := New(Config{Address: "unix://" + path})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if state, _ := c.Look(ctx); state.State != rotation.WorkloadAPIUnreachable || state.Reason != rotation.ReasonSilent {
		t.Errorf("%+v", state)
	}
}

// TestKnock: whether the socket answers is seen without opening a stream.
func TestKnock(t *testing.T) {
	t.Parallel()
	path := socketPath(t)
	s := serve(t, listenUnix(t, path), sendAndStay(message(t, 1)))
	c, err := New(Config{Address: "unix://" + path})
	if err != nil {
		t.Fatal(err)
	}
	if state := c.Knock(t.Context()); state.State != rotation.WorkloadAPINotAsked || !*state.SocketAnswers {
		t.Errorf("%+v", state)
	}
	if _, issued := c.Look(t.Context()); issued == nil || s.opened() != 1 {
		t.Errorf("%d streams with that of a look", s.opened())
	}
	c, err = New(Config{Address: "unix://" + path + "x"})
	if err != nil {
		t.Fatal(err)
	}
	if state := c.Knock(t.Context()); state.Reason != rotation.ReasonNoSocket || *state.SocketAnswers {
		t.Errorf("%+v", state)
	}
}
