// Package e2e tests the watchdog as it is shipped, a binary beside real
// neighbours: a SPIRE server and agent, Envoys, promtool. `make neighbours`
// gets them. It holds tests only.
package e2e
