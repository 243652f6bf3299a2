package main

import (
	"fmt"
	"strings"
	"time"

	"svid-watchdog/internal/rotation"
	"svid-watchdog/internal/terminal"
)

// view is one frame of the live view.
type view struct {
	scene scene
	now   snapshot
	at    time.Time
	// desk is what keys have asked for; nil where there are none.
	desk *desk

	terminal.Page
}

func (v view) render() []string {
	v.header()
	v.panel()
	if v.now.verdict == nil {
		v.End()
		v.Add(terminal.Dim, "Waiting for the watchdog's first verdict.")
		v.End()
		return v.Lines()
	}
	v.verdict()
	for _, stage := range v.now.verdict.Stages {
		v.stage(stage)
	}
	v.End()
	v.problems()
	v.faults()
	v.events()
	return v.Lines()
}

func (v *view) header() {
	v.Add(terminal.Bold, "svid-watchdog lab")
	v.Add(terminal.Dim, fmt.Sprintf("  %s, %s, certificates of %s renewed every %s  ", v.scene.o.pod.Issuer,
		envoyName(v.scene.o, v.scene.pod), v.scene.pod.TTL(), v.scene.pod.Renewal()))
	v.Add(terminal.Plain, clock(v.at.Sub(v.scene.began)))
	if v.scene.o.duration > 0 {
		v.Add(terminal.Dim, " of "+clock(v.scene.o.duration))
	}
	v.End()
	v.Paragraph(terminal.Plain, "", intro)
	v.End()
	v.Add(terminal.Dim, "page to open ")
	v.Add(terminal.Bold, "http://"+v.scene.status+"/")
	v.Add(terminal.Dim, "  Envoy's admin interface "+v.scene.pod.Envoy().AdminAddress())
	if v.scene.control != nil {
		v.Add(terminal.Dim, fmt.Sprintf("  faults http://%s/faults", v.scene.control.Addr()))
	}
	v.End()
	v.End()
}

// intro says what this is to somebody who sees it for the first time.
const intro = "A pod in a box. An identity provider hands out certificates that live for a short time, and sends each new one " +
	"to Envoy, which must use it before the old one expires. The watchdog follows each certificate through four stages and says where one stops."

// help is the longer explanation, one paragraph each.
var help = [][2]string{
	{"issued     ", "The identity provider (Teleport's tbot or a SPIRE agent) has issued a certificate that says who this workload is: an X.509-SVID. The watchdog gets one of its own from the same socket, by the SPIFFE Workload API."},
	{"delivered  ", "Envoy, the proxy of the pod, keeps a stream open to that socket (SDS, the secret discovery service), on which each new certificate should come long before the old one expires."},
	{"loaded     ", "Envoy has taken it into the TLS contexts with which it really encrypts. That it was delivered does not prove it."},
	{"served     ", "It is what another workload is shown in a TLS handshake."},
	{"a rotation ", "is verified when one new certificate went all the way. A fresh time stamp in Envoy proves nothing: press f, then the key of tbot-resend, and see the incident that this was made for."},
}

// panel shows what keys are for, and what they have asked for.
func (v *view) panel() {
	if v.desk == nil {
		return
	}
	key := func(k, what string) {
		v.Add(terminal.Bold, "["+k+"]")
		v.Add(terminal.Plain, " "+what+"  ")
	}
	key("f", "break something")
	key("h", "heal everything")
	key("?", "what is this")
	key("q", "quit")
	v.End()
	switch v.desk.panel {
	case helpPanel:
		v.End()
		for _, p := range help {
			v.Paragraph(terminal.Plain, p[0], p[1])
		}
	case faultPanel:
		v.End()
		v.Add(terminal.Plain, "Press a key to inject a fault, and again to heal it.")
		v.End()
		for _, f := range v.desk.faults() {
			look, mark := terminal.Plain, " "
			if f.active {
				look, mark = terminal.Red, "●"
			}
			v.Add(terminal.Bold, " "+string(rune(keyOf(f.Name)))+" ")
			v.Add(look, mark+" "+fmt.Sprintf("%-20s", f.Name))
			v.Add(terminal.Dim, f.Summary)
			v.End()
		}
	}
	if v.desk.said != "" {
		v.Add(terminal.Yellow, v.desk.said)
		v.End()
	}
	v.End()
}

