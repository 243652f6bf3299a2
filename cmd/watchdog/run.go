package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os/signal"
	"strings"
	"syscall"

	"svid-watchdog/internal/logpipe"
	"svid-watchdog/internal/watchdog"
)

// Exit codes of the contract.
const (
	exitOK       = 0
	exitFailure  = 1
	exitBadUsage = 64 // EX_USAGE of sysexits.h
)

const usage = `svid-watchdog tells whether certificate rotation really works.

Usage:
  watchdog [run] [flags]   watch, judge, and serve metrics (the default)
  watchdog check [flags]   look at this pod once and say what is seen; see watchdog check --help
  watchdog version         print the version
  watchdog help            print this help

`

// run is the program without its process: it returns the exit code.
func run(ctx context.Context, args, environ []string, stdout, stderr io.Writer) int {
	command := "run"
	if len(args) > 0 && args[0] != "" && args[0][0] != '-' {
		command, args = args[0], args[1:]
	}
	switch command {
	case "run":
		return runWatchdog(ctx, args, environ, stdout, stderr)
	case "check":
		return runCheck(ctx, args, environ, stdout, stderr)
	case "version":
		b := build()
		fmt.Fprintf(stdout, "svid-watchdog %s (revision %s, %s)\n", b.Version, b.Revision, b.GoVersion)
		return exitOK
	case "help":
		return runWatchdog(ctx, []string{"--help"}, environ, stdout, stderr)
	default:
		fmt.Fprintf(stderr, "watchdog: unknown command %q; the commands are run, check, version and help\n", command)
		return exitBadUsage
	}
}

func runWatchdog(ctx context.Context, args, environ []string, stdout, stderr io.Writer) int {
	o, err := parseFlags(args, environ)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, usage)
		printFlags(stdout, "run", flagSet(&options{}))
		return exitOK
	case err != nil:
		fmt.Fprintf(stderr, "watchdog: %s; see watchdog --help\n", oneLine(err))
		return exitBadUsage
	}
	defer beFrugal()()
	// Whoever reads the log may hang or go away, and is no reason to end.
	signal.Ignore(syscall.SIGPIPE)
	pipe := logpipe.New(stderr, o.handler)
	defer pipe.Close()
	log := slog.New(o.handler(pipe))
	o.watchdog.Build = build()
	w, err := watchdog.New(o.watchdog, log)
	if err != nil {
		fmt.Fprintf(stderr, "watchdog: %s\n", oneLine(err))
		return exitBadUsage
	}
	log.Info("watching", "version", o.watchdog.Build.Version, "listen_address", w.Address(),
		"workload_api", o.watchdog.WorkloadAPIAddress, "envoy_admin", o.watchdog.EnvoyAdminAddress,
		"credentials_dir", o.watchdog.CredentialsDir)
	if err := w.Run(ctx); err != nil {
		log.Error("watchdog failed", "error", err)
		return exitFailure
	}
	log.Info("ended")
	return exitOK
}

// oneLine is an error as one line: some libraries' errors have several.
func oneLine(err error) string {
	return strings.Join(strings.Fields(err.Error()), " ")
}
