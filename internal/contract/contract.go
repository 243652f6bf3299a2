// Package contract holds what users build upon to what was promised: the
// flags, the metrics, the JSON, the problems, the paths and the exit codes, as
// files in docs/contract. The tests of the packages that keep a promise write
// down what the code does now, and a difference fails them.
package contract

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write anew the files that the code is held to")

// Update tells whether the files are to be written anew.
func Update() bool { return *update }

// Hold compares what the code does with a file, and fails the test where they
// differ. The lines of the file are promises.
func Hold(t testing.TB, path, now string) {
	t.Helper()
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { //nolint:gosec // documents
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(now), 0o644); err != nil { //nolint:gosec // a document
			t.Fatal(err)
		}
	}
	promised, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v; write it with: go test . -run '^%s$' -update", err, t.Name())
	}
	if complaint := Compare(string(promised), now); complaint != "" {
		t.Errorf("%s: %s\nIf that is meant: go test . -run '^%s$' -update", path, complaint, t.Name())
	}
}

// Compare says what became of the promises, "" if nothing did.
func Compare(promised, now string) string {
	before, after := strings.Split(promised, "\n"), strings.Split(now, "\n")
	broken, added := missing(before, after), missing(after, before)
	switch {
	case promised == now:
		return ""
	case len(broken) > 0:
		return "this is a breaking change, which takes a major version: users build upon what is gone.\n" +
			list("- ", broken) + list("+ ", added)
	case len(added) > 0:
		return "this adds to the contract, which takes a minor version, and is kept from then on.\n" + list("+ ", added)
	}
	return "the lines are the same in another order"
}

// missing are the lines of a that b lacks, as often as it lacks them.
func missing(a, b []string) []string {
	left := make(map[string]int)
	for _, line := range b {
		left[line]++
	}
	var lines []string
	for _, line := range a {
		if left[line]--; left[line] < 0 {
			lines = append(lines, line)
		}
	}
	return lines
}

func list(mark string, lines []string) string {
	var b strings.Builder
	for _, line := range lines {
		b.WriteString(mark + line + "\n")
	}
	return b.String()
}

// Shape writes down which fields the JSON of a type has, one a line, by the
// path to each, with its type and whether it may be absent.
func Shape(document any) string {
	var lines []string
	shape(&lines, "", reflect.TypeOf(document), "")
	return strings.Join(lines, "\n") + "\n"
}

func shape(lines *[]string, path string, t reflect.Type, optional string) {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	add := func(kind string) { *lines = append(*lines, strings.TrimPrefix(path, ".")+" "+kind+optional) }
	switch {
	case t == reflect.TypeFor[time.Time]():
		add("time")
	case t.Kind() == reflect.Struct:
		if path != "" {
			add("object")
		}
		fields(lines, path, t)
	case t.Kind() == reflect.Slice:
		add("array")
		shape(lines, path+"[]", t.Elem(), "")
	case t.Kind() == reflect.Map:
		add("object")
		shape(lines, path+".*", t.Elem(), "")
	case t.Kind() == reflect.String:
		add("string")
	case t.Kind() == reflect.Bool:
		add("boolean")
	case slices.Contains([]reflect.Kind{reflect.Float32, reflect.Float64}, t.Kind()):
		add("number")
	case t.Kind() >= reflect.Int && t.Kind() <= reflect.Uint64:
		add("integer")
	default:
		panic(fmt.Sprintf("package contract cannot describe %s at %s", t, path))
	}
}

func fields(lines *[]string, path string, t reflect.Type) {
	for f := range t.Fields() {
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Anonymous && name == "":
			fields(lines, path, f.Type)
		case name == "-" || !f.IsExported():
		case name == "":
			panic(fmt.Sprintf("%s.%s has no name in JSON", t, f.Name))
		default:
			optional := ""
			if strings.Contains(options, "omit") {
				optional = ", may be absent"
			}
			shape(lines, path+"."+name, f.Type, optional)
		}
	}
}
