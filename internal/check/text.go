package check

import (
	"fmt"
	"io"
	"strings"
	"time"

	"svid-watchdog/internal/rotation"
	"svid-watchdog/internal/terminal"
)

// shownEvents is how many of the latest events the text shows.
const shownEvents = 8

// WriteText writes the report for a person.
func (r Report) WriteText(w io.Writer, width int, color bool) error {
	t := &text{Report: r, Page: terminal.Page{Width: max(width, 20), Color: color}}
	t.verdict()
	t.stages()
	t.identity()
	t.problems()
	t.open()
	t.events()
	if _, err := io.WriteString(w, t.String()); err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	return nil
}

type text struct {
	Report
	terminal.Page
}

func (t *text) verdict() {
	v := t.Verdict
	looks := map[rotation.State]terminal.Style{
		rotation.Healthy: terminal.OnGreen, rotation.Degraded: terminal.OnYellow, rotation.Broken: terminal.OnRed, rotation.Unknown: terminal.OnGrey,
	}
	state := strings.ToUpper(string(v.State))
	t.Add(looks[v.State], state)
	t.Add(terminal.Plain, ":")
	t.Text(terminal.Bold, 0, v.Summary)
	t.End()
	t.Paragraph(terminal.Dim, "", t.source())
	t.End()
}

// source says where the verdict comes from.
func (t *text) source() string {
	at := t.Verdict.At.UTC().Format("15:04:05 UTC")
	said := fmt.Sprintf("Seen by one look at %s, which took %d ms.", at, int(t.TookSeconds*1000))
	switch t.ToldBy {
	case ByWatchdog:
		return fmt.Sprintf("Told at %s by the watchdog of this pod, version %s.", at, t.WatchdogVersion)
	case ByWatch:
		said = fmt.Sprintf("Seen by watching for %s, until %s.", rough(t.TookSeconds), at)
	}
	if t.WatchdogError != "" {
		said += " Somebody else could not be asked: " + t.WatchdogError + "."
	}
	return said
}

// stages shows the certificate at each stage.
func (t *text) stages() {
	var id string
	same := true
	for _, s := range t.Verdict.Stages {
		if c := s.Certificate; c != nil {
			same = same && (id == "" || id == c.SPIFFEID)
			id = c.SPIFFEID
		}
	}
	if same && id != "" {
		t.Paragraph(terminal.Plain, "SPIFFE ID  ", id)
	}
	for _, s := range t.Verdict.Stages {
		if s.Certificate == nil {
			t.Paragraph(terminal.Dim, fmt.Sprintf("%-10s ", s.Stage), t.unseen(s.Stage))
			continue
		}
		look, left := t.left(s)
		t.Add(terminal.Dim, fmt.Sprintf("%-10s ", s.Stage))
		t.Text(look, 11, left)
		line := fmt.Sprintf(", %s old", rough(*s.AgeSeconds))
		if !same {
			line += ", " + s.Certificate.SPIFFEID
		}
		if s.Certificate.Issuer != "" {
			line += ", issued by " + s.Certificate.Issuer
		}
		if s.Leaves > 1 {
			line += fmt.Sprintf(", the first of %d to expire", s.Leaves)
		}
		if t.ToldBy != ByLook {
			line += fmt.Sprintf(", rotations %d", s.Rotations)
		}
		t.continued(line)
		t.End()
	}
	t.End()
}

// continued goes on with a text that begins with a comma, without a space before it.
func (t *text) continued(line string) {
	t.Add(terminal.Plain, line[:1])
	t.Text(terminal.Plain, 11, line[1:])
}

func (t *text) unseen(s rotation.Stage) string {
	switch {
	case s == rotation.Served && !t.asked(rotation.SourceHandshake):
		return "not looked at"
	case s == rotation.Issued && t.notAsked():
		return "not asked for"
	default:
		return "not seen"
	}
}

// notAsked tells whether SVIDs were not asked for.
func (t *text) notAsked() bool {
	for _, s := range t.Verdict.Sources {
		if s.Source == rotation.SourceWorkloadAPI {
			return s.Detail == rotation.NotAskedDetail
		}
	}
	return false
}

func (t *text) asked(source rotation.Source) bool {
	for _, s := range t.Verdict.Sources {
		if s.Source == source {
			return true
		}
	}
	return false
}

