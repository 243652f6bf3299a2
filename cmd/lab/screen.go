package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"svid-watchdog/internal/lab"
	"svid-watchdog/internal/rotation"
	"svid-watchdog/internal/terminal"
	"svid-watchdog/internal/watchdog"
)

// scene is what does not change during a run.
type scene struct {
	o       *options
	pod     *lab.Pod
	cfg     watchdog.Config
	status  string // the watchdog's host:port, "" without one
	control net.Listener
	began   time.Time
	keys    bool // somebody can press keys
}

// screen shows a run to people, or, for --json, to nobody.
type screen interface {
	// starting is told before the pod is started, begin when it runs, show at
	// each look, and end before the last words are printed.
	starting(*options)
	begin(scene)
	show(now snapshot, fresh []entry)
	end()
	// desk is where keys go, nil where there are none.
	desk() *desk
}

// newScreen is a live view in a terminal and plain lines elsewhere.
func newScreen(stdout io.Writer, o *options) screen {
	if o.json {
		return blank{}
	}
	if o.keys(stdout) {
		return &live{out: stdout.(*os.File), color: !o.noColor} //nolint:forcetypeassert // keys has looked
	}
	return &lines{out: stdout}
}

// keys tells whether the run is shown in a terminal, where keys make sense.
func (o *options) keys(stdout io.Writer) bool {
	file, ok := stdout.(*os.File)
	return ok && !o.json && o.watchdog && os.Getenv("TERM") != "dumb" && isTerminal(file)
}

func isTerminal(f *os.File) bool {
	_, _, ok := terminal.Size(f)
	return ok
}

// blank shows nothing.
type blank struct{}

func (blank) starting(*options)      {}
func (blank) begin(scene)            {}
func (blank) show(snapshot, []entry) {}
func (blank) end()                   {}
func (blank) desk() *desk            { return nil }

// lines prints a line for each thing that happens. It cannot help a broken
// standard output, so that it does not look.
type lines struct {
	out   io.Writer
	began time.Time
	err   string
}

func (l *lines) starting(o *options) {
	fmt.Fprintf(l.out, "Starting a pod: identity provider %s, certificates of %s.\n", o.pod.Issuer, o.pod.TTL)
}

func (l *lines) begin(s scene) {
	l.began = s.began
	fmt.Fprintf(l.out, "%s\n\nThe pod runs: %s, a renewal every %s.\n", wrapped(intro), envoyName(s.o, s.pod), s.pod.Renewal())
	fmt.Fprintf(l.out, "  Envoy's admin interface  %s\n  Envoy's TLS listener     %s\n  Workload API and SDS     %s\n",
		s.pod.Envoy().AdminAddress(), s.pod.Envoy().ListenerAddress(), s.pod.SocketAddress())
	if s.status != "" {
		fmt.Fprintf(l.out, "  The watchdog             http://%s/\n", s.status)
	}
	if s.control != nil {
		fmt.Fprintf(l.out, "  The faults               http://%s/faults\n", s.control.Addr())
	} else {
		fmt.Fprintln(l.out, "In a terminal keys inject faults; elsewhere --fault NAME@30s and --control 127.0.0.1:9817 do.")
	}
	if s.status == "" {
		fmt.Fprintf(l.out, "Start a watchdog beside it with:\n\n  %s\n\n", byHand(s.cfg))
	}
}

// wrapped is a text in lines that are easy to read.
func wrapped(text string) string {
	p := terminal.Page{Width: 100}
	p.Paragraph(terminal.Plain, "", text)
	return strings.TrimSuffix(p.String(), "\n")
}

func (l *lines) show(now snapshot, fresh []entry) {
	for _, e := range fresh {
		if e.quiet() {
			continue
		}
		l.line(e.At, e.From, e.Message)
		if e.Type != string(rotation.EventProblemRaised) || now.verdict == nil {
			continue
		}
		if p, ok := now.verdict.Find(rotation.ProblemName(e.Problem)); ok {
			l.line(e.At, "", "  "+title(p))
			l.line(e.At, "", "  Cause: "+p.Cause)
			l.line(e.At, "", "  Advice: "+p.Advice)
		}
	}
	text := ""
	if now.err != nil {
		text = now.err.Error()
	}
	if text != l.err && text != "" {
		l.line(time.Now(), fromLab, text)
	}
	l.err = text
}

func (l *lines) line(at time.Time, from, message string) {
	fmt.Fprintf(l.out, "%7s  %-8s  %s\n", "+"+at.Sub(l.began).Round(100*time.Millisecond).String(), from, message)
}

func (l *lines) end() {}

func (l *lines) desk() *desk { return nil }

// title is a problem in one line.
func title(p rotation.Problem) string {
	text := string(p.Name)
	if p.Reason != rotation.ReasonNone {
		text += " (" + string(p.Reason) + ")"
	}
	return text + ", " + string(p.Severity)
}

// live redraws a view in place.
type live struct {
	out   *os.File
	color bool
	scene scene
	keys  *desk
}

// Sequences of ECMA-48 and of xterm.
const (
	enterScreen = "\x1b[?1049h\x1b[?25l" // the alternate screen, no cursor
	leaveScreen = "\x1b[?25h\x1b[?1049l"
	beginFrame  = "\x1b[?2026h\x1b[H" // shown at once where the terminal can
	endFrame    = "\x1b[J\x1b[?2026l"
	eraseRest   = "\x1b[K"
)

func (l *live) starting(o *options) {
	fmt.Fprintf(l.out, "Starting a pod: identity provider %s, certificates of %s …\r\n", o.pod.Issuer, o.pod.TTL)
}

func (l *live) begin(s scene) {
	l.scene = s
	if s.keys {
		l.keys = newDesk(s.pod, s.o)
	}
	_, _ = io.WriteString(l.out, enterScreen)
}

func (l *live) show(now snapshot, _ []entry) {
	width, height, _ := terminal.Size(l.out)
	frame := view{scene: l.scene, now: now, at: time.Now(), desk: l.keys, Page: terminal.Page{Width: width, Color: l.color, Cut: true}}.render()
	if len(frame) > height {
		frame = frame[:height]
	}
	// Each line erases what is left of the old one, so that nothing is blank
	// in between and nothing flickers.
	text := beginFrame + strings.Join(frame, eraseRest+"\r\n") + eraseRest + endFrame
	_, _ = io.WriteString(l.out, text)
}

func (l *live) desk() *desk { return l.keys }

func (l *live) end() { _, _ = io.WriteString(l.out, leaveScreen) }
