// Package wallclock sets the wall clock of running programs, while their
// monotonic clock goes on, and that of the machine is left alone.
//
// A time namespace has no wall clock of its own, so that the programs are
// changed instead: on Linux they do not ask the kernel for the time but a few
// functions that the kernel has put into their memory, the vDSO (vdso(7)). Of
// these, the ones that tell the wall clock are overwritten by others that ask
// the kernel and add a number, which may be changed at any time by a write to
// the program's memory. Nothing is between the program and the kernel then: no
// tracer, no supervisor that could hang.
//
// What asks the kernel by itself is not deceived, nor are waits until a time of
// the wall clock; Go's runtime does neither.
package wallclock
