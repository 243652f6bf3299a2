package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"svid-watchdog/internal/freeport"
	"svid-watchdog/internal/lab"
)

// The parts that need a pod at rest share one run: real Envoys of all releases
// and sizes, a watchdog beside each, and the programs to compare with.

// shared is that run.
var shared struct {
	wanted []string
	done   bool
	err    error
	tables map[string]string
}

func wants(names ...string) bool {
	return len(shared.wanted) == 0 || slices.ContainsFunc(names, func(n string) bool { return slices.Contains(shared.wanted, n) })
}

func (b *bench) atRest(ctx context.Context, name string) (string, error) {
	if !shared.done {
		shared.done = true
		shared.tables = make(map[string]string)
		shared.err = b.restRun(ctx)
	}
	if table, ok := shared.tables[name]; ok {
		return table, nil
	}
	return "", errors.Join(shared.err, ctx.Err())
}

// pod is one Envoy with its identity provider, and a watchdog beside it.
type pod struct {
	*lab.Pod
	version  string
	clusters int
	envoy    *lab.RealEnvoy
	watchdog *sidecar

	own      float64 // Envoy's CPU without us, as a share
	with     float64 // with us
	reported float64 // what the watchdog says it cost, as a share
}

// name as in the tables.
func (p *pod) name() string { return fmt.Sprintf("%s, %d clusters", p.version, p.clusters) }

func (p *pod) flags() []string {
	return []string{"--workload-api.address=" + p.SocketAddress(), "--envoy.admin-address=" + p.envoy.AdminAddress(), "--credentials.dir=" + p.CredentialsDir()}
}

// startPod starts an Envoy of a release with so many clusters. Its certificates
// are renewed once in a long while, so that nothing but us disturbs it.
func (b *bench) startPod(ctx context.Context, version string, clusters int, ttl, renewal time.Duration) (*pod, error) {
	path := filepath.Join(b.root, ".neighbours/envoy", version, "envoy")
	if _, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("there is no Envoy %s, run `make neighbours`", version)
	}
	p, err := lab.Start(ctx, lab.Config{Issuer: lab.Tbot, TTL: ttl, Renewal: renewal, EnvoyPath: path, Clusters: clusters})
	if err != nil {
		return nil, err
	}
	envoy, ok := p.Envoy().(*lab.RealEnvoy)
	if !ok {
		return nil, errors.Join(errors.New("the lab's Envoy is no real one"), p.Close())
	}
	out := &pod{Pod: p, version: version, clusters: clusters, envoy: envoy}
	err = until(ctx, 2*time.Minute, "Envoy to be live", func() bool {
		info, err := get(ctx, envoy.AdminAddress()+"/server_info")
		return err == nil && strings.Contains(info, `"LIVE"`)
	})
	if err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return out, nil
}

func (b *bench) restRun(ctx context.Context) error {
	sizes := b.sizes
	versions := b.versions
	if !wants("envoy", "poll") { // one is enough
		sizes, versions = b.sizes[:1], b.versions[len(b.versions)-1:]
	}
	var pods []*pod
	defer func() {
		for _, p := range pods {
			if p.watchdog != nil {
				p.watchdog.stop()
			}
			if err := p.Close(); err != nil {
				log.Print(err)
			}
		}
	}()
	for _, v := range versions {
		for _, n := range sizes {
			p, err := b.startPod(ctx, v, n, 6*time.Hour, 2*time.Hour)
			if err != nil {
				return err
			}
			pods = append(pods, p)
		}
	}
	main := pods[0]
	for _, p := range pods {
		if p.version == b.versions[len(b.versions)-1] && p.clusters == b.sizes[0] {
			main = p
		}
	}
	if wants("memory", "cpu", "tbot", "envoy", "latency") {
		if err := b.watch(ctx, pods, main); err != nil {
			return err
		}
	}
	if wants("envoy", "poll") {
		return b.prices(ctx, pods)
	}
	return nil
}

// shareOf is the CPU of each Envoy over a time.
func shareOf(ctx context.Context, pods []*pod, d time.Duration) ([]float64, error) {
	before := make([]time.Duration, len(pods))
	began := time.Now()
	for i, p := range pods {
		var err error
		if before[i], err = cpu(p.envoy.PID()); err != nil {
			return nil, err
		}
	}
	if err := wait(ctx, d); err != nil {
		return nil, err
	}
	out := make([]float64, len(pods))
	for i, p := range pods {
		after, err := cpu(p.envoy.PID())
		if err != nil {
			return nil, err
		}
		out[i] = float64(after-before[i]) / float64(time.Since(began))
	}
	return out, nil
}

