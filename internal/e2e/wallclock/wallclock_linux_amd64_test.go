package wallclock_test

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"svid-watchdog/internal/child"
	"svid-watchdog/internal/e2e/neighbour"
	"svid-watchdog/internal/e2e/sidecar"
	"svid-watchdog/internal/e2e/wallclock"
)

// teller makes this program tell the time instead of testing.
const teller = "WALLCLOCK_TEST_TELLER"

func TestMain(m *testing.M) {
	if os.Getenv(teller) != "" {
		begin := time.Now()
		for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
			now := time.Now()
			fmt.Println(now.UnixNano(), now.Sub(begin).Nanoseconds())
		}
		return
	}
	os.Exit(sidecar.Main(m))
}

// program tells the time when it is asked.
type program struct {
	t      *testing.T
	cmd    *exec.Cmd
	in     io.Writer
	out    *bufio.Reader
	exited <-chan struct{}
}

func start(t *testing.T, clock *wallclock.Clock, cmd *exec.Cmd) *program {
	t.Helper()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p := &program{t: t, cmd: cmd, in: in, out: bufio.NewReader(out)}
	if p.exited, err = child.StartHeld(cmd, clock.Begin); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	return p
}

func (p *program) kill() {
	_ = p.cmd.Process.Kill() // it may have ended
	<-p.exited
}

// ask returns what the program tells, and when it can have looked.
func (p *program) ask() (told []int64, earliest, latest time.Time) {
	p.t.Helper()
	earliest = time.Now()
	if _, err := io.WriteString(p.in, "\n"); err != nil {
		p.t.Fatal(err)
	}
	line, err := p.out.ReadString('\n')
	if err != nil {
		p.t.Fatal(err)
	}
	latest = time.Now()
	for field := range strings.FieldsSeq(line) {
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			p.t.Fatal(err)
		}
		told = append(told, n)
	}
	return told, earliest, latest
}

var steps = []time.Duration{0, 2 * time.Hour, -2 * time.Hour, time.Second, 10 * 365 * 24 * time.Hour, 0}

// TestGo: in a Go program the wall clock goes by exactly what it is set to, and
// the monotonic clock by nothing.
func TestGo(t *testing.T) {
	t.Parallel()
	clock := wallclock.New(t)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), teller+"=1")
	p := start(t, clock, cmd)
	first, firstEarliest, firstLatest := p.ask()
	for _, ahead := range steps {
		clock.Set(ahead)
		told, earliest, latest := p.ask()
		if wall := time.Unix(0, told[0]); wall.Before(earliest.Add(ahead)) || wall.After(latest.Add(ahead)) {
			t.Errorf("set %s ahead: told %s between %s and %s", ahead, wall, earliest, latest)
		}
		passed := time.Duration(told[1] - first[1])
		if passed < earliest.Sub(firstLatest) || passed > latest.Sub(firstEarliest) {
			t.Errorf("set %s ahead: the monotonic clock went on by %s, and it was between %s and %s",
				ahead, passed, earliest.Sub(firstLatest), latest.Sub(firstEarliest))
		}
	}
}

// TestC: the same in a program of C's library, by time and by gettimeofday.
func TestC(t *testing.T) {
	t.Parallel()
	clock := wallclock.New(t)
	clock.Set(time.Hour) // a program that starts finds it set
	p := start(t, clock, exec.Command(neighbour.Installed(t, "bash", "bash"), "-c",
		`while read -r; do s=$EPOCHSECONDS us=$EPOCHREALTIME; echo "$s ${us//[.,]/}"; done`))
	for i, ahead := range append([]time.Duration{time.Hour}, steps...) {
		if i > 0 {
			clock.Set(ahead)
		}
		told, earliest, latest := p.ask()
		// time tells the last tick's second, which may be the one before.
		if s := time.Unix(told[0], 0); s.Before(earliest.Add(ahead).Truncate(time.Second).Add(-time.Second)) || s.After(latest.Add(ahead)) {
			t.Errorf("set %s ahead: time told %s between %s and %s", ahead, s, earliest, latest)
		}
		if us := time.UnixMicro(told[1]); us.Before(earliest.Add(ahead).Truncate(time.Microsecond)) || us.After(latest.Add(ahead)) {
			t.Errorf("set %s ahead: gettimeofday told %s between %s and %s", ahead, us, earliest, latest)
		}
	}
}

// TestTroubled: programs that are stopped or have ended are no hindrance, and a
// program that was stopped finds the clock set.
func TestTroubled(t *testing.T) {
	t.Parallel()
	clock := wallclock.New(t)
	var programs []*program
	for range 2 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), teller+"=1")
		p := start(t, clock, cmd)
		p.ask()
		programs = append(programs, p)
	}
	stopped, ended := programs[0], programs[1]
	if err := stopped.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	ended.kill()
	clock.Set(time.Hour)
	if err := stopped.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	told, earliest, latest := stopped.ask()
	if wall := time.Unix(0, told[0]); wall.Before(earliest.Add(time.Hour)) || wall.After(latest.Add(time.Hour)) {
		t.Errorf("told %s between %s and %s, an hour ahead", wall, earliest, latest)
	}
}
