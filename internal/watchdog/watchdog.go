// Package watchdog assembles the sources, the ledger and the reports into the
// running watchdog. Data flows one way: the sources record evidence in the
// ledger, a judge turns it into a verdict, and the reports ask for verdicts.
//
// The HTTP server listens from New on and is the first to run, since the
// metrics must answer above all when nothing else does.
package watchdog

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"golang.org/x/sync/errgroup"

	"svid-watchdog/internal/certificate"
	"svid-watchdog/internal/envoy"
	"svid-watchdog/internal/fswatch"
	"svid-watchdog/internal/handshake"
	"svid-watchdog/internal/metrics"
	"svid-watchdog/internal/rotation"
	"svid-watchdog/internal/svid"
	"svid-watchdog/internal/web"
)

// Config is the configuration of the running watchdog. The flags of the
// contract map one to one.
type Config struct {
	CredentialsDir     string
	WorkloadAPIAddress string

	EnvoyAdminAddress string
	// AllowRemoteAdmin admits an EnvoyAdminAddress beyond loopback.
	AllowRemoteAdmin bool
	PollInterval     time.Duration
	// BudgetPercent is the share of Envoy's time that may be spent on us.
	BudgetPercent                            float64
	SDSCluster, IdentitySecret, BundleSecret string

	// HandshakeAddress is HOST:PORT of Envoy's listener, empty for no
	// handshakes.
	HandshakeAddress string

	// RotationInterval is 0 to learn it, ExpiryMargin 0 for a sixth of the
	// certificate's lifetime.
	RotationInterval, Grace, ExpiryMargin time.Duration

	// StreamBackoff bounds the pause before a Workload API stream is opened
	// again, AnswerTimeout the wait for its first answer; 0 for the defaults
	// of package svid. They are no flags: only a lab, where an hour is a
	// minute, has a use for others.
	StreamBackoff, AnswerTimeout time.Duration

	// NoSVID keeps the Workload API from being asked for SVIDs. It is no flag
	// of the daemon, only of a check.
	NoSVID bool

	WebListenAddress  string
	WebConfigFile     string
	WebRuntimeMetrics bool

	Build metrics.Build
}

// DefaultConfig is the contract's defaults.
func DefaultConfig() Config {
	return Config{
		CredentialsDir:     "/var/run/secrets/workload-spiffe-credentials",
		WorkloadAPIAddress: "unix:///var/run/secrets/workload-spiffe-uds/socket",
		EnvoyAdminAddress:  "http://127.0.0.1:15000",
		PollInterval:       15 * time.Second,
		BudgetPercent:      0.5,
		SDSCluster:         "sds-grpc",
		IdentitySecret:     "default",
		BundleSecret:       "ROOTCA",
		Grace:              90 * time.Second,
		WebListenAddress:   ":9816",
	}
}

// validate says in one sentence what is wrong with the configuration.
func (c Config) validate() error {
	switch {
	case c.CredentialsDir == "":
		return fmt.Errorf("the credentials directory must not be empty")
	case c.PollInterval < 100*time.Millisecond:
		return fmt.Errorf("the poll interval %s is shorter than 100ms", c.PollInterval)
	case c.BudgetPercent <= 0 || c.BudgetPercent > 100:
		return fmt.Errorf("the budget %g is not a percentage between 0 and 100", c.BudgetPercent)
	case c.Grace < 0 || c.RotationInterval < 0 || c.ExpiryMargin < 0:
		return fmt.Errorf("the grace, the rotation interval and the expiry margin must not be negative")
	case c.SDSCluster == "" || c.IdentitySecret == "" || c.BundleSecret == "":
		return fmt.Errorf("the names of the SDS cluster and the secrets must not be empty")
	case c.IdentitySecret == c.BundleSecret:
		return fmt.Errorf("the identity secret and the bundle secret cannot both be named %q", c.IdentitySecret)
	}
	return nil
}

// Watchdog is a watchdog that listens, and works while Run runs.
type Watchdog struct {
	*observer

	web *web.Server
}

// observer is the watchdog without its server: the sources and the monitor
// that they record in.
type observer struct {
	*monitor

	files *fswatch.Watcher
	svid  *svid.Client
	envoy *envoy.Client
	// handshake is nil when it is off.
	handshake *handshake.Prober
	noSVID    bool
}

