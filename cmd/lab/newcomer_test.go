package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"slices"
	"testing"
	"time"

	"svid-watchdog/internal/e2e/neighbour"
	"svid-watchdog/internal/lab"
	"svid-watchdog/internal/rotation"
)

// document is what --json prints.
type document struct {
	ProblemsRaised    []rotation.ProblemName `json:"problems_raised"`
	VerifiedRotations uint64                 `json:"verified_rotations"`
	Verdict           rotation.Verdict       `json:"verdict"`
	Timeline          []json.RawMessage      `json:"timeline"`
}

// playLab runs the lab and reads its report.
func playLab(t *testing.T, args ...string) document {
	t.Helper()
	var stdout, stderr bytes.Buffer
	if code := run(t.Context(), append(args, "--json"), nil, &stdout, &stderr); code != exitOK || stderr.Len() > 0 {
		t.Fatalf("exit code %d, stderr %q", code, stderr.String())
	}
	var d document
	if err := json.Unmarshal(stdout.Bytes(), &d); err != nil {
		t.Fatalf("%v\n%s", err, stdout.String())
	}
	return d
}

// TestNinetySeconds: what a newcomer runs first. At the default pace three or
// more rotations are verified and nothing is wrong: on the stand-in, and on
// each real Envoy, with both issuers.
func TestNinetySeconds(t *testing.T) {
	for _, run := range []struct {
		name, version string
		args          []string
	}{
		{name: "default"},
		{name: "standin 1.36", args: []string{"--stand-in=1.36"}},
		{name: "spire", args: []string{"--issuer=spire"}},
		{name: "envoy 1.36.4", version: "1.36.4"},
		{name: "envoy 1.40.0", version: "1.40.0"},
	} {
		t.Run(run.name, func(t *testing.T) {
			t.Parallel()
			args := run.args
			if run.version != "" {
				args = append(args, "--envoy="+neighbour.Envoy(t, run.version))
			}
			d := playLab(t, append(args, "--for=90s")...)
			if len(d.ProblemsRaised) > 0 || d.VerifiedRotations < 3 || d.Verdict.State != rotation.Healthy || len(d.Timeline) == 0 {
				t.Errorf("%s, %d verified, raised %v, %d events", d.Verdict.State, d.VerifiedRotations, d.ProblemsRaised, len(d.Timeline))
			}
		})
	}
}

// TestPlannedFault: a fault given on the command line shows in the report.
func TestPlannedFault(t *testing.T) {
	t.Parallel()
	d := playLab(t, "--for=4s", "--fault=files-complete@1s")
	if want := []rotation.ProblemName{rotation.CredentialFilesComplete}; !slices.Equal(d.ProblemsRaised, want) || d.Verdict.State != rotation.Broken {
		t.Errorf("%s, raised %v, want %v", d.Verdict.State, d.ProblemsRaised, want)
	}
}

// TestControlOfARun: faults are injected and healed while the lab runs.
func TestControlOfARun(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	ctx, cancel := context.WithCancel(t.Context())
	var stdout bytes.Buffer
	ended := make(chan int, 1)
	go func() { ended <- run(ctx, []string{"--json", "--control=" + address}, nil, &stdout, io.Discard) }()
	ask := func(method, path string) (int, string, error) {
		request, err := http.NewRequestWithContext(t.Context(), method, "http://"+address+path, nil)
		if err != nil {
			return 0, "", err
		}
		response, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(request)
		if err != nil {
			return 0, "", err
		}
		defer response.Body.Close()
		text, err := io.ReadAll(response.Body)
		return response.StatusCode, string(text), err
	}
	active := func(name string) func() bool {
		return func() bool {
			_, text, err := ask(http.MethodGet, "/faults")
			var views []faultView
			return err == nil && json.Unmarshal([]byte(text), &views) == nil &&
				slices.ContainsFunc(views, func(v faultView) bool { return v.Name == name && v.Active })
		}
	}
	until := func(what string, satisfied func() bool) {
		t.Helper()
		deadline := time.NewTimer(10 * time.Second)
		defer deadline.Stop()
		look := time.NewTicker(50 * time.Millisecond)
		defer look.Stop()
		for !satisfied() {
			select {
			case <-look.C:
			case <-deadline.C:
				t.Fatalf("waited in vain for %s", what)
			}
		}
	}
	until("the control", func() bool {
		status, _, err := ask(http.MethodPost, "/faults/files-partial")
		return err == nil && status == http.StatusOK
	})
	until("the fault", active("files-partial"))
	if status, text, err := ask(http.MethodPost, "/faults/nonsense"); err != nil || status != http.StatusNotFound {
		t.Errorf("a fault that does not exist: %d %q %v", status, text, err)
	}
	if status, _, err := ask(http.MethodDelete, "/faults/files-partial"); err != nil || status != http.StatusOK {
		t.Errorf("heal: %d %v", status, err)
	}
	if active("files-partial")() {
		t.Error("the fault is still there")
	}
	cancel()
	if code := <-ended; code != exitOK {
		t.Errorf("exit code %d", code)
	}
	if !json.Valid(stdout.Bytes()) {
		t.Errorf("an interrupted run prints no report: %q", stdout.String())
	}
}

// judged are the problems that a fault must show.
var judged = []rotation.ProblemName{
	rotation.CredentialFilesPartial, rotation.CredentialFilesComplete, rotation.WorkloadUnreachable, rotation.WorkloadDenied,
	rotation.IssuanceOverdue, rotation.CertificateExpiring, rotation.CertificateExpired, rotation.EnvoyUnreachable, rotation.SecretMissing,
	rotation.DeliveryOverdue, rotation.HollowUpdate, rotation.UpdateRejected, rotation.ContextStale, rotation.SDSStreamDown,
	rotation.IdentityMismatch, rotation.UntrustedIssuer,
}

// TestAFaultForEachProblem: each problem that is judged can be shown, and each
// reason that a fault names is one of its problem's.
func TestAFaultForEachProblem(t *testing.T) {
	shown := make(map[rotation.ProblemName]bool)
	for _, f := range lab.Faults() {
		shown[f.Shows] = true
		for _, name := range f.Follows {
			shown[name] = true
		}
		d, ok := rotation.Lookup(f.Shows)
		if !ok {
			t.Errorf("%s: there is no problem %s", f.Name, f.Shows)
		}
		if f.Reason != "" && !slices.ContainsFunc(d.Reasons, func(r rotation.ReasonText) bool { return r.Reason == f.Reason }) {
			t.Errorf("%s: %s has no reason %s", f.Name, f.Shows, f.Reason)
		}
	}
	for _, name := range judged {
		if !shown[name] {
			t.Errorf("no fault shows %s", name)
		}
	}
}
