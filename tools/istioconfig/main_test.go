package main

import (
	"os"
	"path/filepath"
	"testing"
)

// TestTheFilesAreOfTheTemplates fails when a template was changed and the
// settings were not written again, or were changed by hand.
func TestTheFilesAreOfTheTemplates(t *testing.T) {
	dir := filepath.Join("..", "..", "deploy", "istio")
	files, err := render(dir)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range files {
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != want {
			t.Errorf("%s is not what the templates give: run `make deploy`", name)
		}
	}
}
