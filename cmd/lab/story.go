package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"svid-watchdog/internal/lab"
	"svid-watchdog/internal/rotation"
)

// entry is one line of the timeline: what the lab did, or what the watchdog
// made of it.
type entry struct {
	At      time.Time `json:"at"`
	From    string    `json:"from"` // lab or watchdog
	Type    string    `json:"type"`
	Problem string    `json:"problem,omitempty"`
	Stage   string    `json:"stage,omitempty"`
	Fault   string    `json:"fault,omitempty"`
	Service string    `json:"service,omitempty"`
	Stream  int       `json:"stream,omitempty"`
	Serial  string    `json:"serial,omitempty"`
	Message string    `json:"message"`
}

const (
	fromLab      = "lab"
	fromWatchdog = "watchdog"
)

// quiet tells whether an entry is left out where people read along: it repeats
// what another says, or comes with every renewal.
func (e entry) quiet() bool {
	switch e.Type {
	case string(lab.Acknowledged), string(lab.BundleSent):
		return true
	}
	return false
}

// entriesKept bounds what is remembered of a long run.
const entriesKept = 4096

// story follows a pod and its watchdog, and remembers what happened.
type story struct {
	pod    *lab.Pod
	status string // where to ask the watchdog, "" without one
	client *http.Client

	mu       sync.Mutex
	verdict  *rotation.Verdict
	entries  []entry
	raised   []rotation.ProblemName
	seenLab  uint64
	seenDog  uint64
	askError error
}

func newStory(pod *lab.Pod, watchdogAddress string) *story {
	s := &story{pod: pod, client: &http.Client{
		Timeout:   5 * time.Second,
		Transport: &http.Transport{DisableKeepAlives: true},
	}}
	if watchdogAddress != "" {
		s.status = "http://" + watchdogAddress + "/api/v1/status"
	}
	return s
}

// look asks the pod and the watchdog what is new, and returns it in order.
func (s *story) look(ctx context.Context) []entry {
	verdict, err := s.ask(ctx)
	events, _ := s.pod.Events()

	s.mu.Lock()
	defer s.mu.Unlock()
	s.askError = err
	var fresh []entry
	for _, e := range events {
		if e.Seq > s.seenLab {
			s.seenLab = e.Seq
			fresh = append(fresh, entry{
				At: e.At, From: fromLab, Type: string(e.Kind), Fault: e.Fault, Service: string(e.Service),
				Stream: e.Stream, Serial: e.Serial, Message: e.Message,
			})
		}
	}
	if verdict != nil {
		s.verdict = verdict
		for _, e := range verdict.Events {
			if e.Seq <= s.seenDog {
				continue
			}
			s.seenDog = e.Seq
			if e.Type == rotation.EventProblemRaised {
				s.raise(e.Problem)
			}
			fresh = append(fresh, entry{
				At: e.At, From: fromWatchdog, Type: string(e.Type), Problem: string(e.Problem), Stage: string(e.Stage),
				Message: e.Message,
			})
		}
		for _, p := range verdict.Problems {
			s.raise(p.Name)
		}
	}
	slices.SortStableFunc(fresh, byTime)
	s.entries = append(s.entries, fresh...)
	if n := len(s.entries) - entriesKept; n > 0 {
		s.entries = slices.Clone(s.entries[n:])
	}
	return fresh
}

func byTime(a, b entry) int { return cmp.Compare(a.At.UnixNano(), b.At.UnixNano()) }

func (s *story) raise(name rotation.ProblemName) {
	if !slices.Contains(s.raised, name) {
		s.raised = append(s.raised, name)
	}
}

// ask reads the watchdog's verdict as every client would.
func (s *story) ask(ctx context.Context) (*rotation.Verdict, error) {
	if s.status == "" {
		return nil, nil //nolint:nilnil // no watchdog, no verdict
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.status, nil)
	if err != nil {
		return nil, fmt.Errorf("ask the watchdog: %w", err)
	}
	response, err := s.client.Do(request)
	if err != nil {
		return nil, fmt.Errorf("ask the watchdog: %w", err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("ask the watchdog: %s", response.Status)
	}
	var verdict rotation.Verdict
	if err := json.NewDecoder(response.Body).Decode(&verdict); err != nil {
		return nil, fmt.Errorf("read the watchdog's verdict: %w", err)
	}
	return &verdict, nil
}

// snapshot is a story at a moment.
type snapshot struct {
	verdict *rotation.Verdict
	entries []entry
	raised  []rotation.ProblemName
	faults  []string
	err     error
}

func (s *story) snapshot() snapshot {
	faults := s.pod.Faults()
	s.mu.Lock()
	defer s.mu.Unlock()
	return snapshot{s.verdict, slices.Clone(s.entries), slices.Clone(s.raised), faults, s.askError}
}

// report is the document of --json.
type report struct {
	Issuer            lab.Issuer             `json:"issuer"`
	Envoy             string                 `json:"envoy"`
	TTLSeconds        float64                `json:"ttl_seconds"`
	RenewalSeconds    float64                `json:"renewal_seconds"`
	RanSeconds        float64                `json:"ran_seconds"`
	ProblemsRaised    []rotation.ProblemName `json:"problems_raised"`
	VerifiedRotations uint64                 `json:"verified_rotations"`
	Verdict           *rotation.Verdict      `json:"verdict"`
	Timeline          []entry                `json:"timeline"`
}

func (s snapshot) report(o *options, pod *lab.Pod, ran time.Duration) report {
	r := report{
		Issuer: o.pod.Issuer, Envoy: envoyName(o, pod),
		TTLSeconds: pod.TTL().Seconds(), RenewalSeconds: pod.Renewal().Seconds(), RanSeconds: ran.Round(time.Millisecond).Seconds(),
		ProblemsRaised: append([]rotation.ProblemName{}, s.raised...), // [] rather than null
		Verdict:        s.verdict,
		Timeline:       append([]entry{}, s.entries...),
	}
	slices.SortStableFunc(r.Timeline, byTime)
	if s.verdict != nil {
		r.VerifiedRotations = s.verdict.VerifiedRotations
	}
	return r
}

// envoyName says which Envoy runs.
func envoyName(o *options, pod *lab.Pod) string {
	if o.pod.EnvoyPath == "" {
		return "stand-in for Envoy " + o.pod.StandIn
	}
	return "Envoy " + pod.Envoy().Version()
}
