// Package child starts the programs that the lab and the tests run, so that
// none of them outlives us.
package child
