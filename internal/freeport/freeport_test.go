package freeport

import (
	"net"
	"testing"
)

// TestAddress: more ports than a block holds are each free, given once, and
// none that the kernel gives to a connection.
func TestAddress(t *testing.T) {
	seen := make(map[string]bool)
	for range blockSize + blockSize/2 {
		address, err := Address()
		if err != nil {
			t.Fatal(err)
		}
		if seen[address] {
			t.Fatalf("%s was given twice", address)
		}
		seen[address] = true
		l, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		if port := l.Addr().(*net.TCPAddr).Port; port <= lowestPort || port >= lowestPort+blocks*blockSize {
			t.Errorf("%s is given, which a connection may take", address)
		}
		l.Close()
	}
}

// TestInUse: a port that somebody else listens on is passed over.
func TestInUse(t *testing.T) {
	for {
		port, err := Next()
		if err != nil {
			t.Fatal(err)
		}
		if (port+1)%blockSize == 0 {
			continue // the next block starts anywhere
		}
		taken, err := net.Listen("tcp", loopback(port+1))
		if err != nil {
			continue // somebody else has it
		}
		defer taken.Close()
		if next, err := Next(); err != nil || next == port+1 {
			t.Errorf("%d, %v", next, err)
		}
		return
	}
}