// watch is the long look.
func (b *bench) watch(ctx context.Context, pods []*pod, main *pod) error {
	log.Printf("Envoys without a watchdog, %s", b.rest/10)
	own, err := shareOf(ctx, pods, b.rest/10)
	if err != nil {
		return err
	}
	for i, p := range pods {
		p.own = own[i]
		if p.watchdog, err = startWatchdog(ctx, b.watchdog, p.flags()...); err != nil {
			return err
		}
	}
	peers, stop, err := b.startPeers(ctx, main)
	defer stop()
	if err != nil {
		return err
	}
	scraping, unscrape := context.WithCancel(ctx)
	defer unscrape()
	for _, p := range pods {
		go scrapeAll(scraping, p.watchdog.base+"/metrics")
	}
	for _, p := range peers {
		if p.url != "" {
			go scrapeAll(scraping, p.url)
		}
	}
	for range 200 { // the heap grows to the runtime's minimum
		for _, p := range peers {
			if p.url == "" {
				continue
			}
			if _, err := get(ctx, p.url); err != nil {
				return err
			}
		}
	}
	if err := wait(ctx, b.rest/20); err != nil { // the first looks are over
		return err
	}
	latency := make(chan string, 1)
	go func() {
		if !wants("latency") {
			latency <- ""
			return
		}
		table, err := b.latency(ctx)
		if err != nil {
			table = "Not measured: " + oneLine(err.Error()) + ".\n"
		}
		latency <- table
	}()

	log.Printf("at rest, %s", b.rest)
	us := peers[0].pid()
	before, err := look(us)
	if err != nil {
		return err
	}
	cpuBefore, err := cpu(us)
	if err != nil {
		return err
	}
	reported := make([]float64, len(pods))
	for i, p := range pods {
		page, err := p.watchdog.metrics(ctx)
		if err != nil {
			return err
		}
		reported[i] = value(page, "svid_watchdog_envoy_admin_seconds_total")
	}
	began := time.Now()
	firstHalf, err := shareOf(ctx, pods, b.rest/2)
	if err != nil {
		return err
	}
	for i := range peers {
		if peers[i].seen, err = look(peers[i].pid()); err != nil {
			return err
		}
	}
	secondHalf, err := shareOf(ctx, pods, b.rest/2)
	if err != nil {
		return err
	}
	took := time.Since(began)
	cpuAfter, err := cpu(us)
	if err != nil {
		return err
	}
	after, err := look(us)
	if err != nil {
		return err
	}
	for i, p := range pods {
		p.with = (firstHalf[i] + secondHalf[i]) / 2
		page, err := p.watchdog.metrics(ctx)
		if err != nil {
			return err
		}
		p.reported = (value(page, "svid_watchdog_envoy_admin_seconds_total") - reported[i]) / took.Seconds()
	}
	shared.tables["memory"] = memoryTable(peers)
	share := float64(cpuAfter-cpuBefore) / float64(took)
	t := newTable("at rest, beside Envoy "+main.version, "to the goal", "value", "goal")
	t.add(fmt.Sprintf("CPU of one core over %s, scrapes included", took.Round(time.Second)), ratio(100*share, 0.1), fmt.Sprintf("%.3f %%", 100*share), goal(100*share, 0.1, "%.3f %%"))
	t.add("CPU in 100 s", "", ms(time.Duration(share*float64(100*time.Second))), "")
	t.add("wake-ups (voluntary context switches of all threads)", "", fmt.Sprintf("%.1f a second", (after.wakeups-before.wakeups)/took.Seconds()), "")
	t.add("threads", "", after.threads, "")
	shared.tables["cpu"] = t.String()
	shared.tables["tbot"] = tbotTable(main, took)
	if table := <-latency; table != "" {
		shared.tables["latency"] = table
	}
	return ctx.Err()
}

// peer is a program whose memory is compared.
type peer struct {
	*process
	name, url string
	seen      status
}

