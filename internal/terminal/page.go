// Package terminal lays out text for people: in columns of characters, with
// colours where they are wanted.
package terminal

import (
	"os"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// Style is how a piece of text looks (ECMA-48, select graphic rendition).
type Style string

// The styles.
const (
	Plain  Style = ""
	Bold   Style = "1"
	Dim    Style = "2"
	Red    Style = "31"
	Green  Style = "32"
	Yellow Style = "33"
	Blue   Style = "36"

	OnRed    Style = "1;37;41"
	OnGreen  Style = "1;30;42"
	OnYellow Style = "1;30;43"
	OnGrey   Style = "1;30;47"
)

// Size is the size of a terminal in characters; false if the file is none.
func Size(f *os.File) (width, height int, terminal bool) {
	w, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0, 0, false
	}
	if w.Col == 0 || w.Row == 0 {
		return 80, 24, true // a terminal that does not say
	}
	return int(w.Col), int(w.Row), true
}

// Page is a text that is written piece by piece. Width must be set.
type Page struct {
	// Width is how many characters fit into a line.
	Width int
	// Color lets styles be seen.
	Color bool
	// Cut cuts words that are wider than a line, for a page that is redrawn in
	// place. Otherwise they are left whole, since they may be copied.
	Cut bool

	lines []string
	// The line that is being written, and how wide it is.
	line  strings.Builder
	taken int
}

// Lines are the lines that have ended.
func (p *Page) Lines() []string { return p.lines }

// String is the text of the lines that have ended.
func (p *Page) String() string {
	if len(p.lines) == 0 {
		return ""
	}
	return strings.Join(p.lines, "\n") + "\n"
}

// Add writes a piece of text, as far as it fits.
func (p *Page) Add(s Style, text string) {
	if room := p.Width - p.taken; utf8.RuneCountInString(text) > room {
		if room < 1 {
			return
		}
		text = string([]rune(text)[:room-1]) + "…"
	}
	p.write(s, text)
}

func (p *Page) write(s Style, text string) {
	p.taken += utf8.RuneCountInString(text)
	if !p.Color || s == Plain || text == "" {
		p.line.WriteString(text)
		return
	}
	p.line.WriteString("\x1b[" + string(s) + "m" + text + "\x1b[0m")
}

// End ends a line.
func (p *Page) End() {
	p.lines = append(p.lines, strings.TrimRight(p.line.String(), " "))
	p.line.Reset()
	p.taken = 0
}

// Paragraph writes a text over as many lines as it takes, after a label and
// below it.
func (p *Page) Paragraph(s Style, label, text string) {
	indent := utf8.RuneCountInString(label)
	if indent > p.Width/2 {
		// There is no room beside the label.
		p.Add(Dim, strings.TrimRight(label, " "))
		p.End()
		indent = min(4, p.Width/8)
		label = strings.Repeat(" ", indent)
	}
	p.Add(Dim, label)
	p.Text(s, indent, text)
	p.End()
}

// Text writes words where the line is, and goes on below, indented.
func (p *Page) Text(s Style, indent int, text string) {
	begun := p.taken > indent
	for word := range strings.FieldsSeq(text) {
		switch {
		case begun && p.taken+1+utf8.RuneCountInString(word) > p.Width:
			p.End()
			p.write(Plain, strings.Repeat(" ", indent))
		case begun:
			p.write(Plain, " ")
		}
		begun = true
		if p.Cut {
			p.Add(s, word)
		} else {
			p.write(s, word)
		}
	}
}
