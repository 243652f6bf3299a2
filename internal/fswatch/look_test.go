package fswatch

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"svid-watchdog/internal/rotation"
)

func TestLook(t *testing.T) {
	for name, test := range map[string]struct {
		make    func(t *testing.T, dir string)
		exists  bool
		present string
		err     string // a part of Err; Err must be empty if this is
		leafErr string
		serial  string
	}{
		"no directory": {
			make: func(t *testing.T, dir string) { remove(t, dir) },
		},
		"below a file": {
			make: func(t *testing.T, dir string) {
				remove(t, filepath.Dir(dir))
				write(t, nil, filepath.Dir(dir))
			},
		},
		"a file in its place": {
			make: func(t *testing.T, dir string) { remove(t, dir); write(t, nil, dir) },
			err:  "is not a directory.",
		},
		"empty": {
			make:   func(t *testing.T, dir string) {},
			exists: true,
		},
		"other files": {
			make:   func(t *testing.T, dir string) { write(t, nil, dir, "tls.crt"); write(t, nil, dir, "key.pem.tmp") },
			exists: true,
		},
		"the chain alone": {
			make:    func(t *testing.T, dir string) { write(t, chainPEM(t, 0xabc), dir, "cert-chain.pem") },
			exists:  true,
			present: "c",
			serial:  "abc",
		},
		"the key alone": {
			make:    func(t *testing.T, dir string) { write(t, nil, dir, "key.pem") },
			exists:  true,
			present: "k",
		},
		"all three": {
			make: func(t *testing.T, dir string) {
				write(t, chainPEM(t, 0xabc), dir, "cert-chain.pem")
				write(t, nil, dir, "key.pem")
				write(t, nil, dir, "root-cert.pem")
			},
			exists:  true,
			present: "ckr",
			serial:  "abc",
		},
		"directories count": {
			make: func(t *testing.T, dir string) {
				mkdir(t, dir, "cert-chain.pem")
				mkdir(t, dir, "key.pem")
				mkdir(t, dir, "root-cert.pem")
			},
			exists:  true,
			present: "ckr",
			leafErr: "not a regular file",
		},
		"symbolic links are followed": {
			make: func(t *testing.T, dir string) {
				write(t, chainPEM(t, 0xabc), dir, "elsewhere")
				symlink(t, "elsewhere", filepath.Join(dir, "cert-chain.pem"))
				symlink(t, "nowhere", filepath.Join(dir, "key.pem"))
				symlink(t, "root-cert.pem", filepath.Join(dir, "root-cert.pem"))
			},
			exists:  true,
			present: "c",
			serial:  "abc",
		},
		"no certificate": {
			make:    func(t *testing.T, dir string) { write(t, []byte("hello"), dir, "cert-chain.pem") },
			exists:  true,
			present: "c",
			leafErr: "no certificate",
		},
		"an empty chain": {
			make:    func(t *testing.T, dir string) { write(t, nil, dir, "cert-chain.pem") },
			exists:  true,
			present: "c",
			leafErr: "no certificate",
		},
		"a broken certificate": {
			make: func(t *testing.T, dir string) {
				write(t, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte{1, 2}}), dir, "cert-chain.pem")
			},
			exists:  true,
			present: "c",
			leafErr: "parse certificate",
		},
		"the largest chain": {
			make: func(t *testing.T, dir string) {
				chain := chainPEM(t, 0xabc)
				write(t, append(chain, bytes.Repeat([]byte("\n"), maxChainFile-len(chain))...), dir, "cert-chain.pem")
			},
			exists:  true,
			present: "c",
			serial:  "abc",
		},
		"too large a chain": {
			make: func(t *testing.T, dir string) {
				chain := chainPEM(t, 0xabc)
				write(t, append(chain, bytes.Repeat([]byte("\n"), maxChainFile-len(chain)+1)...), dir, "cert-chain.pem")
			},
			exists:  true,
			present: "c",
			leafErr: "1048577 bytes",
		},
		"a key in the chain's file": {
			make: func(t *testing.T, dir string) {
				key := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("secret")})
				write(t, append(key, chainPEM(t, 0xabc)...), dir, "cert-chain.pem")
			},
			exists:  true,
			present: "c",
			serial:  "abc",
		},
		"a FIFO": {
			make: func(t *testing.T, dir string) {
				if err := unix.Mkfifo(filepath.Join(dir, "cert-chain.pem"), 0o600); err != nil {
					t.Fatal(err)
				}
			},
			exists:  true,
			present: "c",
			leafErr: "not a regular file",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := mkdir(t, t.TempDir(), "parent", "creds")
			test.make(t, dir)
			now := time.Unix(1, 0)
			got := Look(dir, now)
			if !got.At.Equal(now) {
				t.Errorf("At = %v, want the time that was told", got.At)
			}
			if got.DirExists != test.exists {
				t.Errorf("DirExists = %v, want %v", got.DirExists, test.exists)
			}
			if p := present(got); p != test.present {
				t.Errorf("present = %q, want %q", p, test.present)
			}
			if len(got.Present) != 3 {
				t.Errorf("Present = %v, want an entry for each file", got.Present)
			}
			if s := serial(got); s != test.serial {
				t.Errorf("serial = %q, want %q", s, test.serial)
			}
			wantText(t, "Err", got.Err, test.err)
			wantText(t, "LeafErr", got.LeafErr, test.leafErr)
		})
	}
}

