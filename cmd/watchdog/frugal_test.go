package main

import (
	"runtime"
	"runtime/debug"
	"testing"
)

// TestFrugal: the runtime is told to be frugal unless the environment says
// otherwise, and is as before at the end.
func TestFrugal(t *testing.T) {
	settings := func() [3]int64 {
		percent := debug.SetGCPercent(-1)
		debug.SetGCPercent(percent)
		return [3]int64{int64(percent), debug.SetMemoryLimit(-1), int64(runtime.GOMAXPROCS(0))}
	}
	for _, name := range []string{"GOGC", "GOMEMLIMIT", "GOMAXPROCS"} {
		t.Setenv(name, "")
	}
	before := settings()
	end := beFrugal()
	if got := settings(); got != [3]int64{gcPercent, memoryLimit, processors} {
		t.Errorf("GC percent, memory limit and processors are %v", got)
	}
	end()
	if got := settings(); got != before {
		t.Errorf("afterwards they are %v, before %v", got, before)
	}
	t.Setenv("GOGC", "77")
	t.Setenv("GOMEMLIMIT", "99MiB")
	t.Setenv("GOMAXPROCS", "3")
	end = beFrugal()
	defer end()
	if got := settings(); got != before {
		t.Errorf("with variables that Go has read at its start they became %v", got)
	}
}
