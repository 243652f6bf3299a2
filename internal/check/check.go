// Package check answers the question of a person, or a script, at a pod: does
// rotation work here? It gets a verdict, from the watchdog of the pod or by a
// look of its own, says what follows from it, and also what it cannot tell.
package check

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"

	securejoin "github.com/cyphar/filepath-securejoin"

	"svid-watchdog/internal/rotation"
	"svid-watchdog/internal/watchdog"
	"svid-watchdog/internal/web"
)

// Exit codes of the contract.
const (
	ExitHealthy    = 0
	ExitProblem    = 1
	ExitCannotTell = 2
)

// Config says what to look at and how.
type Config struct {
	// Pod is what the daemon would be given. NoSVID leaves the Workload API
	// stream out.
	Pod watchdog.Config
	// Root shifts the paths of files and sockets, "" for no shift: for example
	// /proc/1/root, the files of another container.
	Root string
	// Watch is how long to stay, 0 for one look.
	Watch time.Duration
	// Timeout is how long to wait for all answers.
	Timeout time.Duration
	// WatchdogAddress is where to ask the watchdog of the pod first, as a URL
	// without path; "" looks without asking.
	WatchdogAddress string
	Version         string
}

// ToldBy is where a verdict comes from.
type ToldBy string

// Where a verdict comes from.
const (
	// ByLook: one look of this process.
	ByLook ToldBy = "look"
	// ByWatch: this process watched for a while.
	ByWatch ToldBy = "watch"
	// ByWatchdog: the watchdog of the pod was asked.
	ByWatchdog ToldBy = "watchdog"
)

// Report is the document of check --json. Its schema is docs/check.schema.json.
type Report struct {
	// SchemaVersion grows when a field changes its meaning or goes.
	SchemaVersion int    `json:"schema_version"`
	Version       string `json:"version"`
	ToldBy        ToldBy `json:"told_by"`
	// WatchdogVersion is the version of the watchdog that was asked, and
	// WatchdogError why the one that was found could not be.
	WatchdogVersion string `json:"watchdog_version,omitempty"`
	WatchdogError   string `json:"watchdog_error,omitempty"`
	// TookSeconds is how long it took to get the verdict.
	TookSeconds float64 `json:"took_seconds"`
	ExitCode    int     `json:"exit_code"`
	// NextStart says what Istio's agent will do when it next starts.
	NextStart   string      `json:"agent_next_start"`
	Credentials Credentials `json:"credentials"`
	// CannotTell lists what this verdict leaves open.
	CannotTell []string         `json:"cannot_tell"`
	Verdict    rotation.Verdict `json:"verdict"`
}

// schemaVersion of [Report].
const schemaVersion = 1

// Run gets a verdict. The error is about the configuration.
func Run(ctx context.Context, cfg Config) (Report, error) {
	began := time.Now()
	r := Report{SchemaVersion: schemaVersion, Version: cfg.Version, CannotTell: []string{}}
	if err := cfg.shift(); err != nil {
		return Report{}, err
	}
	if cfg.Watch == 0 && cfg.WatchdogAddress != "" {
		switch status, err := ask(ctx, cfg.WatchdogAddress, cfg.Timeout); {
		case err == nil:
			r.ToldBy, r.WatchdogVersion, r.Verdict = ByWatchdog, status.Version, status.Verdict
		case !errors.Is(err, errNobody):
			r.WatchdogError = err.Error()
		}
	}
	if r.ToldBy == "" {
		var err error
		if cfg.Watch > 0 {
			r.ToldBy = ByWatch
			r.Verdict, err = watchdog.Watch(ctx, cfg.Pod, cfg.Watch)
		} else {
			r.ToldBy = ByLook
			looking, cancel := context.WithTimeout(ctx, cfg.Timeout)
			r.Verdict, err = watchdog.Look(looking, cfg.Pod)
			cancel()
		}
		if err != nil {
			return Report{}, err
		}
	}
	r.TookSeconds = time.Since(began).Round(time.Millisecond).Seconds()
	r.conclude(cfg.Pod)
	return r, nil
}

