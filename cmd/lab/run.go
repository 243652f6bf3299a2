package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"svid-watchdog/internal/lab"
	"svid-watchdog/internal/watchdog"
)

// Exit codes.
const (
	exitOK       = 0
	exitFailure  = 1
	exitBadUsage = 64 // EX_USAGE of sysexits.h
)

// lookEvery is how often the watchdog is asked for its verdict.
const lookEvery = 250 * time.Millisecond

// run is the program without its process: it returns the exit code.
func run(ctx context.Context, args, environ []string, stdout, stderr io.Writer) int {
	o, err := parseFlags(args, environ)
	switch {
	case errors.Is(err, flag.ErrHelp):
		printUsage(stdout)
		return exitOK
	case err != nil:
		fmt.Fprintf(stderr, "lab: %s; see --help\n", oneLine(err))
		return exitBadUsage
	case o.listFaults:
		printFaults(stdout)
		return exitOK
	}
	var control net.Listener
	if o.control != "" {
		if control, err = (&net.ListenConfig{}).Listen(ctx, "tcp", o.control); err != nil {
			fmt.Fprintf(stderr, "lab: %s\n", oneLine(fmt.Errorf("listen for --control: %w", err)))
			return exitBadUsage
		}
		defer control.Close()
	}
	var board keyboard
	if isTerminal(os.Stdin) && o.keys(stdout) {
		if board, err = openKeyboard(os.Stdin); err != nil {
			board = keyboard{} // then there are no keys
		}
	}
	defer board.close()
	if err := play(ctx, o, control, board, stdout); err != nil {
		fmt.Fprintf(stderr, "lab: %s\n", oneLine(err))
		return exitFailure
	}
	return exitOK
}

// play runs the pod until ctx ends, the time is over, or a key says so.
func play(ctx context.Context, o *options, control net.Listener, board keyboard, stdout io.Writer) (err error) {
	keys := board.keys
	screen := newScreen(stdout, o)
	screen.starting(o)
	pod, err := lab.Start(ctx, o.pod)
	if err != nil {
		if ctx.Err() != nil {
			return nil // interrupted before it ran
		}
		return fmt.Errorf("start the pod: %w", err)
	}
	defer func() { err = errors.Join(err, pod.Close()) }()

	// The neighbours outlive the run by a moment, so that the last look sees
	// them at work.
	neighbours, dismiss := context.WithCancel(context.WithoutCancel(ctx))
	defer dismiss()
	began := time.Now()
	run, cancel := context.WithCancel(ctx)
	defer cancel()
	if o.duration > 0 {
		run, cancel = context.WithTimeout(run, o.duration)
		defer cancel()
	}

	var dog *watchdog.Watchdog
	address := ""
	cfg := watchdogConfig(pod)
	dogEnded := make(chan error, 1)
	if o.watchdog {
		if dog, err = watchdog.New(cfg, slog.New(slog.DiscardHandler)); err != nil {
			return fmt.Errorf("start the watchdog: %w", err)
		}
		address = dog.Address()
		go func() { dogEnded <- dog.Run(neighbours) }()
		defer func() {
			dismiss()
			err = errors.Join(err, <-dogEnded)
		}()
	}

	if control != nil {
		server := &http.Server{Handler: controlHandler(neighbours, pod), ReadHeaderTimeout: 5 * time.Second}
		served := make(chan struct{})
		go func() {
			defer close(served)
			_ = server.Serve(control) // ends with Close
		}()
		defer func() {
			_ = server.Close()
			<-served
		}()
	}

	injected := make(chan error, 1)
	go func() { injected <- inject(run, pod, o.faults) }()
	defer func() {
		cancel()
		err = errors.Join(err, <-injected)
	}()

	s := newStory(pod, address)
	screen.begin(scene{o: o, pod: pod, cfg: cfg, status: address, control: control, began: began, keys: keys != nil})
	desk := screen.desk()
	var acted <-chan string
	if desk != nil {
		acted = desk.acted
	}
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	for over := false; !over; {
		select {
		case <-run.Done():
			over = true
		case <-ticker.C:
		case key, ok := <-keys:
			if !ok {
				keys = nil
				break
			}
			over = desk != nil && desk.press(neighbours, key)
		case said := <-acted:
			desk.said = said
		case err := <-dogEnded:
			// Not before we dismissed it: hand it on and end.
			dogEnded <- err
			over = true
		}
		fresh := s.look(neighbours)
		screen.show(s.snapshot(), fresh)
	}
	ran := time.Since(began)
	final := s.snapshot()
	screen.end()
	board.close()
	if o.json {
		encoder := json.NewEncoder(stdout)
		encoder.SetIndent("", "  ")
		if err := encoder.Encode(final.report(o, pod, ran)); err != nil {
			return fmt.Errorf("write the report: %w", err)
		}
		return nil
	}
	_, err = fmt.Fprintln(stdout, summary(final, ran))
	return err
}

