package web

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"svid-watchdog/internal/rotation"
)

// shownEvents is how many of the latest events the text shows.
const shownEvents = 20

// writeText writes a verdict for people.
func writeText(w io.Writer, version string, v rotation.Verdict) error {
	out := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(out, "svid-watchdog %s\n\n%s: %s\n\n", version, v.State, v.Summary)
	fmt.Fprintf(out, "STAGE\tSPIFFE ID\tISSUER\tSERIAL\tAGE\tLEFT\tROTATIONS\n")
	for _, s := range v.Stages {
		if s.Certificate == nil {
			fmt.Fprintf(out, "%s\tnot seen\t\t\t\t\t%d\n", s.Stage, s.Rotations)
			continue
		}
		fmt.Fprintf(out, "%s\t%s\t%s\t%s\t%s\t%s\t%d\n", s.Stage, s.Certificate.SPIFFEID, s.Certificate.Issuer,
			s.Certificate.Serial, seconds(*s.AgeSeconds), seconds(*s.RemainingSeconds), s.Rotations)
	}
	fmt.Fprintf(out, "\nverified rotations: %d\nhollow updates: %d\nrejected updates: %d\nidentity mode: %s\n%s\n",
		v.VerifiedRotations, v.HollowUpdates, v.RejectedUpdates, v.IdentityMode, v.NextStart.Sentence())
	for _, p := range v.Problems {
		fmt.Fprintf(out, "\n%s: %s", p.Severity, p.Name)
		if p.Reason != rotation.ReasonNone {
			fmt.Fprintf(out, " (%s)", p.Reason)
		}
		fmt.Fprintf(out, " since %s\n  %s\n", p.Since.UTC().Format(time.RFC3339), p.Summary)
		if p.Detail != "" {
			fmt.Fprintf(out, "  Seen:   %s\n", p.Detail)
		}
		fmt.Fprintf(out, "  Cause:  %s\n  Advice: %s\n", p.Cause, p.Advice)
	}
	fmt.Fprintf(out, "\nlatest events\n")
	for i := len(v.Events) - 1; i >= max(0, len(v.Events)-shownEvents); i-- {
		e := v.Events[i]
		fmt.Fprintf(out, "  %s  %s\n", e.At.UTC().Format(time.RFC3339), e.Message)
	}
	return out.Flush()
}

func seconds(s float64) string {
	return (time.Duration(s) * time.Second).String()
}
