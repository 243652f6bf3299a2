package chaos

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"svid-watchdog/internal/e2e/neighbour"
	"svid-watchdog/internal/e2e/sidecar"
	"svid-watchdog/internal/e2e/spire"
	"svid-watchdog/internal/e2e/wallclock"
	"svid-watchdog/internal/lab"
	"svid-watchdog/internal/rotation"
)

const workloadID = "spiffe://" + spire.TrustDomain + "/ns/shop/sa/front-end"

// home is an identity provider with an Envoy that it serves.
type home struct {
	name            string
	socket          string
	admin, listener string
	// pod is the lab's, nil for a real SPIRE.
	pod   *lab.Pod
	spire *spire.SPIRE
	envoy lab.Envoy
}

// rig is a watchdog, what it looks at, and who can be behind that.
type rig struct {
	t       *testing.T
	w       *sidecar.Sidecar
	clock   *wallclock.Clock // the watchdog's
	homes   []home
	at      home // where things are healed to
	dir     string
	issuer  *door
	admin   *door
	served  *door
	metrics string
	// paused holds the scrapes while the watchdog itself is stopped.
	paused chan chan struct{}
}

func newRig(t *testing.T) *rig {
	t.Helper()
	dir, err := os.MkdirTemp("", "svid-chaos-") // short: a socket's path is
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = unix.Unmount(filepath.Join(dir, "credentials"), unix.MNT_DETACH) // a test that failed may have left it
		os.RemoveAll(dir)
	})
	r := &rig{t: t, dir: dir, paused: make(chan chan struct{})}
	for _, kind := range []struct {
		issuer  lab.Issuer
		version string
	}{{lab.Tbot, "1.36.4"}, {lab.SPIRE, "1.40.0"}} {
		pod, err := lab.Start(t.Context(), lab.Config{
			Issuer: kind.issuer, TTL: ttl, Renewal: renewal, Reconnect: 3 * time.Second,
			EnvoyPath: neighbour.Need(t, "envoy", kind.version, "envoy"),
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { pod.Close() })
		r.homes = append(r.homes, home{
			name: fmt.Sprintf("the lab's %s with Envoy %s", kind.issuer, kind.version), socket: pod.SocketPath(),
			admin: strings.TrimPrefix(pod.Envoy().AdminAddress(), "http://"), listener: pod.Envoy().ListenerAddress(), pod: pod, envoy: pod.Envoy(),
		})
	}
	s := spire.Start(t, spire.Workload{ID: workloadID, User: os.Getuid(), TTL: 2*renewal + 10*time.Second})
	e, err := lab.NewRealEnvoy(lab.RealEnvoyConfig{Path: neighbour.Need(t, "envoy", "1.38.3", "envoy"), SDSSocket: s.Socket(), Dir: t.TempDir(), Reconnect: 3 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	if err := e.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.homes = append(r.homes, home{
		name: "a real SPIRE with Envoy 1.38.3", socket: s.Socket(),
		admin: strings.TrimPrefix(e.AdminAddress(), "http://"), listener: e.ListenerAddress(), spire: s, envoy: e,
	})

	r.at = r.homes[0]
	r.admin, r.served = newDoor(t, "127.0.0.1:0", r.at.admin), newDoor(t, "127.0.0.1:0", r.at.listener)
	r.issuer = newDoor(t, filepath.Join(dir, "issuer"), r.at.socket)
	if err := os.Mkdir(r.credentials(), 0o755); err != nil { //nolint:gosec // as in a pod
		t.Fatal(err)
	}
	r.linkSocket()
	neighbour.Installed(t, "nsenter", "util-linux")
	r.clock = wallclock.New(t)
	// In a user namespace of its own, whose limits of inotify can be lowered.
	same := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1 << 16}}
	r.w = sidecar.StartWith(t, neighbour.How{
		Attr:  &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: same, GidMappings: same},
		Begin: r.clock.Begin,
	}, "--workload-api.address=unix://"+r.socket(), "--envoy.admin-address=http://"+r.admin.address(),
		"--handshake.address="+r.served.address(), "--credentials.dir="+r.credentials(),
		"--envoy.poll-interval="+poll.String(), "--rotation.grace="+grace.String(), "--envoy.budget=50", "--web.runtime-metrics")
	r.metrics = "http://" + r.w.Address + "/metrics"
	return r
}

func (r *rig) socket() string      { return filepath.Join(r.dir, "socket") }
func (r *rig) credentials() string { return filepath.Join(r.dir, "credentials") }

// linkSocket puts the socket where the watchdog looks for it.
func (r *rig) linkSocket() {
	fresh := r.socket() + ".new"
	_ = os.Remove(fresh) // it may not be there
	r.must(os.Symlink(r.issuer.address(), fresh))
	r.must(os.Rename(fresh, r.socket()))
}

// home lets all doors lead to one home, at random another than before.
func (r *rig) home(dice *rand.Rand) {
	// An agent that was stopped for long ends by itself, as its own SVID has
	// expired.
	select {
	case <-r.homes[2].spire.Agent.Exited:
		r.homes[2].spire.StartAgent()
	default:
	}
	r.at = r.homes[dice.IntN(len(r.homes))]
	r.linkSocket()
	r.issuer.lead(r.at.socket, passing)
	r.admin.lead(r.at.admin, passing)
	r.served.lead(r.at.listener, passing)
}

// healed waits until the truth is told, and returns how long that took: the
// watchdog calls the pod healthy, and names the certificate that the Envoy
// which is there now says that it holds.
func (r *rig) healed(what string) time.Duration {
	r.t.Helper()
	begin := time.Now()
	r.w.Until(2*grace, "health after "+what, func(v rotation.Verdict) bool {
		loaded := v.Stage(rotation.Loaded).Certificate
		return v.State == rotation.Healthy && loaded != nil && v.Envoy.Version == r.at.envoy.Version() &&
			strings.Contains(sidecar.Get(r.t, r.at.admin, "/certs", r.w), `"`+loaded.Serial+`"`)
	})
	return time.Since(begin)
}

// signal sends a neighbour a signal, unless it has ended.
func (r *rig) signal(p *os.Process, s os.Signal) {
	r.t.Helper()
	if err := p.Signal(s); !errors.Is(err, os.ErrProcessDone) {
		r.must(err)
	}
}

func (r *rig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// let waits, and fails at once if the watchdog ends.
func (r *rig) let(length time.Duration) {
	r.t.Helper()
	timer := time.NewTimer(length)
	defer timer.Stop()
	select {
	case <-r.w.Exited:
		r.t.Fatalf("the watchdog ended\n%s", r.w)
	case <-timer.C:
	}
}
