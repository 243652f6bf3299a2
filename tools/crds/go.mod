// The definitions of PodMonitor and PrometheusRule: read, never built.
module tools/crds

go 1.26.4

require github.com/prometheus-operator/prometheus-operator v0.92.1
