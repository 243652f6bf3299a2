//go:build race

package lab_test

// underRace leaves out, with the race detector, the releases of Envoy but the
// newest: they differ in what they answer, not in what runs here.
const underRace = true
