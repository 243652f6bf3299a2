//go:build !race

package metrics_test

const raced = false
