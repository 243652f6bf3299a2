// Package grafana runs every query of the dashboards on a real Prometheus that
// scrapes real watchdogs beside real Envoys. It holds tests only.
package grafana
