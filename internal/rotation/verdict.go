package rotation

import "time"

// State is the verdict in one word.
type State string

// The states. Unknown is not healthy.
const (
	// Healthy: every stage was seen and no problem holds.
	Healthy State = "healthy"
	// Degraded: a warning holds.
	Degraded State = "degraded"
	// Broken: a critical problem holds.
	Broken State = "broken"
	// Unknown: no problem holds, but not every stage could be seen.
	Unknown State = "unknown"
)

// States returns all states.
func States() []State { return []State{Healthy, Degraded, Broken, Unknown} }

// IdentityMode is where Envoy's identity will come from once Istio's agent has
// started anew (istio: pkg/istio-agent/agent.go, Agent.Run; it looks only
// then). [NextStart] says whether it will start at all.
type IdentityMode string

// The identity modes.
const (
	// ModeExternalSDS: the socket answers, or the agent cannot take its place;
	// Envoy talks to its owner.
	ModeExternalSDS IdentityMode = "external_sds"
	// ModeExternalSDSWithFiles: the same, and all three files exist.
	// The agent then refuses to start unless the mesh gives it client
	// certificates for istiod.
	ModeExternalSDSWithFiles IdentityMode = "external_sds_with_files"
	// ModeFileMounted: no socket answers, the agent can take its place, and all
	// three files exist. The same
	// refusal; with client certificates the agent serves the files.
	ModeFileMounted IdentityMode = "file_mounted"
	// ModeIstiodCA: no socket answers, the agent can take its place, and the
	// files are not complete: the
	// agent takes the socket's place with certificates of istiod's CA.
	ModeIstiodCA IdentityMode = "istiod_ca"
	// ModeUnknown: the socket or the files were not seen yet.
	ModeUnknown IdentityMode = "unknown"
)

// IdentityModes returns all identity modes.
func IdentityModes() []IdentityMode {
	return []IdentityMode{ModeExternalSDS, ModeExternalSDSWithFiles, ModeFileMounted, ModeIstiodCA, ModeUnknown}
}

// Source is where evidence comes from.
type Source string

// The sources of evidence.
const (
	SourceCredentialFiles Source = "credential_files"
	SourceWorkloadAPI     Source = "workload_api"
	SourceEnvoyAdmin      Source = "envoy_admin"
	SourceHandshake       Source = "handshake"
)

// Sources returns all sources.
func Sources() []Source {
	return []Source{SourceCredentialFiles, SourceWorkloadAPI, SourceEnvoyAdmin, SourceHandshake}
}

// Problem is a problem that holds now.
type Problem struct {
	Name     ProblemName `json:"name"`
	Severity Severity    `json:"severity"`
	// Stage is the stage at which the problem shows, empty where it has none.
	Stage Stage `json:"stage,omitempty"`
	// Reason is from the closed set of the problem's definition.
	Reason Reason `json:"reason,omitempty"`
	// Summary, Cause and Advice are the catalogue's words for this reason.
	Summary string `json:"summary"`
	Cause   string `json:"cause"`
	Advice  string `json:"advice"`
	// Detail is what was seen, with numbers and names, or "".
	Detail string `json:"detail,omitempty"`
	// Since is when the problem was first judged to hold.
	Since time.Time `json:"since"`
}

// StageView is what is known of one stage.
type StageView struct {
	Stage Stage `json:"stage"`
	// Certificate is the leaf last seen there: where a stage shows several,
	// the one that expires first. Nil while none was seen.
	Certificate *CertificateView `json:"certificate,omitempty"`
	// FirstSeen is when this leaf was first seen at the stage, SeenAt when the
	// stage was last looked at with success.
	FirstSeen *time.Time `json:"first_seen,omitempty"`
	SeenAt    *time.Time `json:"seen_at,omitempty"`
	// Leaves is how many distinct leaves the stage showed.
	Leaves int `json:"leaves"`
	// AgeSeconds is how long ago the leaf was issued, as well as can be told;
	// RemainingSeconds is negative once the leaf has expired.
	AgeSeconds       *float64 `json:"age_seconds,omitempty"`
	RemainingSeconds *float64 `json:"remaining_seconds,omitempty"`
	// Rotations counts the new leaves seen after the first.
	Rotations uint64 `json:"rotations"`
}

// CertificateView is a certificate as it is reported.
type CertificateView struct {
	SPIFFEID  string    `json:"spiffe_id"`
	Serial    string    `json:"serial"`
	Issuer    string    `json:"issuer,omitempty"`
	NotBefore time.Time `json:"not_before"`
	NotAfter  time.Time `json:"not_after"`
	SHA256    string    `json:"sha256,omitempty"`
}

// IntervalSource says where the renewal interval comes from.
type IntervalSource string

// Where the renewal interval comes from.
const (
	// IntervalConfigured: given by --rotation.interval.
	IntervalConfigured IntervalSource = "configured"
	// IntervalLearned: the distance of the SVIDs on the Workload API stream.
	IntervalLearned IntervalSource = "learned"
	// IntervalAssumed: half of the lifetime, until it is learned.
	IntervalAssumed IntervalSource = "assumed"
)

