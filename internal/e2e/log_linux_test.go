package e2e

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"svid-watchdog/internal/child"
	"svid-watchdog/internal/e2e/sidecar"
	"svid-watchdog/internal/lab"
)

// TestNobodyReadsTheLog: whoever reads the log hangs, and goes away in the end;
// the watchdog goes on watching, and answers.
func TestNobodyReadsTheLog(t *testing.T) {
	log, end, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { log.Close() }) // a second time, mostly
	if _, err := unix.FcntlInt(end.Fd(), unix.F_SETPIPE_SZ, 4096); err != nil {
		t.Fatal(err)
	}
	pod, err := lab.Start(t.Context(), lab.Config{Issuer: lab.Tbot, TTL: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pod.Close() })
	dir := t.TempDir()
	credentials := filepath.Join(dir, "credentials")
	cmd := exec.Command(binary(t), "run", "--web.listen-address=127.0.0.1:0", "--log.level=debug", "--credentials.dir="+credentials,
		"--workload-api.address="+pod.SocketAddress(), "--envoy.admin-address="+pod.Envoy().AdminAddress(), "--envoy.poll-interval=1s", "--envoy.budget=50")
	cmd.Stdout, cmd.Stderr = end, end
	exited, err := child.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	end.Close()
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		<-exited
	})
	first, err := bufio.NewReaderSize(log, 16).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	listens := regexp.MustCompile(`listen_address=(\S+)`).FindStringSubmatch(first)
	if listens == nil {
		t.Fatalf("the first line is %q", first)
	}
	cert := filepath.Join(credentials, "cert-chain.pem")
	told := func(series, value string) {
		t.Helper()
		until(t, 10*time.Second, series+" to be "+value, func() bool {
			select {
			case <-exited:
				t.Fatal("the watchdog ended: ", cmd.ProcessState)
			default:
			}
			return strings.Contains(sidecar.Get(t, listens[1], "/metrics", cmd), "\n"+series+" "+value+"\n")
		})
	}
	const file, admin = `svid_watchdog_credential_file_present{file="cert-chain.pem"}`, `svid_watchdog_source_up{source="envoy_admin"}`
	comesAndGoes := func() {
		t.Helper()
		if err := os.MkdirAll(credentials, 0o755); err != nil { //nolint:gosec // as in a pod
			t.Fatal(err)
		}
		if err := os.WriteFile(cert, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		told(file, "1")
		if err := os.RemoveAll(credentials); err != nil {
			t.Fatal(err)
		}
		told(file, "0")
	}
	for n := 0; n < 3500; {
		comesAndGoes()
		if n, err = unix.IoctlGetInt(int(log.Fd()), unix.TIOCINQ); err != nil {
			t.Fatal(err)
		}
	}
	// Nothing more fits into the pipe, and then there is none. Each part of the
	// watchdog has something to say.
	for range 2 {
		for range 2 {
			comesAndGoes()
			if err := pod.Inject(t.Context(), "envoy-down"); err != nil {
				t.Fatal(err)
			}
			told(admin, "0")
			if err := pod.Heal(t.Context(), "envoy-down"); err != nil {
				t.Fatal(err)
			}
			told(admin, "1")
		}
		log.Close()
	}
}
