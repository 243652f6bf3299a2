// Package secrets tests that the watchdog keeps no private key: not in its
// memory, not in its logs, not in what it serves, and that it never opens the
// file that holds one. It holds tests only.
package secrets