func (t *text) left(s rotation.StageView) (terminal.Style, string) {
	left := *s.RemainingSeconds
	switch {
	case left <= 0:
		return terminal.Red, "expired " + rough(-left) + " ago"
	case left <= s.Certificate.NotAfter.Sub(s.Certificate.NotBefore).Seconds()/6:
		return terminal.Red, rough(left) + " left"
	default:
		return terminal.Green, rough(left) + " left"
	}
}

func (t *text) identity() {
	t.Paragraph(terminal.Plain, "agent      ", fmt.Sprintf("%s (%s)", t.NextStart, t.Verdict.IdentityMode))
	c := t.Credentials
	t.Paragraph(terminal.Plain, "files      ", caseTitle(c.Case)+": "+c.CaseMeaning)
	t.Paragraph(terminal.Plain, "           ", outcomeTitle(c.Outcome)+": "+c.OutcomeMeaning)
	if e := t.Verdict.Envoy; e.Version != "" {
		said := "Envoy " + e.Version
		if e.Started != nil {
			said += ", up for " + rough(t.Verdict.At.Sub(*e.Started).Seconds())
		}
		if e.SDSStreams != nil {
			said += fmt.Sprintf(", SDS streams open: %d", *e.SDSStreams)
		}
		if e.IdentityUpdated != nil {
			said += fmt.Sprintf(", last_updated of the identity: %s ago", rough(t.Verdict.At.Sub(*e.IdentityUpdated).Seconds()))
		}
		t.Paragraph(terminal.Plain, "envoy      ", said+".")
	}
	if t.ToldBy != ByLook {
		v := t.Verdict
		said := fmt.Sprintf("verified %d, hollow updates %d, rejected updates %d", v.VerifiedRotations, v.HollowUpdates, v.RejectedUpdates)
		if v.IntervalSeconds > 0 {
			said += fmt.Sprintf(", one every %s (%s)", rough(v.IntervalSeconds), v.IntervalSource)
		}
		t.Paragraph(terminal.Plain, "rotations  ", said+".")
	}
}

func caseTitle(c Case) string {
	switch c {
	case CaseA, CaseB, CaseC:
		return "Case " + string(c)
	case CasePartial:
		return "No case"
	default:
		return "Case unknown"
	}
}

func outcomeTitle(o Outcome) string {
	if o == OutcomeOpen {
		return "Outcome open"
	}
	return "Outcome " + string(o)
}

func (t *text) problems() {
	for _, p := range t.Verdict.Problems {
		t.End()
		look := terminal.Yellow
		if p.Severity == rotation.Critical {
			look = terminal.Red
		}
		t.Add(look, string(p.Severity))
		title := string(p.Name)
		if p.Reason != rotation.ReasonNone {
			title += " (" + string(p.Reason) + ")"
		}
		if t.ToldBy != ByLook {
			title += ", for " + rough(t.Verdict.At.Sub(p.Since).Seconds())
		}
		t.Text(terminal.Bold, 0, title)
		t.End()
		if p.Detail != "" {
			t.Paragraph(terminal.Plain, "  seen     ", p.Detail)
		}
		t.Paragraph(terminal.Plain, "  cause    ", p.Cause)
		t.Paragraph(terminal.Plain, "  advice   ", p.Advice)
	}
}

func (t *text) open() {
	if len(t.CannotTell) == 0 {
		return
	}
	t.End()
	t.Add(terminal.Bold, "What this does not tell")
	t.End()
	for _, c := range t.CannotTell {
		t.Paragraph(terminal.Plain, "- ", c)
	}
}

func (t *text) events() {
	events := t.Verdict.Events
	if t.ToldBy == ByLook || len(events) == 0 {
		return
	}
	t.End()
	t.Add(terminal.Bold, "Latest events")
	t.End()
	for _, e := range events[max(0, len(events)-shownEvents):] {
		t.Paragraph(terminal.Plain, e.At.UTC().Format("15:04:05")+"   ", e.Message)
	}
}

// rough is a number of seconds for people.
func rough(seconds float64) string {
	d := time.Duration(seconds * float64(time.Second))
	switch {
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", int(d/time.Second))
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", int(d/time.Minute))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%02dm", int(d/time.Hour), int(d%time.Hour/time.Minute))
	default:
		return fmt.Sprintf("%dd", int(d/(24*time.Hour)))
	}
}
