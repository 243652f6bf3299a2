// Package chaos lets everything happen to the shipped binary that can happen to
// its neighbours, at random and for as long as one likes: it must outlive all of
// it, go on answering, and tell the truth again when things have healed. It
// holds tests only.
package chaos
