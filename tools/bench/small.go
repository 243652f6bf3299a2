package main

import (
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"svid-watchdog/internal/freeport"
)

// The parts that need no neighbours.

// sizePart measures the binary, how it grows without what tools/build does, and
// what is in it.
func sizePart(ctx context.Context, b *bench) (string, error) {
	shipped, err := fileSize(b.watchdog)
	if err != nil {
		return "", err
	}
	packed, err := gzipSize(b.watchdog)
	if err != nil {
		return "", err
	}
	floor, err := fileSize(b.floor)
	if err != nil {
		return "", err
	}
	t := newTable("what", "to the shipped binary", "bytes", "goal")
	t.add("the binary", "1 ×", shipped, goal(float64(shipped), 13e6, "%.0f"))
	t.add("the image: the binary alone, as it is pulled (gzip)", ratio(float64(packed), float64(shipped)), packed, "")
	t.add("the floor: the same libraries and nothing else", ratio(float64(floor), float64(shipped)), floor, "")
	for _, v := range []struct {
		what string
		args []string
	}{
		{"without `-l` for the libraries", []string{"-tags", "grpcnotrace,nethttpomithttp2"}},
		{"without that and `nethttpomithttp2`", []string{"-tags", "grpcnotrace"}},
		{"without these and `grpcnotrace`", nil},
	} {
		path := filepath.Join(b.scratch, "variant")
		args := append(append([]string{"build", "-trimpath", "-ldflags", "-s -w", "-o", path}, v.args...), "./cmd/watchdog")
		command := exec.CommandContext(ctx, "go", args...)
		command.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := command.CombinedOutput(); err != nil {
			return "", fmt.Errorf("build the variant %s: %w: %s", v.what, err, out)
		}
		n, err := fileSize(path)
		if err != nil {
			return "", err
		}
		t.add(v.what, ratio(float64(n), float64(shipped)), n, "")
	}
	breakdown, err := b.breakdown(ctx)
	if err != nil {
		return "", err
	}
	return t.String() + "\nWhat is in it, by the symbols of code and data (a third more is tables for stack traces, spread evenly):\n\n" + breakdown, nil
}

// breakdown weighs the symbols of the binary by where they come from.
func (b *bench) breakdown(ctx context.Context) (string, error) {
	path := filepath.Join(b.scratch, "symbols")
	script, err := os.ReadFile(filepath.Join(b.root, "tools/build"))
	if err != nil {
		return "", err
	}
	// The same build, but with its symbols.
	text := strings.ReplaceAll(string(script), "-s -w ", "")
	text = strings.ReplaceAll(text, `cd "$(dirname "$0")/.."`, "")
	command := exec.CommandContext(ctx, "bash", "-c", text, "build", path, "./cmd/watchdog")
	command.Dir = b.root
	if out, err := command.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build with symbols: %w: %s", err, out)
	}
	symbols, err := output(ctx, "go", "tool", "nm", "-size", path)
	if err != nil {
		return "", err
	}
	sums := make(map[string]int)
	total := 0
	for line := range strings.Lines(symbols) {
		f := strings.Fields(line)
		if len(f) < 4 || strings.ContainsAny(f[2], "bBU") {
			continue
		}
		n, err := strconv.Atoi(f[1])
		if err != nil || n > 4<<20 { // reserved, not in the file
			continue
		}
		origin := origin(f[3])
		sums[origin] += n
		total += n
	}
	names := make([]string, 0, len(sums))
	for name := range sums {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int { return sums[b] - sums[a] })
	t := newTable("of", "share", "KB")
	for _, name := range names {
		t.add(name, fmt.Sprintf("%.1f %%", 100*float64(sums[name])/float64(total)), sums[name]/1000)
	}
	return t.String(), nil
}

// origins are where packages come from, the first that fits.
var origins = []struct {
	pattern *regexp.Regexp
	name    string
}{
	{regexp.MustCompile(`^(\*|type:\.?\w*\.?|go:itab\.\*?)*svid-watchdog|^main\.`), "the watchdog itself"},
	{regexp.MustCompile(`google\.golang\.org/grpc`), "gRPC"},
	{regexp.MustCompile(`google\.golang\.org/(protobuf|genproto)`), "protobuf"},
	{regexp.MustCompile(`go-control-plane|cncf/xds|protoc-gen-validate|cel\.dev`), "go-control-plane (tls/v3, core/v3)"},
	{regexp.MustCompile(`prometheus|beorn7|munnerz|xxhash`), "client_golang and what it needs"},
	{regexp.MustCompile(`go-spiffe|go-jose`), "go-spiffe"},
	{regexp.MustCompile(`fsnotify`), "fsnotify"},
	{regexp.MustCompile(`go\.yaml\.in`), "yaml, for --web.config.file"},
	{regexp.MustCompile(`crypto`), "Go: crypto, TLS, X.509"},
	{regexp.MustCompile(`net/http|/x/net|/x/text|^net\.|^\*?net/`), "Go: net/http and the network"},
	{regexp.MustCompile(`encoding/`), "Go: encoding/json and others"},
	{regexp.MustCompile(`^(type:|go:|runtime|internal/|reflect)`), "Go: runtime, types, strings"},
}

