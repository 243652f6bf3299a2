package main

import (
	"runtime"
	"runtime/debug"

	"svid-watchdog/internal/metrics"
)

// version is set when a release is built: -ldflags "-X main.version=v1.2.3".
var version = "devel"

// build describes this binary.
func build() metrics.Build {
	b := metrics.Build{Version: version, Revision: "unknown", GoVersion: runtime.Version()}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			b.Revision = s.Value
		}
	}
	return b
}