// startPeers starts what the watchdog, the first, is compared with.
func (b *bench) startPeers(ctx context.Context, main *pod) (peers []peer, stop func(), err error) {
	var started []*process
	stop = func() {
		for _, p := range started {
			p.stop()
		}
	}
	peers = []peer{{process: main.watchdog.process, name: "`watchdog run`", url: main.watchdog.base + "/metrics"}}
	address, err := freeport.Address()
	if err != nil {
		return nil, stop, err
	}
	floor, err := start(b.floor, address, main.SocketAddress(), main.CredentialsDir())
	if err != nil {
		return nil, stop, err
	}
	started = append(started, floor)
	peers = append(peers, peer{process: floor, name: "the floor", url: "http://" + address + "/metrics"})
	if err := until(ctx, 20*time.Second, "the floor to listen", func() bool {
		_, err := get(ctx, peers[1].url)
		return err == nil
	}); err != nil {
		return nil, stop, fmt.Errorf("%w: %s", err, floor.log.String())
	}

	helper := filepath.Join(b.root, ".neighbours/bin/spiffe-helper")
	if _, err := os.Stat(helper); err != nil {
		log.Print("no spiffe-helper here")
		return peers, stop, nil //nolint:nilerr // the table says so
	}
	config := filepath.Join(b.scratch, "helper.conf")
	text := fmt.Sprintf("agent_address = %q\ncert_dir = %q\nsvid_file_name = \"svid.pem\"\nsvid_key_file_name = \"key.pem\"\nsvid_bundle_file_name = \"bundle.pem\"\n",
		main.SocketPath(), b.scratch)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, stop, err
	}
	p, err := start(helper, "-config", config)
	if err != nil {
		return nil, stop, err
	}
	started = append(started, p)
	return append(peers, peer{process: p, name: "spiffe-helper 0.11.0"}), stop, nil
}

func memoryTable(peers []peer) string {
	t := newTable("at rest, after 200 scrapes and some minutes", "resident, to the floor", "resident", "anonymous", "peak", "goal")
	floor := peers[1].seen
	mib := func(kib float64) string { return fmt.Sprintf("%.1f MiB", kib/1024) }
	for i, p := range peers {
		goals := ""
		if i == 0 {
			goals = "resident " + goal(p.seen.resident/floor.resident, 1.25, "%.2f ×") + "; anonymous " + goal(p.seen.anonymous/1024, 4, "%.1f MiB")
		}
		t.add(p.name, ratio(p.seen.resident, floor.resident), mib(p.seen.resident), mib(p.seen.anonymous), mib(p.seen.peak), goals)
	}
	if len(peers) < 3 {
		t.add("spiffe-helper", "not built here", "", "", "", "")
	}
	t.add("x509-certificate-exporter", "its module is not to be had from the module proxy", "", "", "", "")
	return t.String()
}

func scrapeAll(ctx context.Context, url string) {
	for wait(ctx, 15*time.Second) == nil {
		if _, err := get(ctx, url); err != nil && ctx.Err() == nil {
			log.Print(err)
		}
	}
}

// tbotTable counts what the identity provider did because of the watchdog: its
// streams are told from those of the floor and the helper by when they began.
func tbotTable(main *pod, took time.Duration) string {
	events, _ := main.Events()
	opened := make(map[int]bool)
	sent := make(map[int]int)
	firstStream := 0
	for _, e := range events {
		if e.Service != lab.WorkloadAPI {
			continue
		}
		switch e.Kind {
		case lab.StreamOpened:
			opened[e.Stream] = true
			if firstStream == 0 {
				firstStream = e.Stream // the watchdog was there first
			}
		case lab.SVIDSent:
			sent[e.Stream]++
		}
	}
	t := newTable("on the Workload API", "value", "goal")
	t.add("streams that the watchdog holds", 1, "1: it opened one and no other, of "+fmt.Sprint(len(opened))+" with its neighbours' in this measurement")
	t.add(fmt.Sprintf("SVIDs issued to it in %s, with a renewal every %s", took.Round(time.Second), main.Renewal()), sent[firstStream], "one stream's worth")
	return t.String()
}