func wantText(t *testing.T, what, got, part string) {
	t.Helper()
	if part == "" && got != "" || !strings.Contains(got, part) {
		t.Errorf("%s = %q, want %q in it", what, got, part)
	}
	if got != "" && !strings.HasSuffix(got, ".") {
		t.Errorf("%s = %q is no sentence", what, got)
	}
}

// A FIFO may take the place of the file between the stat and the open.
func TestOpenDoesNotWaitForAWriter(t *testing.T) {
	dir := t.TempDir()
	write(t, nil, dir, "regular")
	info, err := os.Stat(filepath.Join(dir, "regular"))
	if err != nil {
		t.Fatal(err)
	}
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := readLeaf(fifo, info)
		done <- err
	}()
	select {
	case err := <-done:
		if err == nil || !strings.Contains(err.Error(), "regular file") {
			t.Errorf("error %v, want that it is not a regular file", err)
		}
	case <-time.After(10 * time.Second):
		// Let the goroutine go, or goleak reports it instead of this.
		w, err := os.OpenFile(fifo, os.O_RDWR, 0)
		if err == nil {
			defer w.Close()
		}
		t.Fatal("the open waits for a writer")
	}
}

func chmod(t *testing.T, path string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Chmod(path, 0o700) })
}

// FuzzLook feeds the file that others write.
func FuzzLook(f *testing.F) {
	f.Add([]byte(nil))
	f.Add([]byte("hello"))
	good := chainPEM(f, 0x1234)
	f.Add(good)
	f.Add(good[:len(good)/2])
	f.Add(append(bytes.Clone(good), good...))
	block, _ := pem.Decode(good)
	f.Add(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: append(bytes.Clone(block.Bytes), block.Bytes...)}))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		write(t, data, dir, "cert-chain.pem")
		got := Look(dir, time.Now())
		if !got.Present[rotation.CertChainFile] || got.Err != "" {
			t.Fatalf("the file is there: %+v", got)
		}
		if (got.Leaf == nil) == (got.LeafErr == "") {
			t.Fatalf("leaf %v and error %q: want exactly one", got.Leaf, got.LeafErr)
		}
		if got.Leaf != nil {
			if _, err := x509.ParseCertificate(got.Leaf.Chain[0]); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func BenchmarkLook(b *testing.B) {
	dir := b.TempDir()
	for _, name := range rotation.CredentialFileNames() {
		write(b, chainPEM(b, 1), dir, string(name))
	}
	for b.Loop() {
		Look(dir, time.Time{})
	}
}
