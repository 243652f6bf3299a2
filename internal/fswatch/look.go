package fswatch

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"svid-watchdog/internal/certificate"
	"svid-watchdog/internal/rotation"
)

// maxChainFile bounds what is read of cert-chain.pem, in bytes. A chain of
// three certificates takes some 5 KiB.
const maxChainFile = 1 << 20

// Look looks at the directory once. The present files are those for which
// os.Stat succeeds: Istio's agent asks the same question, so that a symbolic
// link is followed and a directory of that name counts
// (istio: pkg/security/security.go, CheckWorkloadCertificate).
//
// Of the files only cert-chain.pem is opened, to tell who wrote it; key.pem
// and root-cert.pem are never opened.
func Look(dir string, now time.Time) rotation.CredentialFiles {
	files := rotation.CredentialFiles{
		At:      now,
		Present: make(map[rotation.CredentialFile]bool, 3),
	}
	for _, name := range rotation.CredentialFileNames() {
		files.Present[name] = false
	}

	info, err := os.Stat(dir)
	switch {
	case absent(err):
		return files
	case err != nil:
		files.Err = fmt.Sprintf("The credentials directory cannot be looked at: %v.", err)
		return files
	case !info.IsDir():
		files.Err = fmt.Sprintf("The credentials directory cannot be looked at: %s is not a directory.", dir)
		return files
	}
	files.DirExists = true

	var chain fs.FileInfo
	for _, name := range rotation.CredentialFileNames() {
		info, err := os.Stat(filepath.Join(dir, string(name)))
		switch {
		case err == nil:
			files.Present[name] = true
			if name == rotation.CertChainFile {
				chain = info
			}
		case absent(err):
		case files.Err == "":
			files.Err = fmt.Sprintf("The credential files cannot be looked at: %v.", err)
		}
	}

	if chain != nil {
		leaf, err := readLeaf(filepath.Join(dir, string(rotation.CertChainFile)), chain)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			// It vanished since the stat, so it is not present after all.
			files.Present[rotation.CertChainFile] = false
		case err != nil:
			files.LeafErr = fmt.Sprintf("%s cannot be read: %v.", rotation.CertChainFile, err)
		default:
			files.Leaf = &leaf
		}
	}
	return files
}

// absent tells whether the error of a stat says that there is nothing of that
// name. A loop of symbolic links leads nowhere too.
func absent(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.ELOOP)
}

// readLeaf reads the leaf of a PEM file.
func readLeaf(path string, info fs.FileInfo) (rotation.Certificate, error) {
	// Opening a device can have effects, so what is no regular file is not
	// even opened. It may be replaced between the stat and the open: hence
	// O_NONBLOCK, by which the open of a FIFO does not wait for a writer, and
	// a second look at what was really opened.
	if !info.Mode().IsRegular() {
		return rotation.Certificate{}, errNotRegular
	}
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return rotation.Certificate{}, err
	}
	defer file.Close()
	if info, err = file.Stat(); err != nil {
		return rotation.Certificate{}, err
	}
	switch {
	case !info.Mode().IsRegular():
		return rotation.Certificate{}, errNotRegular
	case info.Size() > maxChainFile:
		return rotation.Certificate{}, fmt.Errorf("it has %d bytes, more than %d", info.Size(), maxChainFile)
	}

	data := make([]byte, info.Size())
	// Some tools write the private key into the same file. The certificates
	// are copies, so that the file's bytes can go at once.
	defer clear(data)
	// A file that grows meanwhile is read up to its former size; its growth
	// is an event, and so another look.
	n, err := io.ReadFull(file, data)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return rotation.Certificate{}, err
	}
	certs, err := certificate.FromPEM(data[:n])
	if err != nil {
		return rotation.Certificate{}, err
	}
	return certificate.Leaf(certs), nil
}

var errNotRegular = errors.New("it is not a regular file")