// latency measures how soon things are seen, on watchdogs of its own.
func (b *bench) latency(ctx context.Context) (string, error) {
	dir := filepath.Join(b.scratch, "credentials")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	none := filepath.Join(b.scratch, "none")
	w, err := startWatchdog(ctx, b.watchdog, "--credentials.dir="+dir, "--workload-api.address=unix://"+none, "--envoy.admin-address=unix://"+none)
	if err != nil {
		return "", err
	}
	defer w.stop()
	// A pod whose certificates are renewed every two minutes, and the
	// watchdog's own settings.
	version := b.versions[len(b.versions)-1]
	p, err := b.startPod(ctx, version, b.sizes[0], 6*time.Minute, 2*time.Minute)
	if err != nil {
		return "", err
	}
	defer p.Close()
	beside, err := startWatchdog(ctx, b.watchdog, p.flags()...)
	if err != nil {
		return "", err
	}
	defer beside.stop()
	streams := make(chan [2][]time.Duration, 1)
	watching, enough := context.WithCancel(ctx)
	defer enough()
	go func() { streams <- follow(watching, p, beside) }()

	path := filepath.Join(dir, "root-cert.pem")
	shown := func(want string) error {
		for {
			page, err := w.metrics(ctx)
			if err != nil {
				return err
			}
			if strings.Contains(page, `credential_file_present{file="root-cert.pem"} `+want) {
				return nil
			}
		}
	}
	var files []time.Duration
	for range b.files {
		began := time.Now()
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			return "", err
		}
		if err := shown("1"); err != nil {
			return "", err
		}
		files = append(files, time.Since(began))
		if err := os.Remove(path); err != nil {
			return "", err
		}
		if err := shown("0"); err != nil {
			return "", err
		}
		if err := wait(ctx, 200*time.Millisecond); err != nil {
			return "", err
		}
	}
	slices.Sort(files)
	// Five renewals, or as many as the time at rest has.
	if err := wait(ctx, max(0, b.rest-5*time.Second-time.Duration(b.files)*250*time.Millisecond)); err != nil {
		return "", err
	}
	enough()
	followed := <-streams
	t := newTable("from … to /metrics", "p99 to the goal", "p50", "p99", "slowest", "of", "goal")
	p99 := percentile(files, 0.99)
	t.add("a credential file is created", ratio(float64(p99)/1e6, 10), ms(percentile(files, 0.5)), ms(p99), ms(files[len(files)-1]), len(files), "p99 "+goal(float64(p99)/1e6, 10, "%.1f ms"))
	for i, what := range []string{"an SVID is sent on the stream", "an SVID is sent to Envoy, until a rotation of `loaded` is counted"} {
		d := followed[i]
		slices.Sort(d)
		if len(d) == 0 {
			t.add(what, "", "", "", "", 0, "no renewal came in the time")
			continue
		}
		worst := d[len(d)-1]
		if i == 0 {
			t.add(what, "", ms(percentile(d, 0.5)), "", ms(worst), len(d), "")
		} else {
			t.add(what, ratio(worst.Seconds(), 2), ms(percentile(d, 0.5)), "", ms(worst), len(d), goal(worst.Seconds(), 2, "%.2f s"))
		}
	}
	return t.String() + "\nThe first renewal is left out: before it nothing is known of when one is due.\n", nil
}

// follow notes how long after an SVID was sent the metrics show it, on our
// stream and in Envoy's contexts.
func follow(ctx context.Context, p *pod, w *sidecar) (took [2][]time.Duration) {
	type stage struct {
		service lab.Service
		series  string
		last    time.Time // of the SVID that was sent last
		count   float64
	}
	stages := []stage{
		{service: lab.WorkloadAPI, series: `svid_watchdog_rotations_total{stage="issued"}`},
		{service: lab.SDS, series: `svid_watchdog_rotations_total{stage="loaded"}`},
	}
	for wait(ctx, 20*time.Millisecond) == nil {
		page, err := w.metrics(ctx)
		if err != nil {
			continue
		}
		now := time.Now()
		events, _ := p.Events()
		for i := range stages {
			s := &stages[i]
			for _, e := range events {
				if e.Service == s.service && e.Kind == lab.SVIDSent {
					s.last = e.At
				}
			}
			if n := value(page, s.series); n > s.count {
				if s.count = n; n > 1 {
					took[i] = append(took[i], now.Sub(s.last))
				}
			}
		}
	}
	return took
}

// noise is the share of Envoy's time below which two measurements of it differ
// by chance.
const noise = 0.0005

