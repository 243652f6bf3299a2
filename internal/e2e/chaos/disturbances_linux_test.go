package chaos

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"svid-watchdog/internal/e2e/neighbour"
	"svid-watchdog/internal/lab"
)

// disturbance is a way to trouble the watchdog; begin returns how it ends.
type disturbance struct {
	name string
	// of is what two disturbances cannot be made of at once, each undoing what
	// the other has done.
	of    string
	begin func(r *rig, dice *rand.Rand) (what string, end func())
}

// The limits of inotify in the watchdog's user namespace while nothing is done
// to them.
const inotifyInstances, inotifyWatches = 128, 1024

// limitInotify sets how much of inotify the watchdog's user namespace may have.
// It takes a process of that namespace to do so.
func (r *rig) limitInotify(instances, watches int) {
	r.t.Helper()
	out, err := exec.CommandContext(r.t.Context(), "nsenter", "--target", fmt.Sprint(r.w.Cmd.Process.Pid), "--user", "--preserve-credentials", //nolint:gosec // our own
		"sh", "-c", fmt.Sprintf("echo %d >/proc/sys/user/max_inotify_instances && echo %d >/proc/sys/user/max_inotify_watches", instances, watches)).CombinedOutput()
	if err != nil {
		r.t.Fatalf("set the limits of inotify: %v\n%s", err, out)
	}
}

// deck is drawn from until it is empty, so that each disturbance comes up.
type deck struct {
	dice  *rand.Rand
	cards []disturbance
}

// draw takes one to three disturbances that can be at once.
func (d *deck) draw() []disturbance {
	if len(d.cards) == 0 {
		d.cards = disturbances()
		d.dice.Shuffle(len(d.cards), func(i, j int) { d.cards[i], d.cards[j] = d.cards[j], d.cards[i] })
	}
	var drawn, left []disturbance
	n := 1 + d.dice.IntN(3)
	for _, card := range d.cards {
		clashes := slices.ContainsFunc(drawn, func(other disturbance) bool { return other.of != "" && other.of == card.of })
		if clashes || len(drawn) == n {
			left = append(left, card)
		} else {
			drawn = append(drawn, card)
		}
	}
	d.cards = left
	return drawn
}

