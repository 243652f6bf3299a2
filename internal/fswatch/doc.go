// Package fswatch looks at the directory of credential files, whose joint
// presence decides how Istio's agent gets its certificates when it next
// starts.
//
// A look is a handful of stat calls and is repeated on a timer; that re-scan
// is the truth. inotify only shortens the delay: any event, whatever its name
// or kind, means "look again". File watchers that believe their events miss
// the second symlink swap of a Kubernetes volume (istio/istio#33293,
// istio/istio#59912), filter away the one event that mattered
// (kubernetes/kubernetes#111947), or watch a directory that has long been
// deleted (kubernetes-sigs/controller-runtime#3020).
//
// Nothing that happens to the directory is an error of this package. A
// directory that is absent, unreadable or replaced, and an inotify that is
// used up, are evidence, and are reported as such.
package fswatch
