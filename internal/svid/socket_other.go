//go:build !linux

package svid

import "svid-watchdog/internal/rotation"

// lookAtSocket knows nothing here: Istio's agent runs on Linux.
func lookAtSocket(endpoint) *rotation.Socket { return nil }
