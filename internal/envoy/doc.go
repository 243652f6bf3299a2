// Package envoy reads from Envoy's admin interface what Envoy does with its
// SDS secrets, and translates it into evidence for package rotation.
//
// The admin interface runs on Envoy's main thread, the one that applies every
// configuration and SDS update, so each question is weighed: the filtered
// secrets dump and /server_info are asked at every poll, everything else by
// what it has been measured to cost (see budget.go). Only GET is used,
// redirects are not followed, every answer is bounded, and answers that grow
// with the number of clusters are decoded as a stream and never held.
//
// What the answers mean, and how two generations of Envoy differ in it, is
// judged in package rotation, not here.
package envoy
