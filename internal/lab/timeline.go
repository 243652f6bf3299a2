package lab

import (
	"log/slog"
	"sync"
	"time"
)

// EventKind is the kind of an event in the lab.
type EventKind string

// The kinds of events.
const (
	StreamOpened  EventKind = "stream_opened"
	StreamClosed  EventKind = "stream_closed"
	SVIDSent      EventKind = "svid_sent"
	BundleSent    EventKind = "bundle_sent"
	Acknowledged  EventKind = "acknowledged"
	Refused       EventKind = "refused" // a NACK
	FaultInjected EventKind = "fault_injected"
	FaultHealed   EventKind = "fault_healed"
)

// Event is something that happened in the lab. It says what the lab did, not
// what the watchdog made of it.
type Event struct {
	// Seq numbers the events of a pod from 1, without gaps.
	Seq  uint64    `json:"seq"`
	At   time.Time `json:"at"`
	Kind EventKind `json:"kind"`
	// Service and Stream say on which stream, where it is about one.
	Service Service `json:"service,omitempty"`
	Stream  int     `json:"stream,omitempty"`
	// Serial is that of the leaf that was sent, Version its version_info.
	Serial  string `json:"serial,omitempty"`
	Version string `json:"version,omitempty"`
	// Fault is the fault that was injected or healed.
	Fault string `json:"fault,omitempty"`
	// Message is a sentence for people.
	Message string `json:"message"`
}

// eventsKept bounds the timeline: at the default pace it is several hours.
const eventsKept = 4096

// timeline remembers the latest events.
type timeline struct {
	log *slog.Logger

	mu      sync.Mutex
	seq     uint64
	events  []Event
	changed chan struct{} // closed at each event
}

func newTimeline(log *slog.Logger) *timeline {
	return &timeline{log: log, changed: make(chan struct{})}
}

func (t *timeline) add(e Event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.seq++
	e.Seq, e.At = t.seq, time.Now()
	t.events = append(t.events, e)
	if n := len(t.events) - eventsKept; n > 0 {
		t.events = append([]Event(nil), t.events[n:]...)
	}
	close(t.changed)
	t.changed = make(chan struct{})
	t.log.Debug("lab event", "kind", e.Kind, "service", e.Service, "stream", e.Stream,
		"serial", e.Serial, "fault", e.Fault, "message", e.Message)
}

// snapshot returns the events, and a channel that is closed at the next one.
func (t *timeline) snapshot() ([]Event, <-chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]Event(nil), t.events...), t.changed
}
