// Command bench measures what the watchdog costs, and writes the tables of
// docs/footprint.md. It uses what any Linux has: /proc, curl, jq; and of the
// neighbours those that are there. A part that lacks something says so in its
// table.
//
//	go run ./tools/bench [flags] [PART...]
//
// The parts are size, start, scrape, memory, cpu, envoy, poll, tbot, latency
// and scale; without any, all are run, in less than 20 minutes on two cores.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// bench is one run.
type bench struct {
	root     string // of the repository
	scratch  string
	document string

	rest     time.Duration // how long the watchdog is watched at rest
	files    int           // created for the latency
	sizes    []int         // clusters of an Envoy
	versions []string      // of Envoy
	fleets   []int         // pods
	fleetFor time.Duration // how long the largest fleet is scraped

	watchdog, floor string // built
}

// part is a table, or several, of the document.
type part struct {
	name string
	run  func(context.Context, *bench) (string, error)
}

// parts in the order in which they are run. Those of one group share a run.
var parts = []part{
	{"size", sizePart},
	{"start", startPart},
	{"scrape", scrapePart},
	{"memory", func(ctx context.Context, b *bench) (string, error) { return b.atRest(ctx, "memory") }},
	{"cpu", func(ctx context.Context, b *bench) (string, error) { return b.atRest(ctx, "cpu") }},
	{"tbot", func(ctx context.Context, b *bench) (string, error) { return b.atRest(ctx, "tbot") }},
	{"latency", func(ctx context.Context, b *bench) (string, error) { return b.atRest(ctx, "latency") }},
	{"envoy", func(ctx context.Context, b *bench) (string, error) { return b.atRest(ctx, "envoy") }},
	{"poll", func(ctx context.Context, b *bench) (string, error) { return b.atRest(ctx, "poll") }},
	{"scale", scalePart},
}

func main() {
	log.SetFlags(log.Ltime)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		log.Fatalf("bench: %v", err)
	}
}

func run(ctx context.Context) error {
	b := &bench{}
	f := flag.NewFlagSet("bench", flag.ExitOnError)
	f.DurationVar(&b.rest, "rest", 10*time.Minute, "how long to watch at rest")
	f.IntVar(&b.files, "files", 1000, "how many files to create")
	f.DurationVar(&b.fleetFor, "fleet-for", 150*time.Second, "how long a fleet is scraped")
	f.StringVar(&b.document, "document", "docs/footprint.md", "where the tables are written")
	sizes := f.String("clusters", "10,1000,10000", "sizes of the mesh")
	fleets := f.String("pods", "1000,10000", "sizes of the fleet")
	versions := f.String("envoys", "1.36.4,1.40.0", "releases of Envoy")
	if err := f.Parse(os.Args[1:]); err != nil {
		return err
	}
	var err error
	if b.sizes, err = numbers(*sizes); err != nil {
		return err
	}
	if b.fleets, err = numbers(*fleets); err != nil {
		return err
	}
	b.versions = strings.Split(*versions, ",")
	wanted := f.Args()
	for _, name := range wanted {
		if !slices.ContainsFunc(parts, func(p part) bool { return p.name == name }) {
			return fmt.Errorf("there is no part %q", name)
		}
	}
	if b.root, err = os.Getwd(); err != nil {
		return err
	}
	if b.scratch, err = os.MkdirTemp("", "svid-bench-"); err != nil {
		return err
	}
	defer os.RemoveAll(b.scratch)
	b.watchdog, b.floor = filepath.Join(b.scratch, "watchdog"), filepath.Join(b.scratch, "floor")
	for path, pkg := range map[string]string{b.watchdog: "./cmd/watchdog", b.floor: "./tools/bench/floor"} {
		if _, err := output(ctx, filepath.Join(b.root, "tools/build"), path, pkg); err != nil {
			return err
		}
	}
	began := time.Now()
	shared.wanted = wanted
	for _, p := range parts {
		if len(wanted) > 0 && !slices.Contains(wanted, p.name) {
			continue
		}
		log.Printf("%s ...", p.name)
		table, err := p.run(ctx, b)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			log.Printf("%s: %v", p.name, err)
			table = "Not measured: " + strings.ReplaceAll(oneLine(err.Error()), b.scratch, "") + ".\n"
		}
		fmt.Println(table)
		if err := b.write(p.name, table); err != nil {
			return err
		}
	}
	if err := b.write("machine", machine()); err != nil {
		return err
	}
	log.Printf("done after %s", time.Since(began).Round(time.Second))
	return nil
}

func numbers(list string) (out []int, err error) {
	for text := range strings.SplitSeq(list, ",") {
		n, err := strconv.Atoi(text)
		if err != nil {
			return nil, fmt.Errorf("%q is no number: %w", text, err)
		}
		out = append(out, n)
	}
	return out, nil
}

func oneLine(text string) string {
	text = strings.Join(strings.Fields(text), " ")
	return text[:min(len(text), 300)]
}
