// Package alerts tests what deploy/prometheus ships: the rules by promtool, each
// alert having its unit tests and its runbook; the configurations by amtool and
// by Prometheus; and all of it at work, from the certificate that is not renewed
// to the notification that arrives. It holds tests only.
package alerts