func disturbances() []disturbance {
	return []disturbance{
		{"a fault of the lab", "Envoy", func(r *rig, dice *rand.Rand) (string, func()) {
			var faults []lab.Fault
			for _, f := range lab.Faults() {
				if !f.StandInOnly && !f.TwoProviders {
					faults = append(faults, f)
				}
			}
			f, h := faults[dice.IntN(len(faults))], r.homes[dice.IntN(2)]
			r.must(h.pod.Inject(r.t.Context(), f.Name))
			return f.Name + " at " + h.name, func() { r.must(h.pod.Heal(r.t.Context(), f.Name)) }
		}},
		{"another issuer at the socket", "issuer", func(r *rig, dice *rand.Rand) (string, func()) {
			h := r.homes[dice.IntN(len(r.homes))]
			r.issuer.lead(h.socket, passing)
			return "the socket leads to " + h.name, func() {}
		}},
		{"something else at the socket", "", func(r *rig, dice *rand.Rand) (string, func()) {
			r.must(os.Remove(r.socket()))
			switch dice.IntN(3) {
			case 0:
				return "the socket is gone", func() {}
			case 1:
				r.must(os.WriteFile(r.socket(), []byte("no socket"), 0o600))
				return "a file is where the socket was", func() {}
			default:
				r.must(os.Mkdir(r.socket(), 0o700))
				return "a directory is where the socket was", func() { r.must(os.Remove(r.socket())) }
			}
		}},
		{"another Envoy", "", func(r *rig, dice *rand.Rand) (string, func()) {
			h := r.homes[dice.IntN(len(r.homes))]
			r.admin.lead(h.admin, passing)
			r.served.lead(h.listener, passing)
			return "Envoy is exchanged for that of " + h.name, func() {}
		}},
		{"a bad socket", "issuer", func(r *rig, dice *rand.Rand) (string, func()) {
			m := 1 + manner(dice.IntN(int(manners)-1))
			r.issuer.lead(r.at.socket, m)
			return "the socket " + mannerNames[m], func() {}
		}},
		{"a bad admin port", "", func(r *rig, dice *rand.Rand) (string, func()) {
			m := 1 + manner(dice.IntN(int(manners)-1))
			r.admin.lead(r.at.admin, m)
			return "the admin port " + mannerNames[m], func() {}
		}},
		{"a bad listener", "", func(r *rig, dice *rand.Rand) (string, func()) {
			m := 1 + manner(dice.IntN(int(manners)-1))
			r.served.lead(r.at.listener, m)
			return "the listener " + mannerNames[m], func() {}
		}},
		{"a restart of Envoy", "Envoy", func(r *rig, dice *rand.Rand) (string, func()) {
			h := r.homes[dice.IntN(len(r.homes))]
			if h.pod != nil {
				r.must(h.pod.Inject(r.t.Context(), "envoy-down"))
				return "Envoy of " + h.name + " ends", func() { r.must(h.pod.Heal(r.t.Context(), "envoy-down")) }
			}
			r.must(h.envoy.Close())
			return "Envoy of " + h.name + " ends", func() { r.must(h.envoy.Start(r.t.Context())) }
		}},
		{"a stopped Envoy", "Envoy", func(r *rig, dice *rand.Rand) (string, func()) {
			h := r.homes[dice.IntN(len(r.homes))]
			if h.pod != nil {
				r.must(h.pod.Inject(r.t.Context(), "envoy-hung"))
				return "Envoy of " + h.name + " is stopped", func() { r.must(h.pod.Heal(r.t.Context(), "envoy-hung")) }
			}
			r.must(h.envoy.Hang())
			return "Envoy of " + h.name + " is stopped", func() { r.must(h.envoy.Resume()) }
		}},
		{"a stopped SPIRE agent", "agent", func(r *rig, _ *rand.Rand) (string, func()) {
			agent := r.homes[2].spire.Agent.Cmd.Process
			r.signal(agent, syscall.SIGSTOP)
			return "the SPIRE agent is stopped", func() { r.signal(agent, syscall.SIGCONT) }
		}},
		{"a killed SPIRE agent", "agent", func(r *rig, _ *rand.Rand) (string, func()) {
			r.homes[2].spire.Agent.Kill()
			return "the SPIRE agent is killed", func() {}
		}},
		{"the credentials directory", "directory", func(r *rig, dice *rand.Rand) (string, func()) {
			again := func() {
				r.must(os.RemoveAll(r.credentials()))
				r.must(os.Mkdir(r.credentials(), 0o755)) //nolint:gosec // as in a pod
			}
			switch dice.IntN(4) {
			case 0:
				r.must(os.RemoveAll(r.credentials()))
				return "the credentials directory is gone", again
			case 2:
				if err := unix.Mount("tmpfs", r.credentials(), "tmpfs", 0, "size=4096,mode=755"); err != nil {
					neighbour.Lacking(r.t, "no right to mount: "+err.Error())
				}
				if err := os.WriteFile(filepath.Join(r.credentials(), "cert-chain.pem"), make([]byte, 64<<10), 0o600); err == nil {
					r.t.Error("the disk is not full")
				}
				return "the disk of the credentials directory is full", func() { r.must(unix.Unmount(r.credentials(), unix.MNT_DETACH)) }
			case 1:
				r.must(os.RemoveAll(r.credentials()))
				r.must(os.WriteFile(r.credentials(), nil, 0o600))
				return "a file is where the credentials directory was", again
			default:
				for i := range 500 {
					r.must(os.WriteFile(filepath.Join(r.credentials(), fmt.Sprint(i)), []byte("x"), 0o600))
				}
				r.must(os.WriteFile(filepath.Join(r.credentials(), "cert-chain.pem"), make([]byte, 3<<20), 0o600))
				return "the credentials directory fills with junk", again
			}
		}},
		{"no file descriptors", "", func(r *rig, _ *rand.Rand) (string, func()) {
			var old unix.Rlimit
			r.must(unix.Prlimit(r.w.Cmd.Process.Pid, unix.RLIMIT_NOFILE, nil, &old))
			r.must(unix.Prlimit(r.w.Cmd.Process.Pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: old.Max}, nil))
			return "the watchdog may open no file", func() {
				r.must(unix.Prlimit(r.w.Cmd.Process.Pid, unix.RLIMIT_NOFILE, &old, nil))
			}
		}},
		{"no inotify", "directory", func(r *rig, dice *rand.Rand) (string, func()) {
			// An inotify that is there already goes on, and so do its watches: what
			// it lacks it lacks for a directory that is made anew.
			r.limitInotify(dice.IntN(2), 0)
			r.must(os.RemoveAll(r.credentials()))
			r.must(os.Mkdir(r.credentials(), 0o755)) //nolint:gosec // as in a pod
			return "the watches of inotify are used up", func() { r.limitInotify(inotifyInstances, inotifyWatches) }
		}},
		{"another time", "", func(r *rig, dice *rand.Rand) (string, func()) {
			ahead := time.Duration(dice.Int64N(int64(2*time.Hour))) - time.Hour
			r.clock.Set(ahead)
			return "the clock is set by " + ahead.Round(time.Second).String(), func() { r.clock.Set(0) }
		}},
		{"a suspended watchdog", "", func(r *rig, dice *rand.Rand) (string, func()) {
			resume := make(chan struct{})
			r.paused <- resume
			r.must(r.w.Cmd.Process.Signal(syscall.SIGSTOP))
			r.let(time.Duration(dice.Int64N(int64(short))))
			r.must(r.w.Cmd.Process.Signal(syscall.SIGCONT))
			close(resume)
			return "the watchdog was suspended", func() {}
		}},
	}
}
