package lab

import "context"

// Envoy is the Envoy of the pod: a real one, or the stand-in.
type Envoy interface {
	// Version is Envoy's version, for example 1.40.0.
	Version() string
	// AdminAddress is http://HOST:PORT; it stays over restarts.
	AdminAddress() string
	// ListenerAddress is HOST:PORT of the inbound TLS listener.
	ListenerAddress() string
	// Start starts it and waits until the admin interface answers.
	Start(ctx context.Context) error
	// Stop ends it at once, as a crash does.
	Stop() error
	// DrainListeners closes the listeners; only a restart opens them again.
	DrainListeners(ctx context.Context) error
	// Hang freezes it without ending it, Resume goes on.
	Hang() error
	Resume() error
	// Close ends it for good.
	Close() error
}

// ContextSticker is an Envoy whose TLS contexts can be kept from taking new
// secrets. Only the stand-in can.
type ContextSticker interface {
	// StickContexts keeps all contexts from taking accepted secrets.
	StickContexts(stuck bool)
	// StickAllButOne keeps all contexts but the first, as when the second
	// callback of an update fails (envoyproxy/envoy#42438).
	StickAllButOne(stuck bool)
	// StickListener keeps showing peers what it showed.
	StickListener(stuck bool)
}
