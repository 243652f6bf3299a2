package main

import (
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

// heavy are packages that must not be in the shipped binary, each with what it
// would cost there. Linters see only what a package imports itself; these come
// by way of others.
var heavy = map[string]string{
	"text/template":          "it calls methods by name, so that the linker must keep every method of everything: 5 MB",
	"html/template":          "it imports text/template",
	"golang.org/x/net/trace": "it imports html/template",
	"encoding/gob":           "it calls methods by name",
	"net/http/pprof":         "it imports text/template, and shows the process to whoever asks",
	"github.com/envoyproxy/go-control-plane/envoy/admin/v3": "it brings every type of listener, route and cluster: 3 MB",
	"github.com/prometheus/exporter-toolkit/web":            "package webconfig does its work for 5 MB less",
	"github.com/prometheus/common/config":                   "it imports golang.org/x/net/trace",
	"github.com/klauspost/compress/zstd":                    "a scrape of 14 KB is not worth half a megabyte of code",
	"google.golang.org/grpc/xds":                            "it is a control plane's",
	"svid-watchdog/internal/lab":                            "the lab is not shipped",
	"svid-watchdog/internal/podsim":                         "it is for tests",
	"github.com/santhosh-tekuri/jsonschema/v6":              "it is for tests",
}

func TestNothingHeavyIsLinked(t *testing.T) {
	build, err := os.ReadFile("../../tools/build")
	if err != nil {
		t.Fatal(err)
	}
	tags := regexp.MustCompile(`-tags (\S+)`).FindSubmatch(build)
	if tags == nil {
		t.Fatal("tools/build sets no tags any more, or this test cannot read them")
	}
	out, err := exec.Command("go", "list", "-deps", "-tags", string(tags[1]), ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	packages := strings.Fields(string(out))
	for _, p := range packages {
		if why, ok := heavy[p]; ok {
			t.Errorf("the shipped binary imports %s: %s", p, why)
		}
	}
	if len(packages) < 200 {
		t.Errorf("only %d packages: %s", len(packages), out)
	}
}