// prices measures single questions, and writes the tables of Envoy and of us.
func (b *bench) prices(ctx context.Context, pods []*pod) error {
	for _, p := range pods { // nobody else asks
		if p.watchdog != nil {
			p.watchdog.stop()
			p.watchdog = nil
		}
	}
	envoy := newTable("Envoy, mesh", "naive poll, to ours", "caused by the watchdog at rest", "as the watchdog counts it", "naive poll of everything each 15 s", "longest answer of ours", "one `curl \\| jq` of the whole dump", "one `istioctl proxy-config secret`", "goal")
	us := newTable("Envoy, mesh", "curl and jq, to one full look", "CPU of a full look", "read", "peak grows by", "curl and jq, CPU of the whole dump", "goal")
	for _, p := range pods {
		log.Printf("prices of %s", p.name())
		naive, longest, err := naivePoll(ctx, p)
		if err != nil {
			return err
		}
		jq, err := b.curlAndJQ(ctx, p)
		if err != nil {
			return err
		}
		istioctl := b.istioctl(ctx, p)
		if wants("envoy") {
			caused := p.with - p.own
			limit := 0.5
			ours := caused
			if ours < noise {
				ours = p.reported
			}
			envoy.add(p.name(), ratio(naive.Seconds()/15, ours), fmt.Sprintf("%.3f %%", 100*caused), fmt.Sprintf("%.3f %%", 100*p.reported),
				fmt.Sprintf("%.2f %%", 100*naive.Seconds()/15), longest, jq.envoy, istioctl, goal(100*caused, limit, "%.3f %%"))
		}
		if wants("poll") {
			look, err := b.fullLook(ctx, p)
			if err != nil {
				return err
			}
			goals := ""
			if p.clusters >= 10_000 {
				r := jq.ours.Seconds() / look.cpu.Seconds()
				reached := "reached"
				if r < 50 {
					reached = fmt.Sprintf("**missed by %.0f ×**", 50-r)
				}
				goals = "at least 50 ×: " + reached + "; peak " + goal(look.peak/1024, 1, "%.1f MiB")
			}
			us.add(p.name(), ratio(jq.ours.Seconds(), look.cpu.Seconds()), ms(look.cpu), fmt.Sprintf("%.2f MB", look.read/1e6), fmt.Sprintf("%.1f MiB", look.peak/1024), jq.text, goals)
		}
	}
	if wants("envoy") {
		shared.tables["envoy"] = envoy.String() + "\nThe watchdog's share is the CPU of the whole Envoy process with the watchdog beside it less that without; below about 0.05 % it is lost in Envoy's own noise, and what the watchdog counts, which includes the way there and back, is the better figure, and the one that the naive poll is compared with.\n"
	}
	if wants("poll") {
		shared.tables["poll"] = us.String() + "\nA full look asks everything, as a resting watchdog does not; the peak is that of a watchdog which makes one every second, less that of one in the smallest mesh.\n"
	}
	return nil
}

// naivePoll asks all that the watchdog asks, unfiltered, and returns what it
// costs Envoy; and the longest answer to a question of the watchdog's own.
func naivePoll(ctx context.Context, p *pod) (cost time.Duration, longest string, err error) {
	const rounds = 3
	before, err := cpu(p.envoy.PID())
	if err != nil {
		return 0, "", err
	}
	for range rounds {
		for _, path := range []string{"/server_info", "/config_dump?resource=dynamic_active_secrets", "/config_dump?resource=dynamic_warming_secrets", "/certs", "/clusters?format=json", "/stats"} {
			if _, err := get(ctx, p.envoy.AdminAddress()+path); err != nil {
				return 0, "", err
			}
		}
	}
	after, err := cpu(p.envoy.PID())
	if err != nil {
		return 0, "", err
	}
	var worst time.Duration
	for _, q := range []string{"/certs", "/clusters?format=json&filter=^sds-grpc$", "/config_dump?resource=dynamic_active_secrets&name_regex=default"} {
		began := time.Now()
		if _, err := get(ctx, p.envoy.AdminAddress()+q); err != nil {
			return 0, "", err
		}
		if took := time.Since(began); took > worst {
			worst, longest = took, fmt.Sprintf("%s, %s", strings.Split(q, "?")[0], ms(took))
		}
	}
	return (after - before) / rounds, longest, nil
}

// dumpCost is what it costs to fetch the whole dump.
type dumpCost struct {
	envoy, text string
	ours        time.Duration // CPU of curl and jq
}

// byHand is what people do today.
const byHand = `curl -s %s/config_dump | jq -r '[.configs[] | select(."@type" | endswith("SecretsConfigDump")) | .dynamic_active_secrets[]? | {name, last_updated}]'`

