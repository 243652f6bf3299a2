package lab_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"svid-watchdog/internal/lab"
)

// matrix collects what became of each fault in each pod. With FAULT_MATRIX it
// is written to that file, which `make fault-matrix` shows.
type matrix struct {
	path string

	mu      sync.Mutex
	columns []string
	cells   map[string]map[string]string // by fault and column
}

func newMatrix(t *testing.T) *matrix {
	m := &matrix{path: os.Getenv("FAULT_MATRIX"), cells: make(map[string]map[string]string)}
	t.Cleanup(func() { // after the parallel subtests
		if m.path == "" {
			return
		}
		if err := os.WriteFile(m.path, []byte(m.String()), 0o600); err != nil {
			t.Error(err)
		}
		for _, f := range lab.Faults() {
			for _, c := range m.columns {
				if m.cells[f.Name][c] == "" {
					t.Errorf("no result for %s on %s", f.Name, c)
				}
			}
		}
	})
	return m
}

func (m *matrix) add(fault, column, cell string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !slices.Contains(m.columns, column) {
		m.columns = append(m.columns, column)
	}
	if m.cells[fault] == nil {
		m.cells[fault] = make(map[string]string)
	}
	m.cells[fault][column] = cell
}

// String is one block for each fault, one line for each pod.
func (m *matrix) String() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	slices.Sort(m.columns)
	var b strings.Builder
	for _, f := range lab.Faults() {
		fmt.Fprintf(&b, "%s: %s\n", f.Name, f.Summary)
		for _, c := range m.columns {
			fmt.Fprintf(&b, "  %-32s %s\n", c, m.cells[f.Name][c])
		}
	}
	return b.String()
}
