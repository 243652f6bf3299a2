package contract_test

import (
	"strings"
	"testing"
	"time"

	"svid-watchdog/internal/contract"
)

// TestCompare: what goes or changes breaks, what comes does not.
func TestCompare(t *testing.T) {
	for _, tt := range []struct{ promised, now, says string }{
		{"a\nb\n", "a\nb\n", ""},
		{"a\nb\n", "a\n", "a breaking change"},
		{"a 1\n", "a 2\n", "a breaking change"},
		{"a\n", "a\nb\n", "adds to the contract"},
		{"a\na\n", "a\n", "a breaking change"},
		{"a\nb\n", "b\na\n", "another order"},
	} {
		got := contract.Compare(tt.promised, tt.now)
		if (got == "") != (tt.says == "") || !strings.Contains(got, tt.says) {
			t.Errorf("%q to %q: %q", tt.promised, tt.now, got)
		}
	}
}

type inner struct {
	At   *time.Time `json:"at,omitempty"`
	Skip int        `json:"-"`
}

// TestShape: every field of a document is a line, with the way to it.
func TestShape(t *testing.T) {
	type document struct {
		inner
		List  []inner            `json:"list"`
		Map   map[string]float64 `json:"map"`
		Count uint64             `json:"count"`
		Up    bool               `json:"up"`
	}
	const want = "at time, may be absent\nlist array\nlist[] object\nlist[].at time, may be absent\n" +
		"map object\nmap.* number\ncount integer\nup boolean\n"
	if got := contract.Shape(document{}); got != want {
		t.Errorf("got:\n%swant:\n%s", got, want)
	}
}
