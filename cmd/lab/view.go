package main

import (
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"svid-watchdog/internal/rotation"
)

// style is how a piece of text looks (ECMA-48, select graphic rendition).
type style string

const (
	plain  style = ""
	bold   style = "1"
	dim    style = "2"
	red    style = "31"
	green  style = "32"
	yellow style = "33"
	blue   style = "36"

	onRed    style = "1;37;41"
	onGreen  style = "1;30;42"
	onYellow style = "1;30;43"
	onGrey   style = "1;30;47"
)

// view is one frame of the live view.
type view struct {
	scene scene
	now   snapshot
	at    time.Time
	width int
	color bool

	frame []string
	// The line that is being written, and how wide it is.
	line  strings.Builder
	taken int
}

// add writes a piece of text, as far as it fits.
func (v *view) add(s style, text string) {
	if room := v.width - v.taken; utf8.RuneCountInString(text) > room {
		runes := []rune(text)
		if room < 1 {
			return
		}
		text = string(runes[:room-1]) + "…"
	}
	v.taken += utf8.RuneCountInString(text)
	if !v.color || s == plain {
		v.line.WriteString(text)
		return
	}
	v.line.WriteString("\x1b[" + string(s) + "m" + text + "\x1b[0m")
}

// end ends a line.
func (v *view) end() {
	v.frame = append(v.frame, v.line.String())
	v.line.Reset()
	v.taken = 0
}

// paragraph writes a text over as many lines as it takes, after a label.
func (v *view) paragraph(s style, label, text string) {
	indent := utf8.RuneCountInString(label)
	v.add(dim, label)
	for i, word := range strings.Fields(text) {
		length := utf8.RuneCountInString(word)
		switch {
		case i > 0 && v.taken+1+length > v.width:
			v.end()
			v.add(plain, strings.Repeat(" ", indent))
		case i > 0:
			v.add(plain, " ")
		}
		v.add(s, word)
	}
	v.end()
}

func (v view) render() []string {
	v.header()
	if v.now.verdict == nil {
		v.end()
		v.add(dim, "Waiting for the watchdog's first verdict.")
		v.end()
		return v.frame
	}
	v.verdict()
	for _, stage := range v.now.verdict.Stages {
		v.stage(stage)
	}
	v.end()
	v.problems()
	v.faults()
	v.events()
	return v.frame
}

func (v *view) header() {
	v.add(bold, "svid-watchdog lab")
	v.add(dim, fmt.Sprintf("  %s, %s, certificates of %s renewed every %s  ", v.scene.o.pod.Issuer,
		envoyName(v.scene.o, v.scene.pod), v.scene.pod.TTL(), v.scene.pod.Renewal()))
	v.add(plain, clock(v.at.Sub(v.scene.began)))
	if v.scene.o.duration > 0 {
		v.add(dim, " of "+clock(v.scene.o.duration))
	}
	v.end()
	v.add(dim, "watchdog http://"+v.scene.status+"/  envoy "+v.scene.pod.Envoy().AdminAddress())
	if v.scene.control != nil {
		v.add(dim, fmt.Sprintf("  faults http://%s/faults", v.scene.control.Addr()))
	}
	v.end()
	v.end()
}

// clock is a duration as a stopwatch shows it.
func clock(d time.Duration) string {
	d = d.Round(time.Second)
	return fmt.Sprintf("%d:%02d", int(d/time.Minute), int(d%time.Minute/time.Second))
}

func (v *view) verdict() {
	looks := map[rotation.State]style{
		rotation.Healthy: onGreen, rotation.Degraded: onYellow, rotation.Broken: onRed, rotation.Unknown: onGrey,
	}
	d := v.now.verdict
	v.add(looks[d.State], " "+strings.ToUpper(string(d.State))+" ")
	v.add(plain, "  "+d.Summary)
	v.end()
	v.end()
}

// barWidth is the width of a bar, in characters.
const barWidth = 24

// stage shows a stage: how much of its certificate's life is left, as a bar.
func (v *view) stage(s rotation.StageView) {
	v.add(bold, fmt.Sprintf("%-10s", s.Stage))
	if s.Certificate == nil {
		v.add(dim, strings.Repeat("·", barWidth)+"  not seen")
		v.end()
		return
	}
	left := s.Certificate.NotAfter.Sub(v.at)
	share := float64(left) / float64(v.scene.pod.TTL())
	filled := min(max(int(share*barWidth+0.5), 0), barWidth)
	look := green
	switch {
	case share <= 1.0/6: // the watchdog's margin
		look = red
	case share <= 1.0/3:
		look = yellow
	}
	v.add(look, strings.Repeat("█", filled))
	v.add(dim, strings.Repeat("░", barWidth-filled))
	if left > 0 {
		v.add(look, fmt.Sprintf("  %4s left", seconds(left)))
	} else {
		v.add(look, fmt.Sprintf("  expired %s ago", seconds(-left)))
	}
	if s.AgeSeconds != nil {
		age := time.Duration(*s.AgeSeconds*float64(time.Second)) + v.at.Sub(v.now.verdict.At)
		v.add(plain, fmt.Sprintf("   %4s old", seconds(age)))
	}
	serial := s.Certificate.Serial
	v.add(dim, "   "+serial[:min(8, len(serial))])
	v.add(dim, "   "+plural(s.Rotations, "rotation"))
	if s.Leaves > 1 {
		v.add(dim, fmt.Sprintf(", %d leaves", s.Leaves))
	}
	v.end()
}

func seconds(d time.Duration) string {
	if d >= 10*time.Minute {
		return fmt.Sprintf("%dm", int(d/time.Minute))
	}
	return fmt.Sprintf("%ds", int(d/time.Second))
}

func (v *view) problems() {
	for _, p := range v.now.verdict.Problems {
		look := yellow
		if p.Severity == rotation.Critical {
			look = red
		}
		v.add(look, "● ")
		v.add(bold, title(p))
		v.end()
		if p.Detail != "" {
			v.paragraph(plain, "    seen    ", p.Detail)
		}
		v.paragraph(plain, "    cause   ", p.Cause)
		v.paragraph(plain, "    advice  ", p.Advice)
	}
	if len(v.now.verdict.Problems) == 0 {
		v.add(dim, "No problem holds.")
		v.end()
	}
	if v.now.err != nil {
		v.add(red, v.now.err.Error())
		v.end()
	}
	v.end()
}

func (v *view) faults() {
	if len(v.now.faults) == 0 {
		return
	}
	v.add(dim, "Injected: ")
	v.add(bold, strings.Join(v.now.faults, ", "))
	v.end()
	v.end()
}

// eventsShown is how many events are shown, newest first, since the frame is
// cut at its lower end.
const eventsShown = 16

func (v *view) events() {
	shown := 0
	for i := len(v.now.entries) - 1; i >= 0 && shown < eventsShown; i-- {
		e := v.now.entries[i]
		if e.quiet() {
			continue
		}
		shown++
		v.add(dim, fmt.Sprintf("%6s  ", clock(max(0, e.At.Sub(v.scene.began)))))
		from := blue
		if e.From == fromWatchdog {
			from = green
		}
		v.add(from, fmt.Sprintf("%-9s ", e.From))
		v.add(plain, e.Message)
		v.end()
	}
}
