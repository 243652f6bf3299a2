//go:build race

package metrics_test

// raced tells that the race detector is on, which allocates for itself.
const raced = true
