// Package svid listens to the SPIFFE Workload API, to know what the identity
// provider issues and why it does not when it does not.
//
// It holds one stream per process and never fetches: every call makes tbot
// issue an SVID and write an audit event. It has a loop of its own, because
// that of go-spiffe ends for good on Canceled and InvalidArgument, retries
// without jitter (all pods of a node in step), and cannot tell a missing
// socket from a silent server.
//
// The message carries the private key of the identity along. It is overwritten
// as soon as the message is decoded, before anything else is done with it, and
// never parsed. What gRPC itself keeps for a while in its receive buffers is
// beyond the reach of this package.
package svid
