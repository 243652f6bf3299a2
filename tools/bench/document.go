package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
)

// write puts a table into the document, between the marks <!-- bench NAME -->
// and <!-- end -->.
func (b *bench) write(name, table string) error {
	path := b.document
	if !filepath.IsAbs(path) {
		path = filepath.Join(b.root, path)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	begin := []byte("<!-- bench " + name + " -->\n")
	at := bytes.Index(text, begin)
	if at < 0 {
		return fmt.Errorf("%s has no place for %q", path, name)
	}
	at += len(begin)
	end := bytes.Index(text[at:], []byte("<!-- end -->"))
	if end < 0 {
		return fmt.Errorf("%s: the place for %q has no end", path, name)
	}
	out := append([]byte{}, text[:at]...)
	out = append(out, "\n"+strings.TrimSpace(table)+"\n\n"...)
	out = append(out, text[at+end:]...)
	return os.WriteFile(path, out, 0o644)
}

// table is one of Markdown.
type table struct{ rows [][]string }

func newTable(head ...string) *table { return &table{[][]string{head}} }

func (t *table) add(cells ...any) {
	row := make([]string, len(cells))
	for i, c := range cells {
		row[i] = fmt.Sprint(c)
	}
	t.rows = append(t.rows, row)
}

func (t *table) String() string {
	var b strings.Builder
	for i, r := range t.rows {
		fmt.Fprintf(&b, "| %s |\n", strings.Join(r, " | "))
		if i == 0 {
			b.WriteString("|" + strings.Repeat("---|", len(r)) + "\n")
		}
	}
	return b.String()
}

// ratio writes a as so many times b.
func ratio(a, b float64) string {
	switch r := a / b; {
	case b <= 0:
		return "-"
	case r >= 100:
		return fmt.Sprintf("%.0f ×", r)
	case r >= 10:
		return fmt.Sprintf("%.1f ×", r)
	default:
		return fmt.Sprintf("%.2f ×", r)
	}
}

// goal says whether a goal was reached, and by how much not.
func goal(is, most float64, format string) string {
	if is <= most {
		return fmt.Sprintf("at most "+format+": reached", most)
	}
	return fmt.Sprintf("at most "+format+": **missed by "+format+"**", most, is-most)
}

// machine describes where the tables were made, without naming it.
func machine() string {
	cpu := first(`(?m)^model name\s*:\s*(.*)$`, "/proc/cpuinfo")
	if cpu == "" {
		cpu = runtime.GOARCH
	}
	kernel := first(`^(\d+\.\d+)`, "/proc/sys/kernel/osrelease")
	kib, err := strconv.ParseFloat(first(`(?m)^MemTotal:\s*(\d+)`, "/proc/meminfo"), 64)
	if err != nil {
		kib = 0
	}
	load := first(`^(\S+)`, "/proc/loadavg")
	return fmt.Sprintf("Measured on %d cores (%s), %.0f GiB of memory, Linux %s, %s. The load average was %s at the end.",
		runtime.NumCPU(), cpu, kib/(1<<20), kernel, runtime.Version(), load)
}

func first(pattern, path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	m := regexp.MustCompile(pattern).FindSubmatch(text)
	if m == nil {
		return ""
	}
	return strings.TrimSpace(string(m[1]))
}
