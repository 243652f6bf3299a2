//go:build race

package rotation_test

// defaultPodDays is less with the race detector, under which they take ten
// times as long; the full number is played without it.
const defaultPodDays = 50
