package main

import (
	"os"
	"runtime"
	"runtime/debug"
	"sync"
	"time"
)

// Memory is what a sidecar is asked about, and time it has plenty of. Each of
// these can be set otherwise by Go's own variables in the environment.
const (
	// gcPercent trades a little CPU for a heap that stays near what is live
	// (GOGC).
	gcPercent = 50
	// memoryLimit makes the collector work harder before the container's limit
	// of 32 MiB is near, of which the binary's own pages take a third
	// (GOMEMLIMIT).
	memoryLimit = 16 << 20
	// processors is one, since Go keeps memory for each: on a node of 64 cores
	// that is more than all the rest (GOMAXPROCS).
	processors = 1
	// releaseInterval is how often memory that is free is given back to the
	// node. Go collects every two minutes anyway.
	releaseInterval = 2 * time.Minute
)

// beFrugal makes the runtime so, until the function that it returns is called.
func beFrugal() (end func()) {
	var undo []func()
	if os.Getenv("GOGC") == "" {
		before := debug.SetGCPercent(gcPercent)
		undo = append(undo, func() { debug.SetGCPercent(before) })
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		before := debug.SetMemoryLimit(memoryLimit)
		undo = append(undo, func() { debug.SetMemoryLimit(before) })
	}
	if os.Getenv("GOMAXPROCS") == "" {
		before := runtime.GOMAXPROCS(processors)
		undo = append(undo, func() { runtime.GOMAXPROCS(before) })
	}
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		ticker := time.NewTicker(releaseInterval)
		defer ticker.Stop()
		for {
			select {
			case <-done:
				return
			case <-ticker.C:
				debug.FreeOSMemory()
			}
		}
	})
	return func() {
		close(done)
		wg.Wait()
		for _, u := range undo {
			u()
		}
	}
}
