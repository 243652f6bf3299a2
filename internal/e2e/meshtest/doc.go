// Package meshtest tests what deploy/ gives to a cluster on a real control
// plane: pods that the controllers make and istiod's webhook injects, and
// manifests that the API server takes. It holds tests only.
package meshtest
