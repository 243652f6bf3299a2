// Package prom runs Debian's Prometheus and Alertmanager in tests, on loopback,
// with the rules and the configuration that are shipped.
//
// In the lab an hour passes in a minute. So that the shipped rules can be seen at
// work there, every duration in them is divided by one factor, and so are the
// intervals of scraping, evaluation and notification: nothing else is changed.
package prom
