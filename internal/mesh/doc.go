// Package mesh is a real control plane for tests and for looking at: etcd, the
// Kubernetes API server with its controllers, and istiod with its injection
// webhook, all on loopback. There is no kubelet and no network of services: a
// Deployment gets its pods, the pods come back injected, and nothing runs in
// them. It is not shipped.
package mesh
