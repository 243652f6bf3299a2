// Package image tests the container image as it is built and run: that nothing
// is in it but the binary, and that it needs no rights. It holds tests only.
package image
