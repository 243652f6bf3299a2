package svid

import (
	"context"
	"net"
	"time"

	"svid-watchdog/internal/rotation"
)

// Look opens one stream, takes its first answer and closes it. The issuance is
// nil if there was none; the state then says why. It must not be called while
// Run runs.
func (c *Client) Look(ctx context.Context) (rotation.WorkloadAPI, *rotation.Issuance) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	state := rotation.WorkloadAPI{At: time.Now(), State: rotation.WorkloadAPIConnecting}
	var issued *rotation.Issuance
	once := *c
	once.cfg.State = func(s rotation.WorkloadAPI) {
		if issued != nil {
			return
		}
		state = s
		if s.State == rotation.WorkloadAPIUnreachable || s.State == rotation.WorkloadAPIDenied {
			cancel()
		}
	}
	once.cfg.Issued = func(i rotation.Issuance) {
		if issued == nil {
			issued = &i
		}
		cancel()
	}
	began := time.Now()
	once.attempt(ctx)
	if state.State == rotation.WorkloadAPIConnecting {
		// The caller's time is over before ours.
		state = silence(time.Since(began).Round(time.Millisecond), false)
		state.At, state.SocketAnswers, state.Socket = time.Now(), nil, lookAtSocket(c.endpoint)
	}
	return state, issued
}

// Knock looks whether anybody accepts connections at the address, and asks
// for nothing.
func (c *Client) Knock(ctx context.Context) rotation.WorkloadAPI {
	conn, err := (&net.Dialer{Timeout: c.cfg.AnswerTimeout}).DialContext(ctx, c.endpoint.network, c.endpoint.address)
	if err != nil {
		state := dialFailure(c.endpoint, err)
		state.At, state.Socket = time.Now(), lookAtSocket(c.endpoint)
		return state
	}
	_ = conn.Close() // nothing was sent on it
	return rotation.WorkloadAPI{At: time.Now(), State: rotation.WorkloadAPINotAsked, SocketAnswers: new(true)}
}
