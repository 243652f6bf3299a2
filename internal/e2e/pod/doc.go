// Package pod runs the pod that istiod's webhook and the API server make of a
// Deployment, with containers, iptables rules and a network of its own, beside a
// real SPIRE agent and below a real istiod. It holds tests only, and in web the
// application.
package pod
