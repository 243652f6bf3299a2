package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const (
	passes = `{"Action":"pass","Package":"p","Test":"TestA"}
`
	skips = `{"Action":"output","Package":"p","Test":"TestB","Output":"=== RUN   TestB\n"}
{"Action":"output","Package":"p","Test":"TestB","Output":"    b_test.go:12: promtool is missing: apt-get install prometheus\n"}
{"Action":"output","Package":"p","Test":"TestB","Output":"--- SKIP: TestB (0.00s)\n"}
{"Action":"skip","Package":"p","Test":"TestB"}
{"Action":"pass","Package":"p"}
`
	fails = `{"Action":"fail","Package":"p","Test":"TestB"}
{"Action":"fail","Package":"p"}
`
	doesNotCompile = `{"ImportPath":"q","Action":"build-fail"}
{"Action":"fail","Package":"q","FailedBuild":"q"}
`
)

func TestReport(t *testing.T) {
	for _, tt := range []struct {
		name string
		runs []string
		ci   bool
		code int
		says []string
	}{
		{"all pass", []string{passes}, true, 0, []string{"1 passed, 0 failed, 0 skipped"}},
		{"a skip is named", []string{passes + skips}, false, 0, []string{
			"p TestB: promtool is missing: apt-get install prometheus", "1 passed, 0 failed, 1 skipped",
		}},
		{"in CI a skip is a failure", []string{passes + skips}, true, 1, []string{"counts as failed", "1 passed, 0 failed, 1 skipped"}},
		{"skipped once and run once is not left out", []string{skips, strings.ReplaceAll(passes, "TestA", "TestB")}, true, 0, []string{"1 passed, 0 failed, 0 skipped"}},
		{"a failure", []string{passes + fails}, false, 1, []string{"1 passed, 1 failed, 0 skipped"}},
		{"a failure of one run stays", []string{fails, strings.ReplaceAll(passes, "TestA", "TestB")}, false, 1, []string{"0 passed, 1 failed, 0 skipped"}},
		{"a package that does not compile", []string{passes + doesNotCompile}, false, 1, []string{"package q failed", "1 passed, 1 failed, 0 skipped"}},
		{"nothing ran", []string{""}, false, 1, []string{"No test ran"}},
		{"a package without tests", []string{passes + `{"Action":"skip","Package":"r"}`}, true, 0, []string{"1 passed, 0 failed, 0 skipped"}},
		{"not JSON", []string{"ok p 0.1s"}, false, 2, []string{"not the JSON"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var files []string
			for i, content := range tt.runs {
				file := filepath.Join(t.TempDir(), string(rune('a'+i)))
				if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
					t.Fatal(err)
				}
				files = append(files, file)
			}
			var out strings.Builder
			code := run(files, tt.ci, &out, &out)
			if code != tt.code {
				t.Errorf("exit code %d, want %d", code, tt.code)
			}
			for _, want := range tt.says {
				if !strings.Contains(out.String(), want) {
					t.Errorf("it does not say %q:\n%s", want, out.String())
				}
			}
			if code != 2 && !strings.HasSuffix(out.String(), " skipped\n") {
				t.Errorf("the last line is not the count:\n%s", out.String())
			}
		})
	}
}
