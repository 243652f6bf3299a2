package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
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

// TestTheImageIsNamedOnce fails when a file below deploy/ names the watchdog's
// image, other than the template and what is written out of it.
func TestTheImageIsNamedOnce(t *testing.T) {
	image := regexp.MustCompile(`[a-z0-9.]+/svid-watchdog:[a-z0-9]`)
	deploy := filepath.Join("..", "..", "deploy")
	var named []string
	if err := filepath.WalkDir(deploy, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for range image.FindAll(text, -1) {
			name, err := filepath.Rel(deploy, path)
			if err != nil {
				return err
			}
			named = append(named, name)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if want := []string{"istio/istio-config.yaml", "istio/teleport-sidecar.tpl", "istio/values.yaml"}; !slices.Equal(named, want) {
		t.Errorf("the image is named in %v, want %v", named, want)
	}
}
