package e2e

import (
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"svid-watchdog/internal/e2e/neighbour"
	"svid-watchdog/internal/e2e/podman"
	"svid-watchdog/internal/e2e/sidecar"
	"svid-watchdog/internal/lab"
	"svid-watchdog/internal/rotation"
)

// TestThirtyTwoMegabytes: with the memory that the manifests give it, enforced
// by the kernel, the watchdog outlives whatever is sent in the place of Envoy and of the Workload API.
func TestThirtyTwoMegabytes(t *testing.T) {
	c := podman.New(t)
	dir := t.TempDir()
	build := exec.Command("go", "build", "-o", filepath.Join(dir, "hostile"), "./hostile")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the hostile neighbours: %v\n%s", err, out)
	}
	watchdog, err := os.ReadFile(binary(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "watchdog"), watchdog, 0o755); err != nil { //nolint:gosec // a program
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM scratch\nCOPY hostile watchdog /\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c.Image("localhost/hostile", dir)
	start := func(name string, args ...string) {
		t.Helper()
		c.Must(append([]string{"run", "--detach", "--name", name}, args...)...)
		t.Cleanup(func() {
			if err := c.Remove("container", name); err != nil {
				t.Error(err)
			}
		})
	}
	sockets := filepath.Join(dir, "sockets")
	if err := os.Mkdir(sockets, 0o755); err != nil { //nolint:gosec // the watchdog is another user
		t.Fatal(err)
	}
	start("neighbours", "--network", "none", "--volume", sockets+":/sockets", "localhost/hostile", "/hostile", "127.0.0.1:15000", "/sockets/socket", "http://127.0.0.1:9816/metrics")
	start("watchdog", "--network", "container:neighbours", "--volume", sockets+":/sockets:ro", "--memory", "32m", "--memory-swap", "32m", "--read-only", "--cap-drop", "ALL", "--user", "65532",
		"localhost/hostile", "/watchdog", "run", "--workload-api.address=unix:///sockets/socket", "--envoy.poll-interval=100ms", "--envoy.budget=100", "--web.listen-address=127.0.0.1:9816")
	state := func() (s struct {
		Running, OOMKilled bool
		ExitCode           int
	}) {
		t.Helper()
		out, err := c.Run("inspect", "--format", "{{json .State}}", "watchdog")
		if err != nil || json.Unmarshal([]byte(out), &s) != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return s
	}
	logs := func(name string) string {
		out, err := c.Run("logs", name)
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return out
	}
	until(t, 8*time.Minute, "the watchdog to take every answer", func() bool {
		if s := state(); !s.Running {
			t.Fatalf("the watchdog ended: %+v\nneighbours: %s\n%s", s, logs("neighbours"), logs("watchdog"))
		}
		return strings.Contains(logs("neighbours"), "all survived")
	})
	t.Log(logs("neighbours"))
}

// TestOneStream: because of the watchdog the identity provider issues what one
// stream is issued, however much else happens.
func TestOneStream(t *testing.T) {
	const renewals = 8
	pod, err := lab.Start(t.Context(), lab.Config{Issuer: lab.Tbot, TTL: 30 * time.Second, Renewal: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pod.Close() })
	w := startWatchdog(t, "--workload-api.address="+pod.SocketAddress(), "--envoy.admin-address="+pod.Envoy().AdminAddress(),
		"--credentials.dir="+pod.CredentialsDir(), "--handshake.address="+pod.Envoy().ListenerAddress(), "--envoy.poll-interval=1s", "--envoy.budget=50")
	counts := func() (opened, sent int, streams map[int]bool) {
		events, _ := pod.Events()
		streams = make(map[int]bool)
		for _, e := range events {
			if e.Service != lab.WorkloadAPI {
				continue
			}
			streams[e.Stream] = true
			switch e.Kind {
			case lab.StreamOpened:
				opened++
			case lab.SVIDSent:
				sent++
			case lab.StreamClosed:
				t.Errorf("the stream was closed: %+v", e)
			}
		}
		return opened, sent, streams
	}
	until(t, 60*time.Second, "some renewals", func() bool {
		_, sent, _ := counts()
		for _, path := range []string{"/metrics", "/", "/api/v1/status", "/readyz"} {
			w.Get(path) // asking the watchdog asks nobody else
		}
		return sent > renewals
	}, w)
	v := w.Verdict()
	opened, sent, streams := counts()
	if opened != 1 || len(streams) != 1 {
		t.Errorf("%d streams were opened, %v", opened, streams)
	}
	seen := int(v.Stage(rotation.Issued).Rotations) + 1
	if seen > sent || seen < sent-1 {
		t.Errorf("%d SVIDs were sent and %d seen", sent, seen)
	}
}

// TestNearTheFloor: at rest and after 200 scrapes the watchdog takes hardly
// more memory than a program that links and starts the same libraries.
func TestNearTheFloor(t *testing.T) {
	floor := filepath.Join(t.TempDir(), "floor")
	if out, err := exec.Command("../../tools/build", floor, "./tools/bench/floor").CombinedOutput(); err != nil {
		t.Fatalf("build the floor: %v\n%s", err, out)
	}
	pod, err := lab.Start(t.Context(), lab.Config{Issuer: lab.Tbot, TTL: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pod.Close() })
	w := startWatchdog(t, "--workload-api.address="+pod.SocketAddress(), "--envoy.admin-address="+pod.Envoy().AdminAddress(), "--credentials.dir="+pod.CredentialsDir())
	w.Until(20*time.Second, "health", func(v rotation.Verdict) bool { return v.State == rotation.Healthy })

	address := neighbour.Address(t)
	f := neighbour.Start(t, floor, address, pod.SocketAddress(), pod.CredentialsDir())
	until(t, 10*time.Second, "the floor to listen", func() bool { return listening(address) }, f)
	for range 200 {
		w.Get("/metrics")
		sidecar.Get(t, address, "/metrics", f)
	}
	ours, theirs := memory(t, w.Cmd.Process.Pid), memory(t, f.Cmd.Process.Pid)
	t.Logf("the watchdog %+v, the floor %+v, in KiB", ours, theirs)
	if 4*ours.resident > 5*theirs.resident {
		t.Errorf("resident %d KiB, more than 1.25 times the floor's %d", ours.resident, theirs.resident)
	}
	if 4*ours.anonymous > 5*theirs.anonymous {
		t.Errorf("anonymous %d KiB, more than 1.25 times the floor's %d", ours.anonymous, theirs.anonymous)
	}
}

// footprint is the memory of a process, in KiB.
type footprint struct{ resident, anonymous int }

var memoryLine = regexp.MustCompile(`(VmRSS|RssAnon):\s+(\d+) kB`)

func memory(t *testing.T, pid int) (f footprint) {
	t.Helper()
	status, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range memoryLine.FindAllStringSubmatch(string(status), -1) {
		n, err := strconv.Atoi(m[2])
		if err != nil {
			t.Fatal(err)
		}
		if m[1] == "VmRSS" {
			f.resident = n
		} else {
			f.anonymous = n
		}
	}
	if f.resident == 0 || f.anonymous == 0 {
		t.Fatalf("no memory in %s", status)
	}
	return f
}

func listening(address string) bool {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}
