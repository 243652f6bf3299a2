// Command testreport reads the JSON of one or more runs of go test and says at
// the end of a test run what it could not test: each skipped test with its
// reason. With CI=true nothing may be left out, so that a skip is a failure.
//
//	testreport FILE...
//
// Its last line, "N passed, N failed, N skipped", is for programs.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

func main() {
	os.Exit(run(os.Args[1:], os.Getenv("CI") == "true", os.Stdout, os.Stderr))
}

func run(files []string, ci bool, stdout, stderr io.Writer) int {
	r := newReport()
	for _, name := range files {
		if err := r.readFile(name); err != nil {
			fmt.Fprintf(stderr, "testreport: %v\n", err)
			return 2
		}
	}
	return r.print(stdout, ci)
}

// event is a line of go test's JSON (go doc test2json).
type event struct {
	Action  string
	Package string
	Test    string
	Output  string
}

type test struct{ pkg, name string }

func (t test) String() string { return strings.TrimSpace(t.pkg + " " + t.name) }

type report struct {
	result map[test]string
	output map[test][]string
	order  []test
}

func newReport() *report {
	return &report{result: make(map[test]string), output: make(map[test][]string)}
}

func (r *report) readFile(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	return r.read(f)
}

func (r *report) read(in io.Reader) error {
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			var e event
			if err := json.Unmarshal(line, &e); err != nil {
				return fmt.Errorf("not the JSON of go test: %q: %w", line, err)
			}
			r.add(e)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (r *report) add(e event) {
	t := test{e.Package, e.Test}
	switch e.Action {
	case "output":
		r.output[t] = append(r.output[t], e.Output)
	case "pass", "fail", "skip":
		// A test may run in more than one run: what was worst counts, and a
		// test that ran at least once was not left out.
		before, seen := r.result[t]
		if !seen {
			r.order = append(r.order, t)
		}
		if !seen || e.Action == "fail" || (before == "skip" && e.Action == "pass") {
			r.result[t] = e.Action
		}
	}
}

// reason is what a skipped test said.
func (r *report) reason(t test) string {
	var said []string
	for _, line := range r.output[t] {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "===") || strings.HasPrefix(line, "---") {
			continue
		}
		// "file_test.go:12: the reason"
		if _, text, ok := strings.Cut(line, ".go:"); ok {
			if _, text, ok = strings.Cut(text, ": "); ok {
				line = text
			}
		}
		said = append(said, line)
	}
	if len(said) == 0 {
		return "it gave no reason"
	}
	return strings.Join(said, "; ")
}

// print ends the run and returns the exit code.
func (r *report) print(w io.Writer, ci bool) int {
	var passed, failed int
	var skipped, broken []test
	failedIn := make(map[string]bool)
	for _, t := range r.order {
		if t.name != "" && r.result[t] == "fail" {
			failedIn[t.pkg] = true
		}
	}
	for _, t := range r.order {
		switch {
		case t.name == "":
			// A package can fail with no test of it failing: it does not
			// compile, or its TestMain says so.
			if r.result[t] == "fail" && !failedIn[t.pkg] {
				broken = append(broken, t)
				failed++
			}
		case r.result[t] == "pass":
			passed++
		case r.result[t] == "fail":
			failed++
		default:
			skipped = append(skipped, t)
		}
	}
	for _, t := range broken {
		fmt.Fprintf(w, "The package %s failed outside of its tests.\n", t.pkg)
	}
	if len(skipped) > 0 {
		fmt.Fprintln(w, "\nNot tested here, and why:")
		slices.SortFunc(skipped, func(a, b test) int { return strings.Compare(a.String(), b.String()) })
		for _, t := range skipped {
			fmt.Fprintf(w, "  %s: %s\n", t, r.reason(t))
		}
		if ci {
			fmt.Fprintln(w, "In CI nothing may be left out: this run counts as failed.")
		}
	}
	if passed == 0 && failed == 0 {
		fmt.Fprintln(w, "No test ran.")
	}
	fmt.Fprintf(w, "\n%d passed, %d failed, %d skipped\n", passed, failed, len(skipped))
	if failed > 0 || passed == 0 || (ci && len(skipped) > 0) {
		return 1
	}
	return 0
}