// clock is a duration as a stopwatch shows it.
func clock(d time.Duration) string {
	d = d.Round(time.Second)
	return fmt.Sprintf("%d:%02d", int(d/time.Minute), int(d%time.Minute/time.Second))
}

func (v *view) verdict() {
	looks := map[rotation.State]terminal.Style{
		rotation.Healthy: terminal.OnGreen, rotation.Degraded: terminal.OnYellow, rotation.Broken: terminal.OnRed, rotation.Unknown: terminal.OnGrey,
	}
	d := v.now.verdict
	v.Add(looks[d.State], " "+strings.ToUpper(string(d.State))+" ")
	v.Add(terminal.Plain, "  "+d.Summary)
	v.End()
	v.End()
}

// barWidth is the width of a bar, in characters.
const barWidth = 24

// stage shows a stage: how much of its certificate's life is left, as a bar.
func (v *view) stage(s rotation.StageView) {
	v.Add(terminal.Bold, fmt.Sprintf("%-10s", s.Stage))
	if s.Certificate == nil {
		v.Add(terminal.Dim, strings.Repeat("·", barWidth)+"  not seen")
		v.End()
		return
	}
	left := s.Certificate.NotAfter.Sub(v.at)
	share := float64(left) / float64(v.scene.pod.TTL())
	filled := min(max(int(share*barWidth+0.5), 0), barWidth)
	look := terminal.Green
	switch {
	case share <= 1.0/6: // the watchdog's margin
		look = terminal.Red
	case share <= 1.0/3:
		look = terminal.Yellow
	}
	v.Add(look, strings.Repeat("█", filled))
	v.Add(terminal.Dim, strings.Repeat("░", barWidth-filled))
	if left > 0 {
		v.Add(look, fmt.Sprintf("  %4s left", seconds(left)))
	} else {
		v.Add(look, fmt.Sprintf("  expired %s ago", seconds(-left)))
	}
	if s.AgeSeconds != nil {
		age := time.Duration(*s.AgeSeconds*float64(time.Second)) + v.at.Sub(v.now.verdict.At)
		v.Add(terminal.Plain, fmt.Sprintf("   %4s old", seconds(age)))
	}
	serial := s.Certificate.Serial
	v.Add(terminal.Dim, "   "+serial[:min(8, len(serial))])
	v.Add(terminal.Dim, "   "+plural(s.Rotations, "rotation"))
	if s.Leaves > 1 {
		v.Add(terminal.Dim, fmt.Sprintf(", %d leaves", s.Leaves))
	}
	v.End()
}

func seconds(d time.Duration) string {
	if d >= 10*time.Minute {
		return fmt.Sprintf("%dm", int(d/time.Minute))
	}
	return fmt.Sprintf("%ds", int(d/time.Second))
}

func (v *view) problems() {
	for _, p := range v.now.verdict.Problems {
		look := terminal.Yellow
		if p.Severity == rotation.Critical {
			look = terminal.Red
		}
		v.Add(look, "● ")
		v.Add(terminal.Bold, title(p))
		v.End()
		if p.Detail != "" {
			v.Paragraph(terminal.Plain, "    seen    ", p.Detail)
		}
		v.Paragraph(terminal.Plain, "    cause   ", p.Cause)
		v.Paragraph(terminal.Plain, "    advice  ", p.Advice)
	}
	if len(v.now.verdict.Problems) == 0 {
		v.Add(terminal.Dim, "No problem holds.")
		v.End()
	}
	if v.now.err != nil {
		v.Add(terminal.Red, v.now.err.Error())
		v.End()
	}
	v.End()
}

func (v *view) faults() {
	if len(v.now.faults) == 0 {
		return
	}
	v.Add(terminal.Dim, "Injected: ")
	v.Add(terminal.Bold, strings.Join(v.now.faults, ", "))
	v.End()
	v.End()
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
		v.Add(terminal.Dim, fmt.Sprintf("%6s  ", clock(max(0, e.At.Sub(v.scene.began)))))
		from := terminal.Blue
		if e.From == fromWatchdog {
			from = terminal.Green
		}
		v.Add(from, fmt.Sprintf("%-9s ", e.From))
		v.Add(terminal.Plain, e.Message)
		v.End()
	}
}
