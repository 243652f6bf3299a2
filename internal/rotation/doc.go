// Package rotation owns the vocabulary of certificate rotation and the
// judgement about it: evidence and a time go in, a verdict comes out.
//
// A certificate passes four stages: the identity provider issues it, Envoy is
// delivered it as an SDS secret, Envoy's TLS contexts load it, and a peer is
// served it in a handshake. Rotation is healthy when a new certificate moves
// through all observable stages in time, again and again. The first stage that
// did not move names the culprit.
//
// The package is pure. It does no I/O, starts no goroutine and has no clock of
// its own: every piece of evidence carries the time at which it was seen, and
// [Ledger.Judge] is told the time. Times that come from time.Now carry both
// clocks of Go; differences of two observations are then monotonic (intervals,
// grace), while a comparison with a certificate's not-after uses the wall
// clock. Both are what is wanted.
package rotation
