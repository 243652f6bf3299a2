//go:build !race

package rotation_test

const defaultPodDays = 1000
