// Package agent asks the real Istio agent, with a real Envoy and Istio's own
// bootstrap template, what it does when it starts, and compares that with what
// the watchdog foretold from the same directory and the same socket. It holds
// tests only.
package agent