func (b *bench) curlAndJQ(ctx context.Context, p *pod) (d dumpCost, err error) {
	for _, program := range []string{"curl", "jq"} {
		if _, err := exec.LookPath(program); err != nil {
			return dumpCost{envoy: "no " + program + " here", text: "no " + program + " here"}, nil //nolint:nilerr // the table says so
		}
	}
	before, err := cpu(p.envoy.PID())
	if err != nil {
		return d, err
	}
	command := exec.CommandContext(ctx, "bash", "-o", "pipefail", "-c", fmt.Sprintf(byHand, p.envoy.AdminAddress()))
	out, err := command.Output()
	if err != nil || !strings.Contains(string(out), "default") {
		return d, fmt.Errorf("curl and jq: %w: %s", err, out)
	}
	after, err := cpu(p.envoy.PID())
	if err != nil {
		return d, err
	}
	d.ours = command.ProcessState.UserTime() + command.ProcessState.SystemTime()
	if usage, ok := command.ProcessState.SysUsage().(*syscall.Rusage); ok {
		d.text = fmt.Sprintf("%s, peak %d MiB", ms(d.ours), usage.Maxrss/1024)
	}
	d.envoy = ms(after - before)
	return d, nil
}

// istioctl is given what it would fetch: it has no way to a pod here.
func (b *bench) istioctl(ctx context.Context, p *pod) string {
	path := filepath.Join(b.root, ".neighbours/bin/istioctl")
	if _, err := os.Stat(path); err != nil {
		return "istioctl was not built here"
	}
	before, err := cpu(p.envoy.PID())
	if err != nil {
		return oneLine(err.Error())
	}
	dump, err := get(ctx, p.envoy.AdminAddress()+"/config_dump")
	if err != nil {
		return oneLine(err.Error())
	}
	after, err := cpu(p.envoy.PID())
	if err != nil {
		return oneLine(err.Error())
	}
	file := filepath.Join(b.scratch, "dump.json")
	if err := os.WriteFile(file, []byte(dump), 0o600); err != nil {
		return oneLine(err.Error())
	}
	command := exec.CommandContext(ctx, path, "proxy-config", "secret", "--file", file)
	command.Env = append(os.Environ(), "KUBECONFIG=/dev/null")
	if out, err := command.CombinedOutput(); err != nil {
		return "it cannot read the dump: " + strings.ReplaceAll(oneLine(string(out)), b.scratch, "")
	}
	return fmt.Sprintf("%s of Envoy, %s of its own", ms(after-before), ms(command.ProcessState.UserTime()+command.ProcessState.SystemTime()))
}

// lookCost is what one full look costs the watchdog.
type lookCost struct {
	cpu        time.Duration
	read, peak float64
}

// smallestPeak is the peak of a watchdog in the smallest mesh, by release.
var smallestPeak = make(map[string]float64)

// fullLook lets a watchdog ask everything each second.
func (b *bench) fullLook(ctx context.Context, p *pod) (l lookCost, err error) {
	const looks = 10
	w, err := startWatchdog(ctx, b.watchdog, append(p.flags(), "--envoy.poll-interval=1s", "--envoy.budget=100", "--envoy.sds-cluster=sds-grpc")...)
	if err != nil {
		return l, err
	}
	defer w.stop()
	asked := func() float64 {
		page, err := w.metrics(ctx)
		if err != nil {
			return 0
		}
		return value(page, "svid_watchdog_envoy_admin_seconds_total")
	}
	if err := until(ctx, time.Minute, "the first look", func() bool { return asked() > 0 }); err != nil {
		return l, err
	}
	// The first looks are dearer: connections, and the first use of a type.
	if err := wait(ctx, 3*time.Second); err != nil {
		return l, err
	}
	cpuBefore, err := cpu(w.pid())
	if err != nil {
		return l, err
	}
	before, err := look(w.pid())
	if err != nil {
		return l, err
	}
	// A look comes a second after the one before it has ended.
	cost := asked()
	began := time.Now()
	if err := wait(ctx, looks*time.Second); err != nil {
		return l, err
	}
	elapsed := time.Since(began).Seconds()
	spent := asked() - cost
	n := max(1, elapsed-spent)
	cpuAfter, err := cpu(w.pid())
	if err != nil {
		return l, err
	}
	after, err := look(w.pid())
	if err != nil {
		return l, err
	}
	if _, known := smallestPeak[p.version]; !known {
		smallestPeak[p.version] = after.peak
	}
	return lookCost{
		cpu:  time.Duration(float64(cpuAfter-cpuBefore) / n),
		read: (after.read - before.read) / n,
		peak: max(0, after.peak-smallestPeak[p.version]),
	}, nil
}
