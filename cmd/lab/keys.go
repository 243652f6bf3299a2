package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"

	"golang.org/x/term"

	"svid-watchdog/internal/lab"
)

// The keys that are no fault's.
const (
	keyFaults    = 'f'
	keyHealAll   = 'h'
	keyHelp      = '?'
	keyQuit      = 'q'
	keyInterrupt = 3 // Ctrl-C, which a terminal in raw mode does not turn into a signal
	keyEscape    = 27
)

// faultKeys are given to the faults in their order.
const faultKeys = "123456789abcdegijklmnoprstuvwxyz"

// keyOf is the key of a fault, 0 for one that has none.
func keyOf(name string) byte {
	i := slices.IndexFunc(lab.Faults(), func(f lab.Fault) bool { return f.Name == name })
	if i < 0 || i >= len(faultKeys) {
		return 0
	}
	return faultKeys[i]
}

// faultOf is the fault of a key.
func faultOf(key byte) (lab.Fault, bool) {
	i := strings.IndexByte(faultKeys, key)
	if faults := lab.Faults(); i >= 0 && i < len(faults) {
		return faults[i], true
	}
	return lab.Fault{}, false
}

// keyboard is where keys come from. The zero value has none.
type keyboard struct {
	keys <-chan byte
	// restore gives the terminal back as it was.
	restore func()
}

// openKeyboard reads key by key from a terminal. The goroutine that reads ends
// with the process, as nothing else ends a read.
func openKeyboard(f *os.File) (keyboard, error) {
	was, err := term.MakeRaw(int(f.Fd()))
	if err != nil {
		return keyboard{}, fmt.Errorf("read keys: %w", err)
	}
	typed := make(chan byte)
	go func() {
		defer close(typed)
		buffer := make([]byte, 16)
		for {
			n, err := f.Read(buffer)
			if err != nil {
				return
			}
			if n > 1 && buffer[0] == keyEscape {
				continue // an arrow or the like
			}
			for _, key := range buffer[:n] {
				typed <- key
			}
		}
	}()
	return keyboard{typed, sync.OnceFunc(func() { _ = term.Restore(int(f.Fd()), was) })}, nil
}

// close gives the terminal back, if there is one.
func (k keyboard) close() {
	if k.restore != nil {
		k.restore()
	}
}

// panel is what is shown besides the pod.
type panel int

const (
	noPanel panel = iota
	faultPanel
	helpPanel
)

// desk turns keys into what is shown and done.
type desk struct {
	pod   faulty
	offer []lab.Fault
	panel panel
	// acted has what came of each key that injected or healed; said is the
	// last of it.
	acted chan string
	said  string
}

func newDesk(pod faulty, o *options) *desk {
	d := &desk{pod: pod, panel: noPanel, acted: make(chan string, 1)}
	for _, f := range lab.Faults() {
		cannot := f.StandInOnly && o.pod.EnvoyPath != "" || f.TbotOnly && o.pod.Issuer != lab.Tbot || f.TwoProviders
		if keyOf(f.Name) != 0 && !cannot {
			d.offer = append(d.offer, f)
		}
	}
	return d
}

// press takes a key, and tells whether it ends the run. Faults are injected
// and healed in ctx, beside what is shown.
func (d *desk) press(ctx context.Context, key byte) (quit bool) {
	toggle := func(p panel) {
		if d.panel == p {
			p = noPanel
		}
		d.panel = p
	}
	switch key {
	case keyQuit, keyInterrupt:
		return true
	case keyFaults:
		toggle(faultPanel)
	case keyHelp:
		toggle(helpPanel)
	case keyEscape:
		d.panel = noPanel
	case keyHealAll:
		d.act(func() error {
			for _, name := range d.pod.Faults() {
				if err := d.pod.Heal(ctx, name); err != nil {
					return err
				}
			}
			return nil
		}, "Everything is healed.")
	default:
		fault, ok := faultOf(key)
		if !ok || d.panel != faultPanel || !slices.ContainsFunc(d.offer, func(f lab.Fault) bool { return f.Name == fault.Name }) {
			return false
		}
		if slices.Contains(d.pod.Faults(), fault.Name) {
			d.act(func() error { return d.pod.Heal(ctx, fault.Name) }, "Healed: "+fault.Name+".")
		} else {
			d.act(func() error { return d.pod.Inject(ctx, fault.Name) }, "Injected: "+fault.Name+". The watchdog should name "+string(fault.Shows)+" soon.")
		}
	}
	return false
}

func (d *desk) act(do func() error, done string) {
	go func() {
		if err := do(); err != nil {
			done = "That did not work: " + err.Error() + "."
		}
		select {
		case d.acted <- done:
		case <-d.acted: // the screen is slow: only the last word matters
			d.acted <- done
		}
	}()
}

// deskFault is a fault as the panel lists it.
type deskFault struct {
	lab.Fault
	active bool
}

// faults are those that this pod can have.
func (d *desk) faults() []deskFault {
	active := d.pod.Faults()
	var list []deskFault
	for _, f := range d.offer {
		list = append(list, deskFault{f, slices.Contains(active, f.Name)})
	}
	return list
}