// inject injects the planned faults in their time.
func inject(ctx context.Context, pod faulty, faults plan) error {
	began := time.Now()
	for _, p := range faults {
		timer := time.NewTimer(p.after - time.Since(began))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
		if err := pod.Inject(ctx, p.fault.Name); err != nil && ctx.Err() == nil {
			return err
		}
	}
	return nil
}

// watchdogConfig scales the watchdog's settings with the lifetime, since the
// lab lives an hour in a minute.
func watchdogConfig(pod *lab.Pod) watchdog.Config {
	ttl := pod.TTL()
	cfg := watchdog.DefaultConfig()
	cfg.CredentialsDir = pod.CredentialsDir()
	cfg.WorkloadAPIAddress = pod.SocketAddress()
	cfg.EnvoyAdminAddress = pod.Envoy().AdminAddress()
	cfg.HandshakeAddress = pod.Envoy().ListenerAddress()
	cfg.PollInterval = time.Second
	// A grace of 90 s of an hour is 1.5 s of a minute, in which a busy machine
	// cannot even be asked twice.
	cfg.Grace = max(ttl/12, 3*time.Second)
	// A sixth of the lifetime as the provider means it: tbot back-dates by a
	// minute, which is nothing of an hour and doubles a minute.
	cfg.ExpiryMargin = ttl / 6
	// The budget is a share of time, and the lab's time runs sixty times
	// faster: 0.5 % of an hour is 30 % of a minute.
	cfg.BudgetPercent = 50
	// The pauses of the Workload API client, up to 30 s, in the same measure.
	cfg.StreamBackoff, cfg.AnswerTimeout = cfg.Grace/2, cfg.Grace
	cfg.WebListenAddress = "127.0.0.1:0"
	return cfg
}

// byHand is the command that starts a watchdog beside the pod.
func byHand(cfg watchdog.Config) string {
	return strings.Join([]string{
		"go run ./cmd/watchdog run",
		"--credentials.dir=" + cfg.CredentialsDir,
		"--workload-api.address=" + cfg.WorkloadAPIAddress,
		"--envoy.admin-address=" + cfg.EnvoyAdminAddress,
		"--handshake.address=" + cfg.HandshakeAddress,
		"--envoy.poll-interval=" + cfg.PollInterval.String(),
		fmt.Sprintf("--envoy.budget=%g", cfg.BudgetPercent),
		"--rotation.grace=" + cfg.Grace.String(),
		"--rotation.expiry-margin=" + cfg.ExpiryMargin.String(),
		"--web.listen-address=127.0.0.1:9816",
	}, " \\\n    ")
}

// summary is the run in one line.
func summary(s snapshot, ran time.Duration) string {
	if s.verdict == nil {
		return fmt.Sprintf("Ran for %s.", ran.Round(time.Second))
	}
	raised := "no problem raised"
	if len(s.raised) > 0 {
		names := make([]string, 0, len(s.raised))
		for _, name := range s.raised {
			names = append(names, string(name))
		}
		raised = "problems raised: " + strings.Join(names, ", ")
	}
	return fmt.Sprintf("Ran for %s: %s, %s, %s.", ran.Round(time.Second), s.verdict.State,
		plural(s.verdict.VerifiedRotations, "verified rotation"), raised)
}

func plural(n uint64, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// oneLine is an error as one line: some libraries' errors have several.
func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }
