// Package lab is a pod in a box: an identity provider (SPIFFE Workload API and
// Envoy SDS on one unix socket, with a CA of its own), an Envoy that takes its
// certificates from it, and a directory for credential files. Every fault that
// the watchdog judges can be injected while the pod runs.
//
// Nothing is simulated in between: the protocols are real gRPC over a real
// socket, and the Envoy is a real one wherever a binary is given, else the
// stand-in of package standin. The identity provider imitates tbot or SPIRE.
// Each of its behaviours rests on the source of the imitated program or on a
// measurement, which its comment names.
package lab