// shift moves the paths below the root. Symbolic links are followed as a
// process in there would: /var/run is an absolute one in many images.
func (cfg *Config) shift() error {
	if cfg.Root == "" {
		return nil
	}
	if !filepath.IsAbs(cfg.Root) {
		return fmt.Errorf("the root %q is not an absolute path", cfg.Root)
	}
	dir, err := securejoin.SecureJoin(cfg.Root, cfg.Pod.CredentialsDir)
	if err != nil {
		return fmt.Errorf("look for the credentials directory below %s: %w", cfg.Root, err)
	}
	cfg.Pod.CredentialsDir = dir
	for _, address := range []*string{&cfg.Pod.WorkloadAPIAddress, &cfg.Pod.EnvoyAdminAddress} {
		u, err := url.Parse(*address)
		if err != nil || u.Scheme != "unix" || u.Path == "" {
			continue // a network address, or a bad one, about which others complain
		}
		if u.Path, err = securejoin.SecureJoin(cfg.Root, u.Path); err != nil {
			return fmt.Errorf("look for the socket of %s below %s: %w", *address, cfg.Root, err)
		}
		*address = u.String()
	}
	return nil
}

// errNobody: there is no watchdog to ask.
var errNobody = errors.New("no watchdog answers")

// maxStatus bounds the answer of a watchdog, in bytes. A hundred events take
// some 30 KB.
const maxStatus = 4 << 20

// askTimeout is how long a watchdog, which answers from memory, may take.
const askTimeout = 2 * time.Second

// ask gets the status of the watchdog that runs in the pod.
func ask(ctx context.Context, address string, timeout time.Duration) (web.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, min(timeout, askTimeout))
	defer cancel()
	target := strings.TrimSuffix(address, "/") + "/api/v1/status"
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return web.Status{}, fmt.Errorf("ask the watchdog at %s: %w", address, err)
	}
	client := &http.Client{
		Transport: &http.Transport{DisableKeepAlives: true},
		// It never redirects; whoever does is not a watchdog.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	response, err := client.Do(request)
	if err != nil {
		return web.Status{}, fmt.Errorf("%w: %w", errNobody, err)
	}
	defer response.Body.Close()
	switch {
	case response.StatusCode == http.StatusUnauthorized:
		return web.Status{}, fmt.Errorf("the watchdog at %s wants a password", address)
	case response.StatusCode == http.StatusBadRequest:
		return web.Status{}, fmt.Errorf("the watchdog at %s wants TLS", address)
	case response.StatusCode != http.StatusOK:
		return web.Status{}, fmt.Errorf("what listens at %s is no watchdog: it answers %s", address, response.Status)
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, maxStatus))
	if err != nil {
		return web.Status{}, fmt.Errorf("read the status of the watchdog at %s: %w", address, err)
	}
	status, err := readStatus(body)
	if err != nil {
		return web.Status{}, fmt.Errorf("read the status of the watchdog at %s: %w", address, err)
	}
	return status, nil
}

// readStatus reads a watchdog's status, which may be of another version: what
// it does not say is not known.
func readStatus(body []byte) (web.Status, error) {
	var status web.Status
	if err := json.Unmarshal(body, &status); err != nil {
		return web.Status{}, err
	}
	if !slices.Contains(rotation.States(), status.State) || status.At.IsZero() {
		return web.Status{}, fmt.Errorf("it is not the status of a watchdog: its state is %q", status.State)
	}
	for _, s := range status.Stages {
		if s.Certificate != nil && (s.AgeSeconds == nil || s.RemainingSeconds == nil) {
			return web.Status{}, fmt.Errorf("it says nothing of the age of the certificate at stage %q", s.Stage)
		}
	}
	return status, nil
}

// conclude says what follows from the verdict.
func (r *Report) conclude(pod watchdog.Config) {
	v := r.Verdict
	switch v.State {
	case rotation.Healthy:
		r.ExitCode = ExitHealthy
	case rotation.Degraded, rotation.Broken:
		r.ExitCode = ExitProblem
	default:
		r.ExitCode = ExitCannotTell
	}
	if v.NextStart == "" { // a watchdog of an older version was asked
		r.Verdict.NextStart = v.IdentityMode.NextStart()
	}
	r.NextStart = r.Verdict.NextStart.Sentence()
	r.Credentials = credentials(r.Verdict)
	r.CannotTell = append(r.CannotTell, openQuestions(r.ToldBy, pod, v)...)
}