func origin(symbol string) string {
	for _, o := range origins {
		if o.pattern.MatchString(symbol) {
			return o.name
		}
	}
	return "Go: the rest of the standard library"
}

func fileSize(path string) (int64, error) {
	info, err := os.Stat(path)
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

type counter int64

func (c *counter) Write(p []byte) (int, error) { *c += counter(len(p)); return len(p), nil }

func gzipSize(path string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var n counter
	z := gzip.NewWriter(&n)
	if _, err := io.Copy(z, f); err != nil {
		return 0, err
	}
	return int64(n), z.Close()
}

// startPart measures from the start of the process to the first answer.
func startPart(ctx context.Context, b *bench) (string, error) {
	const starts = 30
	measure := func(path string, args func(address string) []string) ([]time.Duration, error) {
		var took []time.Duration
		for range starts {
			address, err := freeport.Address()
			if err != nil {
				return nil, err
			}
			began := time.Now()
			p, err := start(path, args(address)...)
			if err != nil {
				return nil, err
			}
			for {
				response, err := http.Get("http://" + address + "/metrics") //nolint:noctx // it is refused or answered at once
				if err == nil {
					_, err = io.Copy(io.Discard, response.Body)
					response.Body.Close()
					if err == nil {
						break
					}
				}
				if time.Since(began) > 10*time.Second {
					p.stop()
					return nil, fmt.Errorf("it did not answer: %s", p.log.String())
				}
				time.Sleep(500 * time.Microsecond)
			}
			took = append(took, time.Since(began))
			p.stop()
		}
		slices.Sort(took)
		return took, nil
	}
	none := filepath.Join(b.scratch, "none")
	ours, err := measure(b.watchdog, func(address string) []string {
		return []string{"run", "--web.listen-address=" + address, "--credentials.dir=" + none, "--workload-api.address=unix://" + none, "--envoy.admin-address=unix://" + none}
	})
	if err != nil {
		return "", err
	}
	floors, err := measure(b.floor, func(address string) []string { return []string{address, "unix://" + none, b.scratch} })
	if err != nil {
		return "", err
	}
	t := newTable("from exec to an answer of /metrics", "to the floor", "median", "slowest of 30", "goal")
	p50, p50floor := percentile(ours, 0.5), percentile(floors, 0.5)
	t.add("the watchdog", ratio(float64(p50), float64(p50floor)), ms(p50), ms(ours[len(ours)-1]), goal(float64(p50)/1e6, 50, "%.0f ms"))
	t.add("the floor", "1 ×", ms(p50floor), ms(floors[len(floors)-1]), "")
	return t.String(), nil
}

// scrapePart counts and times a scrape; what it allocates is from the Go
// benchmark.
func scrapePart(ctx context.Context, b *bench) (string, error) {
	none := filepath.Join(b.scratch, "none")
	w, err := startWatchdog(ctx, b.watchdog, "--credentials.dir="+none, "--workload-api.address=unix://"+none, "--envoy.admin-address=unix://"+none)
	if err != nil {
		return "", err
	}
	defer w.stop()
	var took []time.Duration
	before, err := cpu(w.pid())
	if err != nil {
		return "", err
	}
	const scrapes = 500
	for range scrapes {
		began := time.Now()
		if _, err := w.metrics(ctx); err != nil {
			return "", err
		}
		took = append(took, time.Since(began))
	}
	after, err := cpu(w.pid())
	if err != nil {
		return "", err
	}
	slices.Sort(took)
	out, err := output(ctx, "go", "test", "-run", "^$", "-bench", "^BenchmarkScrape$", "-benchmem", "./internal/metrics")
	if err != nil {
		return "", err
	}
	bench := regexp.MustCompile(`(\d+) B/op\s+(\d+) allocs/op`).FindStringSubmatch(out)
	if bench == nil {
		return "", fmt.Errorf("no benchmark in %q", out)
	}
	healthy, err := os.ReadFile(filepath.Join(b.root, "internal/metrics/testdata/healthy.prom"))
	if err != nil {
		return "", err
	}
	n := series(string(healthy))
	t := newTable("a scrape", "to the goal", "value", "goal")
	t.add("series of a healthy pod", ratio(float64(n), 80), n, goal(float64(n), 80, "%.0f"))
	t.add("bytes of its page", ratio(float64(len(healthy)), 14_000), len(healthy), goal(float64(len(healthy)), 14_000, "%.0f"))
	t.add("time, median and slowest of 500", "", ms(percentile(took, 0.5))+", "+ms(took[len(took)-1]), "")
	t.add("CPU of the watchdog", "", fmt.Sprintf("%.2f ms", float64(after-before)/scrapes/1e6), "")
	t.add("allocated", "", bench[1]+" bytes in "+bench[2]+" objects", "")
	return t.String(), nil
}

func series(page string) int {
	n := 0
	for line := range strings.Lines(page) {
		if !strings.HasPrefix(line, "#") && strings.TrimSpace(line) != "" {
			n++
		}
	}
	return n
}
