package main

import (
	"cmp"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"svid-watchdog/internal/lab"
)

// envoyBin names a real Envoy in the environment.
const envoyBin = "ENVOY_BIN"

// The shortest lifetime that all clocks of the pod can keep up with.
const minTTL = 5 * time.Second

type options struct {
	pod        lab.Config
	faults     plan
	listFaults bool
	duration   time.Duration
	json       bool
	watchdog   bool
	control    string
	noColor    bool
}

// planned is a fault and when to inject it.
type planned struct {
	fault lab.Fault
	after time.Duration
}

// plan is the value of --fault, which may be given several times.
type plan []planned

func (p *plan) String() string { return "" }

func (p *plan) Set(value string) error {
	name, at, timed := strings.Cut(value, "@")
	fault, ok := lab.FindFault(name)
	if !ok {
		return fmt.Errorf("there is no fault %q; --list-faults lists them", name)
	}
	next := planned{fault: fault}
	if timed {
		after, err := time.ParseDuration(at)
		if err != nil || after < 0 {
			return fmt.Errorf("%q is not a time after which to inject %s; 30s for example is", at, name)
		}
		next.after = after
	}
	*p = append(*p, next)
	slices.SortStableFunc(*p, func(a, b planned) int { return cmp.Compare(a.after, b.after) })
	return nil
}

// flagSet defines the flags on o.
func flagSet(o *options) *flag.FlagSet {
	o.pod = lab.Config{Issuer: lab.Tbot, TTL: time.Minute, StandIn: "1.37"}
	o.watchdog = true
	f := flag.NewFlagSet("lab", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.Usage = func() {}
	f.StringVar(&o.pod.EnvoyPath, "envoy", "", "`path` of a real Envoy; "+envoyBin+" in the environment if not given, the stand-in if neither is")
	f.StringVar(&o.pod.StandIn, "stand-in", o.pod.StandIn, "`generation` of Envoy that the stand-in imitates: 1.36 (and older) or 1.37 (and newer)")
	f.StringVar((*string)(&o.pod.Issuer), "issuer", string(o.pod.Issuer), "identity `provider` to imitate: tbot or spire")
	f.DurationVar(&o.pod.TTL, "ttl", o.pod.TTL, "`time` that a certificate lives")
	f.DurationVar(&o.pod.Renewal, "renewal", 0, "`time` between two renewals; 0 is the provider's habit: a third of the life with tbot, half of it with SPIRE")
	f.BoolVar(&o.pod.SDSStats, "sds-stats", false, "let Envoy show its sds. statistics, which Istio hides by default")
	f.Var(&o.faults, "fault", "`NAME[@AFTER]` of a fault to inject, at once or after a time; may be given several times")
	f.BoolVar(&o.listFaults, "list-faults", false, "list the faults and end")
	f.DurationVar(&o.duration, "for", 0, "`time` to run; 0 is until interrupted")
	f.BoolVar(&o.json, "json", false, "print nothing but one JSON document at the end: timeline and verdict")
	f.BoolVar(&o.watchdog, "watchdog", true, "run the watchdog beside the pod; without it, the command that starts one by hand is printed")
	f.StringVar(&o.control, "control", "", "loopback `address` to control the faults on: GET /faults, POST and DELETE /faults/NAME")
	return f
}

// parseFlags reads the arguments and the environment.
func parseFlags(args, environ []string) (*options, error) {
	o := &options{}
	f := flagSet(o)
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	if f.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	given := make(map[string]bool)
	f.Visit(func(fl *flag.Flag) { given[fl.Name] = true })
	for _, e := range environ {
		switch name, value, _ := strings.Cut(e, "="); {
		case name == "NO_COLOR": // no-color.org
			o.noColor = value != ""
		case name == envoyBin && !given["envoy"] && !given["stand-in"]:
			o.pod.EnvoyPath = value
		}
	}
	return o, o.check(given)
}

// check says in one sentence what does not fit.
func (o *options) check(given map[string]bool) error {
	switch {
	case given["envoy"] && given["stand-in"]:
		return fmt.Errorf("--envoy and --stand-in exclude each other")
	case o.pod.StandIn != "1.36" && o.pod.StandIn != "1.37":
		return fmt.Errorf("--stand-in is 1.36 or 1.37, not %q", o.pod.StandIn)
	case !slices.Contains([]lab.Issuer{lab.Tbot, lab.SPIRE}, o.pod.Issuer):
		return fmt.Errorf("--issuer is tbot or spire, not %q", o.pod.Issuer)
	case o.pod.TTL < minTTL:
		return fmt.Errorf("--ttl %s is shorter than %s", o.pod.TTL, minTTL)
	case o.pod.Renewal < 0 || o.pod.Renewal >= o.pod.TTL:
		return fmt.Errorf("--renewal %s is not between 0 and the --ttl of %s", o.pod.Renewal, o.pod.TTL)
	case o.duration < 0:
		return fmt.Errorf("--for %s is negative", o.duration)
	}
	if o.pod.EnvoyPath != "" {
		if info, err := os.Stat(o.pod.EnvoyPath); err != nil || info.IsDir() || info.Mode()&0o111 == 0 {
			return fmt.Errorf("%s is not a program that can be run as Envoy", o.pod.EnvoyPath)
		}
		for _, p := range o.faults {
			if p.fault.StandInOnly {
				return fmt.Errorf("the fault %s takes the stand-in, a real Envoy cannot be made to do it", p.fault.Name)
			}
		}
	}
	if o.control != "" {
		return checkLoopback(o.control)
	}
	return nil
}

// checkLoopback refuses an address that others can reach: whoever reaches the
// control can break the pod.
func checkLoopback(address string) error {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("--control %q is not HOST:PORT", address)
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return fmt.Errorf("--control %q is not on loopback; 127.0.0.1:9817 for example is", address)
	}
	return nil
}

const usage = `lab runs a pod in a box: an identity provider, an Envoy, and the watchdog.

Usage:
  lab [flags]

Examples:
  lab                                  watch certificates rotate
  lab --fault tbot-resend@30s          see the incident that the watchdog is for
  lab --envoy ./envoy --issuer spire   the same with a real Envoy, and as SPIRE does

Flags:
`

func printUsage(w io.Writer) {
	fmt.Fprint(w, usage)
	flagSet(&options{}).VisitAll(func(f *flag.Flag) {
		kind, text := flag.UnquoteUsage(f)
		fmt.Fprintf(w, "  --%s %s\n      %s", f.Name, kind, text)
		if f.DefValue != "" && f.DefValue != "false" && f.DefValue != "0s" {
			fmt.Fprintf(w, " (default %s)", f.DefValue)
		}
		fmt.Fprintln(w)
	})
}

func printFaults(w io.Writer) {
	for _, f := range lab.Faults() {
		fmt.Fprintf(w, "%-20s %s\n%-20s shows %s", f.Name, f.Summary, "", f.Shows)
		if f.StandInOnly {
			fmt.Fprint(w, "; with the stand-in only")
		}
		fmt.Fprintln(w)
	}
}
