package secrets

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"svid-watchdog/internal/e2e/neighbour"
	"svid-watchdog/internal/e2e/sidecar"
	"svid-watchdog/internal/lab"
	"svid-watchdog/internal/rotation"
)

func TestMain(m *testing.M) { os.Exit(sidecar.Main(m)) }

// minted are the SVIDs of a pod, with their private keys.
type minted struct {
	mu    sync.Mutex
	svids []svid
}

type svid struct {
	leaf *x509.Certificate
	key  []byte // PKCS#8 in DER
}

func (m *minted) add(leaf *x509.Certificate, key []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.svids = append(m.svids, svid{leaf, key})
}

func (m *minted) all() []svid {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clip(m.svids)
}

// traces are the byte strings that betray a key: its number, in two halves,
// since a buffer may have been overwritten in part, and the forms in which keys
// are written as text.
func (s svid) traces(t *testing.T) map[string][]byte {
	t.Helper()
	parsed, err := x509.ParsePKCS8PrivateKey(s.key)
	if err != nil {
		t.Fatal(err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		t.Fatalf("the lab issues keys of type %T now", parsed)
	}
	number, err := key.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	text := base64.StdEncoding.EncodeToString(s.key)
	return map[string][]byte{
		"first half":  number[:16],
		"second half": number[16:],
		"hex":         []byte(hex.EncodeToString(number)),
		"HEX":         []byte(strings.ToUpper(hex.EncodeToString(number))),
		// The beginning is the same for all keys of this kind.
		"base64": []byte(text[64:96]),
	}
}

// memory reads all that a stopped process can read of itself, region by region.
func memory(t *testing.T, pid int, look func(region string, content []byte)) {
	t.Helper()
	maps, err := os.ReadFile(filepath.Join("/proc", fmt.Sprint(pid), "maps"))
	if err != nil {
		t.Fatal(err)
	}
	mem, err := os.Open(filepath.Join("/proc", fmt.Sprint(pid), "mem"))
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	lines := bufio.NewScanner(bytes.NewReader(maps))
	for lines.Scan() {
		var from, to uint64
		var rights string
		if _, err := fmt.Sscanf(lines.Text(), "%x-%x %s", &from, &to, &rights); err != nil {
			t.Fatalf("%q: %v", lines.Text(), err)
		}
		// The kernel's own pages hold nothing of the process.
		if rights[0] != 'r' || strings.Contains(lines.Text(), "[vvar") || strings.Contains(lines.Text(), "[vsyscall") {
			continue
		}
		content := make([]byte, to-from)
		if _, err := mem.ReadAt(content, int64(from)); err != nil {
			t.Fatalf("read %s: %v", lines.Text(), err)
		}
		look(lines.Text(), content)
	}
}

// rotations is how many renewals the process sees: those of twenty hours with
// tbot.
const rotations = 60

// TestMemory: after many rotations there is no private key anywhere in the
// process, not even the newest one, and none in what it tells.
func TestMemory(t *testing.T) {
	for _, issuer := range []lab.Issuer{lab.Tbot, lab.SPIRE} {
		t.Run(string(issuer), func(t *testing.T) {
			t.Parallel()
			keys := &minted{}
			pod, err := lab.Start(t.Context(), lab.Config{Issuer: issuer, TTL: 10 * time.Second, Renewal: 250 * time.Millisecond, Minted: keys.add})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { pod.Close() })
			// Somebody writes credential files too.
			credentialFiles(t, pod.CredentialsDir(), keys.all()[0])
			w := sidecar.Start(t, "--workload-api.address="+pod.SocketAddress(), "--envoy.admin-address="+pod.Envoy().AdminAddress(),
				"--credentials.dir="+pod.CredentialsDir(), "--handshake.address="+pod.Envoy().ListenerAddress(),
				"--envoy.poll-interval=100ms", "--envoy.budget=50", "--log.level=debug", "--web.runtime-metrics")
			issued := func(v rotation.Verdict) uint64 { return v.Stage(rotation.Issued).Rotations }
			var told strings.Builder
			for _, until := range []uint64{rotations / 2, rotations} {
				w.Until(2*time.Minute, "the rotations", func(v rotation.Verdict) bool { return issued(v) >= until })
				for _, path := range []string{"/", "/problems", "/api/v1/status", "/metrics"} {
					told.WriteString(w.Get(path))
				}
			}
			// No message is to be on its way when the process is stopped.
			if err := pod.Inject(t.Context(), "issuance-stalled"); err != nil {
				t.Fatal(err)
			}
			before := uint64(0)
			w.Until(time.Minute, "the last rotation", func(v rotation.Verdict) bool {
				settled := issued(v) == before
				before = issued(v)
				return settled
			})
			newest := w.Verdict().Stage(rotation.Issued).Certificate.Serial

			if err := w.Cmd.Process.Signal(syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			neighbour.Until(t, 10*time.Second, "the process to stop", func() bool {
				status, err := os.ReadFile(filepath.Join("/proc", fmt.Sprint(w.Cmd.Process.Pid), "status"))
				return err == nil && bytes.Contains(status, []byte("State:\tT"))
			})
			told.WriteString(w.Out.String())
			svids := keys.all()
			var traces []map[string][]byte
			for _, s := range svids {
				traces = append(traces, s.traces(t))
			}
			var image, kept int
			memory(t, w.Cmd.Process.Pid, func(region string, content []byte) {
				image += len(content)
				for i, s := range svids {
					for kind, trace := range traces[i] {
						if n := bytes.Count(content, trace); n > 0 {
							t.Errorf("the key of SVID %d of %d, its %s, lies %d times in %s", i+1, len(svids), kind, n, region)
						}
					}
					// What is kept shows that the search finds things.
					if s.leaf.SerialNumber.Text(16) == newest {
						kept += bytes.Count(content, s.leaf.RawTBSCertificate)
					}
				}
			})
			if kept == 0 {
				t.Error("the search does not even find the newest certificate, which is kept")
			}
			for i := range svids {
				for kind, trace := range traces[i] {
					if strings.Contains(told.String(), string(trace)) {
						t.Errorf("the key of SVID %d, its %s, was told", i+1, kind)
					}
				}
			}
			t.Logf("%d keys were looked for in %d KiB of memory and %d KiB of logs and pages", len(svids), image>>10, told.Len()>>10)
			if len(svids) < rotations {
				t.Errorf("only %d SVIDs", len(svids))
			}
		})
	}
}
