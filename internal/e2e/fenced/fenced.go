// Package fenced finds the commands that stand in fenced blocks of documents, for
// tests that run them.
package fenced

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"svid-watchdog/internal/e2e/neighbour"
)

// Block is a fenced block.
type Block struct {
	// Heading is the one that it stands under.
	Heading string
	// Kind is what stands behind the fence: sh, for the shell, with more words
	// where it takes more than an API server.
	Kind string
	Text string
	Line int
}

// Read finds the blocks of a document, whose path is from the repository's root.
func Read(t testing.TB, document string) []Block {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(neighbour.Root(t), document))
	if err != nil {
		t.Fatal(err)
	}
	var blocks []Block
	var open *Block
	heading, number := "", 0
	for line := range strings.Lines(string(text)) {
		number++
		kind, fence := strings.CutPrefix(line, "```")
		switch {
		case fence && open != nil:
			blocks = append(blocks, *open)
			open = nil
		case fence:
			open = &Block{Heading: heading, Kind: strings.TrimSpace(kind), Line: number}
			if open.Kind == "" {
				t.Errorf("%s:%d: the fence does not say what it holds", document, number)
			}
		case open != nil:
			open.Text += line
		case strings.HasPrefix(line, "#"):
			heading = strings.TrimSpace(strings.TrimLeft(line, "#"))
		case strings.HasPrefix(line, "    ") && strings.Contains(line, "kubectl "):
			t.Errorf("%s:%d: a command outside of a fence: %s", document, number, line)
		}
	}
	if open != nil {
		t.Fatalf("%s:%d: the fence is not closed", document, open.Line)
	}
	return blocks
}
