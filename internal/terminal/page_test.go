package terminal

import (
	"os"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestParagraph(t *testing.T) {
	for _, tt := range []struct {
		width       int
		label, text string
		want        string
	}{
		{40, "cause   ", "one two", "cause   one two\n"},
		{16, "cause   ", "one two three", "cause   one two\n        three\n"},
		// No room beside the label: below it.
		{12, "advice    ", "one two three", "advice\n one two\n three\n"},
		// Nothing that somebody may want to copy is cut.
		{10, "", "spiffe://example.org/ns/shop x", "spiffe://example.org/ns/shop\nx\n"},
		{10, "a ", "", "a\n"},
	} {
		p := Page{Width: tt.width}
		p.Paragraph(Plain, tt.label, tt.text)
		if p.String() != tt.want {
			t.Errorf("%d %q %q:\n%s", tt.width, tt.label, tt.text, p.String())
		}
	}
}

func TestAddCuts(t *testing.T) {
	p := Page{Width: 8}
	p.Add(Red, "12345")
	p.Add(Bold, "äöüß")
	p.Add(Bold, "no room")
	p.End()
	if got := p.Lines()[0]; got != "12345äö…" || utf8.RuneCountInString(got) != 8 {
		t.Errorf("%q", got)
	}
}

func TestColor(t *testing.T) {
	p := Page{Width: 20, Color: true}
	p.Add(Red, "red")
	p.Add(Plain, " plain")
	p.End()
	if got := p.String(); got != "\x1b[31mred\x1b[0m plain\n" {
		t.Errorf("%q", got)
	}
}

func TestSizeOfAFile(t *testing.T) {
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, _, terminal := Size(f); terminal {
		t.Error("the null device is taken for a terminal")
	}
}

func FuzzParagraph(f *testing.F) {
	f.Add(20, "label ", "some words to lay out")
	f.Add(1, "ä", "ö ü")
	f.Fuzz(func(t *testing.T, width int, label, text string) {
		width = 1 + (width&0xff)%200
		// Labels are ours: none ends in half a character, of which the text could
		// have the other half.
		label = strings.ToValidUTF8(label, "?")
		p := Page{Width: width}
		p.Paragraph(Plain, label, text)
		if got, want := len(strings.Fields(p.String())), len(strings.Fields(text)); got < want {
			t.Errorf("%d of %d words", got, want)
		}
	})
}
