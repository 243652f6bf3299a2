package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"
	"time"

	"svid-watchdog/internal/check"
	"svid-watchdog/internal/terminal"
)

const checkUsage = `watchdog check looks at the pod that it runs in, once, and says what it sees.

Usage:
  watchdog check [flags]

Where a watchdog runs in the pod, it is asked first, since it knows the history.
The exit code is 0 when rotation is healthy, 1 when there is a problem, 2 when the
evidence does not tell, and 64 when the flags are wrong.

Examples:
  kubectl exec POD -c svid-watchdog -- /watchdog check
  kubectl debug POD -it --image=svid-watchdog --target=istio-proxy --profile=sysadmin \
      -- /watchdog check --root /proc/1/root

`

// defaultWatchdogAddress is where a watchdog with default flags listens.
const defaultWatchdogAddress = "http://127.0.0.1:9816"

type checkOptions struct {
	check.Config
	json    bool
	ownLook bool
}

func checkFlagSet(o *checkOptions) *flag.FlagSet {
	f := newFlagSet()
	podFlags(f, &o.Pod)
	f.BoolVar(&o.json, "json", false, "print the report as JSON, as docs/check.schema.json describes it")
	f.DurationVar(&o.Timeout, "timeout", 10*time.Second, "`time` to wait for answers")
	f.DurationVar(&o.Watch, "watch", 0, "`time` to stay and watch, instead of one look: it sees renewals too")
	f.BoolVar(&o.Pod.NoSVID, "no-svid", false, "ask the Workload API for no SVID, and only see whether its socket answers")
	f.StringVar(&o.Root, "root", "", "`directory` below which the paths of files and sockets are, for example /proc/1/root")
	f.BoolVar(&o.ownLook, "own-look", false, "look without asking the watchdog that runs in the pod")
	f.StringVar(&o.WatchdogAddress, "watchdog.address", defaultWatchdogAddress, "`address` of the watchdog that is asked first")
	return f
}

func parseCheckFlags(args, environ []string) (*checkOptions, error) {
	o := &checkOptions{}
	if err := parse(checkFlagSet(o), &o.Pod, args, environ); err != nil {
		return nil, err
	}
	u, err := url.Parse(o.WatchdogAddress)
	switch {
	case o.Timeout <= 0:
		return nil, fmt.Errorf("--timeout %s is not a time to wait", o.Timeout)
	case o.Watch < 0:
		return nil, fmt.Errorf("--watch %s is negative", o.Watch)
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "":
		return nil, fmt.Errorf("--watchdog.address %q is not http://HOST:PORT", o.WatchdogAddress)
	}
	if o.ownLook {
		o.WatchdogAddress = ""
	}
	return o, nil
}

func runCheck(ctx context.Context, args, environ []string, stdout, stderr io.Writer) int {
	o, err := parseCheckFlags(args, environ)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, checkUsage)
		printFlags(stdout, "check", checkFlagSet(&checkOptions{}))
		return exitOK
	case err != nil:
		fmt.Fprintf(stderr, "watchdog: %s; see watchdog check --help\n", oneLine(err))
		return exitBadUsage
	}
	o.Version = build().Version
	if o.Watch > 0 {
		fmt.Fprintf(stderr, "watching for %s; interrupt to see sooner what is known\n", o.Watch)
	}
	report, err := check.Run(ctx, o.Config)
	if err != nil {
		fmt.Fprintf(stderr, "watchdog: %s\n", oneLine(err))
		return exitBadUsage
	}
	if o.json {
		encoder := json.NewEncoder(stdout)
		encoder.SetIndent("", "  ")
		err = encoder.Encode(report)
	} else {
		width, color := appearance(stdout, environ)
		err = report.WriteText(stdout, width, color)
	}
	if err != nil {
		fmt.Fprintf(stderr, "watchdog: %s\n", oneLine(err))
		return check.ExitCannotTell
	}
	return report.ExitCode
}

// plainWidth is the width of text that does not go to a terminal.
const plainWidth = 100

// appearance is how wide text may be, and whether it may have colours: only on
// a terminal that can, and unless NO_COLOR is set (no-color.org).
func appearance(w io.Writer, environ []string) (width int, color bool) {
	file, ok := w.(*os.File)
	if !ok {
		return plainWidth, false
	}
	width, _, color = terminal.Size(file)
	if !color {
		return plainWidth, false
	}
	for _, e := range environ {
		name, value, _ := strings.Cut(e, "=")
		if name == "NO_COLOR" && value != "" || name == "TERM" && value == "dumb" {
			color = false
		}
	}
	return min(width, plainWidth), color
}
