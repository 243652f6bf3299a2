package e2e

import (
	"bytes"
	"encoding/json"
	"os/exec"
	"testing"
	"time"

	"svid-watchdog/internal/lab"
)

// measured runs a program and prints its exit code, how long it took in
// seconds, and its largest resident set in KiB. Python starts it, as a process
// begins its life with the memory of the one that starts it, and that of a Go
// test is larger than the watchdog's.
const measured = `
import json, resource, subprocess, sys, time
begin = time.monotonic()
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
took = time.monotonic() - begin
print(json.dumps({"Code": code, "Seconds": took, "KiB": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss}))
`

// TestCheckIsLight: the binary as it is shipped looks at a healthy pod with a
// real Envoy in less than a second and less than 20 MB.
func TestCheckIsLight(t *testing.T) {
	envoy := need(t, "envoy", "1.40.0", "envoy")
	pod, err := lab.Start(t.Context(), lab.Config{Issuer: lab.Tbot, TTL: time.Hour, EnvoyPath: envoy})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := pod.Close(); err != nil {
			t.Error(err)
		}
	})
	args := []string{
		"-c", measured, binary(t), "check", "--own-look", "--credentials.dir=" + pod.CredentialsDir(),
		"--workload-api.address=" + pod.SocketAddress(), "--envoy.admin-address=" + pod.Envoy().AdminAddress(),
		"--handshake.address=" + pod.Envoy().ListenerAddress(),
	}
	var seen struct {
		Code    int
		Seconds float64
		KiB     int
	}
	until(t, 20*time.Second, "a healthy pod", func() bool {
		var stderr bytes.Buffer
		command := exec.CommandContext(t.Context(), "python3", args...)
		command.Stderr = &stderr
		out, err := command.Output()
		if err != nil {
			t.Fatalf("%v: %s", err, stderr.String())
		}
		if err := json.Unmarshal(out, &seen); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return seen.Code == 0
	})
	t.Logf("%.0f ms, %d KiB", 1000*seen.Seconds, seen.KiB)
	if seen.Seconds > 1 || 1024*seen.KiB > 20_000_000 {
		t.Errorf("it took %.2f s and %d KiB", seen.Seconds, seen.KiB)
	}
}