func newObserver(cfg Config, oneLook bool, log *slog.Logger) (*observer, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	w := &observer{noSVID: cfg.NoSVID, monitor: newMonitor(rotation.Config{
		Interval: cfg.RotationInterval,
		Grace:    cfg.Grace,
		Margin:   cfg.ExpiryMargin,
		Verify:   certificate.Verify,

		Handshake:     cfg.HandshakeAddress != "",
		NoWorkloadAPI: cfg.NoSVID,
		OneLook:       oneLook,
	}, log)}
	w.files = fswatch.New(fswatch.Config{
		Dir: cfg.CredentialsDir,
		Log: log.With("source", string(rotation.SourceCredentialFiles)),
		Observe: func(f rotation.CredentialFiles) {
			w.record(func(l *rotation.Ledger) { l.RecordFiles(f) })
		},
	})
	var err error
	w.envoy, err = envoy.New(envoy.Config{
		Address:        cfg.EnvoyAdminAddress,
		AllowRemote:    cfg.AllowRemoteAdmin,
		SDSCluster:     cfg.SDSCluster,
		IdentitySecret: cfg.IdentitySecret,
		BundleSecret:   cfg.BundleSecret,
		PollInterval:   cfg.PollInterval,
		BudgetPercent:  cfg.BudgetPercent,
		Log:            log.With("source", string(rotation.SourceEnvoyAdmin)),
		Observe: func(o rotation.Envoy) {
			loaded := w.loaded()
			w.record(func(l *rotation.Ledger) { l.RecordEnvoy(o) })
			if w.handshake != nil && w.loaded() != loaded {
				w.handshake.Nudge()
			}
		},
	})
	if err != nil {
		return nil, err
	}
	if cfg.HandshakeAddress != "" {
		w.handshake, err = handshake.New(handshake.Config{
			Address:  cfg.HandshakeAddress,
			Interval: cfg.PollInterval,
			Log:      log.With("source", string(rotation.SourceHandshake)),
			Observe: func(h rotation.Handshake) {
				w.record(func(l *rotation.Ledger) { l.RecordHandshake(h) })
			},
		})
		if err != nil {
			return nil, err
		}
	}
	w.svid, err = svid.New(svid.Config{
		Address:       cfg.WorkloadAPIAddress,
		BackoffMax:    cfg.StreamBackoff,
		AnswerTimeout: cfg.AnswerTimeout,
		Log:           log.With("source", string(rotation.SourceWorkloadAPI)),
		State: func(s rotation.WorkloadAPI) {
			w.record(func(l *rotation.Ledger) { l.RecordWorkloadAPI(s) })
		},
		Issued: func(i rotation.Issuance) {
			w.record(func(l *rotation.Ledger) { l.RecordIssuance(i) })
			w.envoy.Nudge()
		},
	})
	if err != nil {
		return nil, err
	}
	return w, nil
}

// start runs the sources and the judge in a group.
func (w *observer) start(ctx context.Context, group *errgroup.Group) {
	group.Go(func() error { return w.judge(ctx) })
	group.Go(func() error { return w.files.Run(ctx) })
	if !w.noSVID {
		group.Go(func() error { return w.svid.Run(ctx) })
	}
	group.Go(func() error { return w.envoy.Run(ctx) })
	if w.handshake != nil {
		group.Go(func() error { return w.handshake.Run(ctx) })
	}
}

// New checks the configuration and listens. Its errors are those of the
// user: bad addresses, a bad web configuration, a port that is taken.
func New(cfg Config, log *slog.Logger) (*Watchdog, error) {
	o, err := newObserver(cfg, false, log)
	if err != nil {
		return nil, err
	}
	w := &Watchdog{observer: o}
	w.web, err = web.New(web.Config{
		ListenAddress: cfg.WebListenAddress,
		ConfigFile:    cfg.WebConfigFile,
		Verdict:       w.Verdict,
		Ready:         w.ready,
		Registry: metrics.NewRegistry(metrics.Config{
			Verdict:        w.Verdict,
			Build:          cfg.Build,
			IdentitySecret: cfg.IdentitySecret,
			BundleSecret:   cfg.BundleSecret,
			Runtime:        cfg.WebRuntimeMetrics,
		}),
		Version: cfg.Build.Version,
		Log:     log.With("component", "web"),
	})
	if err != nil {
		return nil, err
	}
	return w, nil
}

// Address is where the HTTP server listens, as host:port.
func (w *Watchdog) Address() string { return w.web.Address() }

// Run watches until ctx ends, and then returns nil. A neighbour that fails is
// evidence; an error is a failure of our own and ends all.
func (w *Watchdog) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	// The server first: what follows may block, and that must be seen.
	group.Go(func() error { return w.web.Run(ctx) })
	w.start(ctx, group)
	return group.Wait()
}