// SourceView is how a source of evidence does.
type SourceView struct {
	Source Source `json:"source"`
	// Up tells whether the last attempt worked; false before the first.
	Up bool `json:"up"`
	// Detail says why it did not.
	Detail string `json:"detail,omitempty"`
	// LastSuccess is when an attempt last worked.
	LastSuccess *time.Time `json:"last_success,omitempty"`
}

// FilesView is what is known of the credentials directory.
type FilesView struct {
	DirExists bool                    `json:"dir_exists"`
	Present   map[CredentialFile]bool `json:"present"`
	// Leaf is the leaf in cert-chain.pem; its issuer names the writer.
	Leaf *CertificateView `json:"leaf,omitempty"`
	// Polling is true while inotify is not to be had.
	Polling       bool   `json:"polling"`
	PollingReason string `json:"polling_reason,omitempty"`
}

// EnvoyView is what is known of Envoy besides its certificates.
type EnvoyView struct {
	Version string     `json:"version,omitempty"`
	State   string     `json:"state,omitempty"`
	Started *time.Time `json:"started,omitempty"`
	// SDSStreams is the number of open requests on the SDS cluster, nil while
	// it was not seen.
	SDSStreams *uint64 `json:"sds_streams,omitempty"`
	// IdentityUpdated and BundleUpdated are the last_updated of the two
	// secrets as Envoy says.
	IdentityUpdated *time.Time `json:"identity_last_updated,omitempty"`
	BundleUpdated   *time.Time `json:"bundle_last_updated,omitempty"`
	// AdminSeconds is the time that Envoy has taken to answer the watchdog.
	AdminSeconds float64 `json:"admin_seconds_total"`
	// StatsVisible tells whether Envoy shows the sds. statistics.
	StatsVisible bool `json:"sds_stats_visible"`
}

// Verdict is a judgement at a time. It shares no memory with the ledger.
type Verdict struct {
	At    time.Time `json:"at"`
	State State     `json:"state"`
	// Summary is the verdict in one sentence.
	Summary string `json:"summary"`
	// Problems hold now, most urgent first.
	Problems     []Problem    `json:"problems"`
	IdentityMode IdentityMode `json:"identity_mode"`
	// NextStart is how the next start of Istio's agent will go.
	NextStart NextStart `json:"next_start"`
	// Stages are in the order in which a certificate passes them.
	Stages  []StageView  `json:"stages"`
	Sources []SourceView `json:"sources"`
	// VerifiedRotations counts new leaves that reached the last observable
	// stage in one life of Envoy.
	VerifiedRotations uint64 `json:"verified_rotations"`
	HollowUpdates     uint64 `json:"hollow_updates"`
	RejectedUpdates   uint64 `json:"rejected_updates"`
	// IntervalSeconds is the renewal interval that is judged by, 0 if none.
	IntervalSeconds float64        `json:"interval_seconds"`
	IntervalSource  IntervalSource `json:"interval_source,omitempty"`
	// BundleNotAfter is when the first authority of a bundle expires.
	BundleNotAfter map[Stage]time.Time `json:"trust_bundle_not_after"`
	Files          FilesView           `json:"credential_files"`
	Envoy          EnvoyView           `json:"envoy"`
	// Events are the latest transitions, oldest first.
	Events []Event `json:"events"`

	// Recheck is the earliest time at which the verdict can change without
	// new evidence, zero if there is none.
	Recheck time.Time `json:"-"`
}

// Has reports whether a problem holds.
func (v Verdict) Has(name ProblemName) bool {
	_, ok := v.Find(name)
	return ok
}

// Find returns the problem of that name, if it holds.
func (v Verdict) Find(name ProblemName) (Problem, bool) {
	for _, p := range v.Problems {
		if p.Name == name {
			return p, true
		}
	}
	return Problem{}, false
}

// Stage returns what is known of a stage.
func (v Verdict) Stage(s Stage) StageView {
	for _, view := range v.Stages {
		if view.Stage == s {
			return view
		}
	}
	return StageView{Stage: s}
}

// EventType is the kind of a transition.
type EventType string

// The kinds of transitions.
const (
	EventRotation        EventType = "rotation"
	EventVerified        EventType = "rotation_verified"
	EventHollowUpdate    EventType = "hollow_update_seen"
	EventRejectedUpdate  EventType = "rejected_update_seen"
	EventProblemRaised   EventType = "problem_raised"
	EventProblemChanged  EventType = "problem_changed"
	EventProblemCleared  EventType = "problem_cleared"
	EventSourceUp        EventType = "source_up"
	EventSourceDown      EventType = "source_down"
	EventEnvoyRestarted  EventType = "envoy_restarted"
	EventModeChanged     EventType = "identity_mode_changed"
	EventStateChanged    EventType = "state_changed"
	EventClockJumped     EventType = "clock_jumped"
	EventIntervalLearned EventType = "interval_learned"
)

// Event is one transition.
type Event struct {
	// Seq numbers the events of this process from 1, without gaps.
	Seq  uint64    `json:"seq"`
	At   time.Time `json:"at"`
	Type EventType `json:"type"`
	// Problem, Stage and Source say what the event is about, where it is
	// about one.
	Problem ProblemName `json:"problem,omitempty"`
	Stage   Stage       `json:"stage,omitempty"`
	Source  Source      `json:"source,omitempty"`
	// Message is a sentence for people.
	Message string `json:"message"`
}
