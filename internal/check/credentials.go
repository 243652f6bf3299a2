package check

import (
	"fmt"
	"strings"

	"svid-watchdog/internal/rotation"
	"svid-watchdog/internal/watchdog"
)

// Case is the state of the credentials directory, in the words of those who
// wondered whether Istio's standard templates would do for them.
type Case string

// The cases.
const (
	// CaseA: the directory does not exist.
	CaseA Case = "A"
	// CaseB: the directory exists and holds none of the three files.
	CaseB Case = "B"
	// CaseC: the directory holds all three files.
	CaseC Case = "C"
	// CasePartial: it holds some of them, on the way from B to C.
	CasePartial Case = "partial"
	// CaseUnknown: it could not be looked at.
	CaseUnknown Case = "unknown"
)

// Outcome is the answer to whether the standard templates work.
type Outcome string

// The outcomes.
const (
	// OutcomeA: they do; Envoy is served through the socket and nobody writes
	// files.
	OutcomeA Outcome = "A"
	// OutcomeB: they do not; the files are there.
	OutcomeB Outcome = "B"
	// OutcomeOpen: the evidence does not tell.
	OutcomeOpen Outcome = "open"
)

// Credentials answers the question of the credentials directory by name.
type Credentials struct {
	Case    Case    `json:"case"`
	Outcome Outcome `json:"outcome"`
	// CaseMeaning and OutcomeMeaning are the same as sentences.
	CaseMeaning    string `json:"case_meaning"`
	OutcomeMeaning string `json:"outcome_meaning"`
}

func credentials(v rotation.Verdict) Credentials {
	c := Credentials{Case: caseOf(v), Outcome: OutcomeOpen}
	var present []string
	for _, name := range rotation.CredentialFileNames() {
		if v.Files.Present[name] {
			present = append(present, string(name))
		}
	}
	switch c.Case {
	case CaseA:
		c.CaseMeaning = "the credentials directory does not exist here. It tells of istio-proxy only if its volume is mounted here too, or with --root."
	case CaseB:
		c.CaseMeaning = "the credentials directory exists and holds none of the three files."
	case CaseC:
		c.CaseMeaning = "the credentials directory holds all three files."
		if leaf := v.Files.Leaf; leaf != nil {
			c.CaseMeaning += fmt.Sprintf(" The certificate was issued by %q to %s.", leaf.Issuer, leaf.SPIFFEID)
		}
	case CasePartial:
		c.CaseMeaning = "on the way from Case B to Case C, the credentials directory holds " + strings.Join(present, " and ") + "."
	default:
		c.CaseMeaning = "the credentials directory could not be looked at."
	}
	switch {
	case c.Case == CaseC:
		c.Outcome = OutcomeB
		c.OutcomeMeaning = "something writes credential files, and Istio's agent will act on them at its next start."
	case c.Case == CasePartial || c.Case == CaseUnknown:
		c.OutcomeMeaning = "whether credential files will take the socket's place is not decided."
	case v.NextStart != rotation.StartLeavesSocket:
		c.OutcomeMeaning = "there are no credential files, but the socket does not answer either, so that nothing shows that Envoy is served through it."
	case v.Stage(rotation.Delivered).Certificate == nil:
		c.OutcomeMeaning = "there are no credential files and the socket answers, but what Envoy holds was not seen."
	case v.Has(rotation.UntrustedIssuer) || v.Has(rotation.IdentityMismatch):
		c.OutcomeMeaning = "there are no credential files and the socket answers, but what Envoy holds does not come from there."
	case v.State != rotation.Healthy:
		c.Outcome = OutcomeA
		c.OutcomeMeaning = "Envoy is served through the socket, and no credential files stand in its way: what is wrong here is not the fault of Istio's templates."
	default:
		c.Outcome = OutcomeA
		c.OutcomeMeaning = "Envoy holds an SVID, the socket answers, and no credential files stand in its way: the standard templates work here."
	}
	return c
}

func caseOf(v rotation.Verdict) Case {
	for _, s := range v.Sources {
		if s.Source == rotation.SourceCredentialFiles && !s.Up {
			return CaseUnknown
		}
	}
	n := 0
	for _, name := range rotation.CredentialFileNames() {
		if v.Files.Present[name] {
			n++
		}
	}
	switch {
	case n == len(rotation.CredentialFileNames()):
		return CaseC
	case n > 0:
		return CasePartial
	case v.Files.DirExists:
		return CaseB
	default:
		return CaseA
	}
}

// openQuestions are what the verdict leaves open, as sentences.
func openQuestions(by ToldBy, pod watchdog.Config, v rotation.Verdict) []string {
	var open []string
	add := func(format string, args ...any) { open = append(open, fmt.Sprintf(format, args...)) }
	if by == ByLook {
		add("One look does not see a renewal. --watch 30m would, and so would the watchdog as a sidecar.")
		if v.IntervalSource == rotation.IntervalAssumed {
			add("The renewal interval was not seen. It is taken to be half of the certificate's life; --rotation.interval says it better.")
		}
	}
	if by == ByWatch && v.VerifiedRotations == 0 {
		add("No renewal went all the way while this was watched. A longer --watch may see one.")
	}
	for _, s := range v.Sources {
		if !s.Up && !explained(s, v) {
			add("%s: %s.", s.Source, strings.TrimSuffix(detailOf(s), "."))
		}
	}
	if by != ByWatchdog && pod.HandshakeAddress == "" {
		add("What a peer is shown in a TLS handshake was not looked at. --handshake.address does that.")
	}
	if v.Envoy.Version != "" && !v.Envoy.StatsVisible && !rotation.MovesLastUpdated(v.Envoy.Version) {
		add("Envoy %s shows updates that change nothing only in its sds. statistics, which are hidden here: a server that re-sends an old certificate looks like one that sends nothing.", v.Envoy.Version)
	}
	return open
}

// explained tells whether a problem says already what is wrong with a source.
func explained(s rotation.SourceView, v rotation.Verdict) bool {
	switch s.Source {
	case rotation.SourceWorkloadAPI:
		return v.Has(rotation.WorkloadUnreachable) || v.Has(rotation.WorkloadDenied)
	case rotation.SourceEnvoyAdmin:
		return v.Has(rotation.EnvoyUnreachable)
	case rotation.SourceHandshake:
		return v.Has(rotation.ServedUnreachable)
	default:
		return false
	}
}

func detailOf(s rotation.SourceView) string {
	if s.Detail == "" {
		return "not seen yet"
	}
	return s.Detail
}
