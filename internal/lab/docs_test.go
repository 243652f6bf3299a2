package lab_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"svid-watchdog/internal/lab"
	"svid-watchdog/internal/rotation"
)

var update = flag.Bool("update", false, "write docs/faults.md anew")

// TestFaultsDocument: docs/faults.md is what the catalogue says and what
// TestFaults holds the watchdog to.
func TestFaultsDocument(t *testing.T) {
	path := filepath.Join("..", "..", "docs", "faults.md")
	want := faultsDocument()
	if *update {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil { //nolint:gosec // a document
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("docs/faults.md is not what the code does; write it anew with: go test ./internal/lab -run TestFaultsDocument -update")
	}
}

// TestEveryProblemHasAFault: each problem of the catalogue can be injected.
func TestEveryProblemHasAFault(t *testing.T) {
	shown := make(map[rotation.ProblemName]bool)
	for _, f := range lab.Faults() {
		shown[f.Shows] = true
		for _, name := range f.Follows {
			shown[name] = true
		}
		d, ok := rotation.Lookup(f.Shows)
		if !ok {
			t.Errorf("%s shows %s, which is not in the catalogue", f.Name, f.Shows)
		}
		for _, reason := range []rotation.Reason{f.Reason, f.BlindReason} {
			known := reason == rotation.ReasonNone
			for _, r := range d.Reasons {
				known = known || r.Reason == reason
			}
			if !known {
				t.Errorf("%s: %s has no reason %s", f.Name, f.Shows, reason)
			}
		}
		if len(d.Reasons) > 0 && f.Reason == rotation.ReasonNone {
			t.Errorf("%s does not say which reason of %s it shows", f.Name, f.Shows)
		}
	}
	for _, d := range rotation.Catalogue() {
		if !shown[d.Name] {
			t.Errorf("no fault shows %s", d.Name)
		}
	}
}

func faultsDocument() string {
	var b strings.Builder
	b.WriteString(`# Problems and faults

What the watchdog tells apart, and the faults by which that is tested. This page
is written by a test from the code, and each line of the second table is a test
too: the fault is injected, the problem must be named with this reason within
the bound, nothing may be raised that does not follow from it, and it must go
after healing. ` + "`make fault-matrix`" + ` does that with both issuers on the stand-in of
both generations and on Envoy 1.36.4, 1.37.0, 1.38.3, 1.39.3 and 1.40.0, with
and without the ` + "`sds.`" + ` statistics, and prints what was seen and how long it took.

## How soon

A condition of Envoy that usually heals itself is a problem once it was *seen*
for the grace (90 s): by the look that still finds it then, which is at most one
poll later. Where the budget makes looks rarer, the verdict comes as much later.
A renewal is overdue when the leaf is older than the renewal interval and the
grace. The interval is learned from the Workload API stream: the longest but one
of the last eight distances. An issuer that was not seen to be steady over these is
allowed a tenth more, since SPIRE renews at a point that it draws by lot.
Streams are flapping when each was opened four times, over more than the grace.
After healing a problem is gone with the next look; Envoy itself may wait up to
30 s before it opens a stream again.

## Problems

`)
	for _, d := range rotation.Catalogue() {
		fmt.Fprintf(&b, "### %s\n\n%s: %s\n\n", d.Name, d.Severity, d.Summary)
		if len(d.Reasons) == 0 {
			fmt.Fprintf(&b, "%s %s\n\n", d.Cause, d.Advice)
			continue
		}
		b.WriteString("| reason | cause | advice |\n|---|---|---|\n")
		for _, r := range d.Reasons {
			cause, advice := d.Explain(r.Reason)
			fmt.Fprintf(&b, "| %s | %s | %s |\n", r.Reason, cause, advice)
		}
		b.WriteString("\n")
	}
	b.WriteString(`## Faults

Each can be injected in the lab while it runs. "Blind" is an Envoy that does not
show updates which change nothing: 1.37 and newer without the ` + "`sds.`" + ` statistics.

| fault | what happens | problem | reason | reason when blind | named within | may follow |
|---|---|---|---|---|---|---|
`)
	for _, f := range lab.Faults() {
		blind := f.BlindReason
		if blind == "" {
			blind = f.Reason
		}
		what := f.Summary
		switch {
		case f.StandInOnly:
			what += " (Stand-in only.)"
		case f.TbotOnly:
			what += " (With tbot only.)"
		case f.TwoProviders:
			what += " (With two providers only.)"
		}
		var follows []string
		for _, name := range f.Follows {
			follows = append(follows, string(name))
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s | %s |\n", f.Name, what, f.Shows,
			dash(string(f.Reason)), dash(string(blind)), f.Within(), dash(strings.Join(follows, ", ")))
	}
	return b.String()
}

func dash(s string) string {
	if s == "" {
		return "–"
	}
	return s
}
