package secrets

import (
	"encoding/pem"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"svid-watchdog/internal/e2e/neighbour"
	"svid-watchdog/internal/e2e/sidecar"
	"svid-watchdog/internal/lab"
	"svid-watchdog/internal/rotation"
)

// credentialFiles writes an SVID as the three files that Istio's agent looks
// for.
func credentialFiles(t *testing.T, dir string, s svid) {
	t.Helper()
	for name, block := range map[string]*pem.Block{
		"cert-chain.pem": {Type: "CERTIFICATE", Bytes: s.leaf.Raw},
		"root-cert.pem":  {Type: "CERTIFICATE", Bytes: s.leaf.Raw},
		"key.pem":        {Type: "PRIVATE KEY", Bytes: s.key},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// opening are the system calls by which the content of a file is got at.
var opening = regexp.MustCompile(`^\d+ +(open|openat|openat2|creat|open_by_handle_at|execve|execveat|uselib|swapon|acct)\(`)

// TestKeyFile: of the three credential files, the one with the private key is
// looked for and never opened, whatever becomes of it.
func TestKeyFile(t *testing.T) {
	strace := neighbour.Installed(t, "strace", "strace")
	dir := t.TempDir()
	credentials, trace := filepath.Join(dir, "credentials"), filepath.Join(dir, "trace")
	if err := os.Mkdir(credentials, 0o755); err != nil { //nolint:gosec // as in a pod
		t.Fatal(err)
	}
	keys := &minted{}
	mint(t, keys)
	credentialFiles(t, credentials, keys.all()[0])
	// With -D the watchdog is our child, and strace watches from aside.
	w := sidecar.StartUnder(t, []string{strace, "-D", "-f", "-o", trace, "-e", "trace=%file,open_by_handle_at", "-s", "4096"},
		"--credentials.dir="+credentials, "--workload-api.address=unix://"+filepath.Join(dir, "none"),
		"--envoy.admin-address=unix://"+filepath.Join(dir, "admin"))
	complete := func(v rotation.Verdict) bool { return v.Has(rotation.CredentialFilesComplete) && v.Files.Leaf != nil }
	w.Until(30*time.Second, "the files to be seen", complete)
	// It goes, and comes again with another content.
	if err := os.Remove(filepath.Join(credentials, "key.pem")); err != nil {
		t.Fatal(err)
	}
	w.Until(30*time.Second, "the file to be missed", func(v rotation.Verdict) bool { return v.Has(rotation.CredentialFilesPartial) })
	mint(t, keys)
	credentialFiles(t, credentials, keys.all()[1])
	w.Until(30*time.Second, "the files to be seen again", func(v rotation.Verdict) bool {
		return complete(v) && v.Files.Leaf.Serial == keys.all()[1].leaf.SerialNumber.Text(16)
	})
	if err := w.Cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	var text []byte
	neighbour.Until(t, 30*time.Second, "the end of the trace", func() bool {
		var err error
		text, err = os.ReadFile(trace)
		return err == nil && strings.Contains(string(text), "+++ exited with 0 +++")
	}, w)
	looked, chainOpened := 0, 0
	for line := range strings.Lines(string(text)) {
		opens := opening.MatchString(line)
		switch {
		case strings.Contains(line, "key.pem") && opens:
			t.Errorf("opened: %s", line)
		case strings.Contains(line, "key.pem"):
			looked++
		case strings.Contains(line, "cert-chain.pem") && opens:
			chainOpened++
		}
	}
	if looked == 0 || chainOpened == 0 {
		t.Errorf("key.pem was looked for %d times, cert-chain.pem opened %d times: the trace proves nothing\n%s", looked, chainOpened, text)
	}
}

// mint lets the lab's authority issue an SVID.
func mint(t *testing.T, keys *minted) {
	t.Helper()
	pod, err := lab.Start(t.Context(), lab.Config{Minted: keys.add})
	if err != nil {
		t.Fatal(err)
	}
	pod.Close()
}
