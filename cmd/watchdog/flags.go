package main

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"svid-watchdog/internal/watchdog"
)

// envPrefix and the flag's name in upper case, dots and dashes as underscores,
// make a flag's twin in the environment.
const envPrefix = "SVID_WATCHDOG_"

// spiffeEndpointSocket is the address of the Workload API by the SPIFFE
// standard (SPIFFE Workload Endpoint, section 4).
const spiffeEndpointSocket = "SPIFFE_ENDPOINT_SOCKET"

type options struct {
	watchdog  watchdog.Config
	logLevel  slog.Level
	logFormat string
}

func (o *options) handler(w io.Writer) slog.Handler {
	h := &slog.HandlerOptions{Level: o.logLevel}
	if o.logFormat == "json" {
		return slog.NewJSONHandler(w, h)
	}
	return slog.NewTextHandler(w, h)
}

func newFlagSet() *flag.FlagSet {
	f := flag.NewFlagSet("watchdog", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.Usage = func() {}
	return f
}

// podFlags defines the flags that say what to look at and how to judge it.
func podFlags(f *flag.FlagSet, c *watchdog.Config) {
	*c = watchdog.DefaultConfig()
	f.StringVar(&c.CredentialsDir, "credentials.dir", c.CredentialsDir,
		"`directory` whose cert-chain.pem, key.pem and root-cert.pem switch Istio's agent to files")
	f.StringVar(&c.WorkloadAPIAddress, "workload-api.address", c.WorkloadAPIAddress,
		"`address` of the SPIFFE Workload API; without the flag, "+spiffeEndpointSocket+" is used if it is set")
	f.StringVar(&c.EnvoyAdminAddress, "envoy.admin-address", c.EnvoyAdminAddress,
		"`address` of Envoy's admin interface, http://HOST:PORT on loopback or unix:///PATH")
	f.BoolVar(&c.AllowRemoteAdmin, "envoy.allow-remote-admin", c.AllowRemoteAdmin,
		"accept an admin address beyond loopback; whoever reaches an admin interface can stop its Envoy")
	f.DurationVar(&c.PollInterval, "envoy.poll-interval", c.PollInterval,
		"`time` between two looks at Envoy")
	f.Float64Var(&c.BudgetPercent, "envoy.budget", c.BudgetPercent,
		"`percent` of Envoy's time that the looks may take; dear questions are asked the less often")
	f.StringVar(&c.SDSCluster, "envoy.sds-cluster", c.SDSCluster,
		"`name` of Envoy's cluster for SDS")
	f.StringVar(&c.IdentitySecret, "envoy.identity-secret", c.IdentitySecret,
		"`name` of the SDS secret with Envoy's certificate")
	f.StringVar(&c.BundleSecret, "envoy.bundle-secret", c.BundleSecret,
		"`name` of the SDS secret with the trust bundle")
	f.StringVar(&c.HandshakeAddress, "handshake.address", c.HandshakeAddress,
		"`address` of Envoy's inbound listener for TLS handshakes, HOST:PORT; empty makes none")
	f.DurationVar(&c.RotationInterval, "rotation.interval", c.RotationInterval,
		"`time` between two renewals; 0 learns it from the Workload API")
	f.DurationVar(&c.Grace, "rotation.grace", c.Grace,
		"`time` that is left to things that usually heal themselves")
	f.DurationVar(&c.ExpiryMargin, "rotation.expiry-margin", c.ExpiryMargin,
		"`time` that a certificate must have left; 0 means one sixth of its lifetime")
}

// flagSet defines the flags of the contract on o.
func flagSet(o *options) *flag.FlagSet {
	f := newFlagSet()
	c := &o.watchdog
	podFlags(f, c)
	o.logFormat = "logfmt"
	f.StringVar(&c.WebListenAddress, "web.listen-address", c.WebListenAddress,
		"`address` to serve metrics and status on")
	f.StringVar(&c.WebConfigFile, "web.config.file", c.WebConfigFile,
		"`file` with TLS and basic auth, in the format of Prometheus' exporter-toolkit")
	f.BoolVar(&c.WebRuntimeMetrics, "web.runtime-metrics", c.WebRuntimeMetrics,
		"serve the metrics of the Go runtime too")
	f.TextVar(&o.logLevel, "log.level", slog.LevelInfo,
		"`level` of the log: debug, info, warn or error")
	f.StringVar(&o.logFormat, "log.format", o.logFormat,
		"`format` of the log: logfmt or json")
	return f
}

// envName is a flag's twin in the environment.
func envName(flagName string) string {
	return envPrefix + strings.ToUpper(strings.NewReplacer(".", "_", "-", "_").Replace(flagName))
}

// parseFlags reads the environment and then the arguments, which win.
func parseFlags(args, environ []string) (*options, error) {
	o := &options{}
	if err := parse(flagSet(o), &o.watchdog, args, environ); err != nil {
		return nil, err
	}
	if o.logFormat != "logfmt" && o.logFormat != "json" {
		return nil, fmt.Errorf("the log format %q is neither logfmt nor json", o.logFormat)
	}
	return o, nil
}

func parse(f *flag.FlagSet, c *watchdog.Config, args, environ []string) error {
	env := make(map[string]string, len(environ))
	for _, e := range environ {
		name, value, _ := strings.Cut(e, "=")
		env[name] = value
	}
	if socket := env[spiffeEndpointSocket]; socket != "" {
		c.WorkloadAPIAddress = socket
	}
	// Other variables with the prefix are no error: Kubernetes makes some for
	// a Service that is named svid-watchdog.
	var bad error
	f.VisitAll(func(fl *flag.Flag) {
		name := envName(fl.Name)
		value, ok := env[name]
		if !ok || bad != nil {
			return
		}
		if err := f.Set(fl.Name, value); err != nil {
			bad = fmt.Errorf("the environment variable %s has a bad value %q: %w", name, value, err)
		}
	})
	if bad != nil {
		return bad
	}
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	return nil
}

// printFlags writes the flags for people: what each means, its default, and
// its twin in the environment.
func printFlags(w io.Writer, command string, flags *flag.FlagSet) {
	fmt.Fprintf(w, "Flags of %s (each can also be set by the environment variable named below it):\n", command)
	flags.VisitAll(func(f *flag.Flag) {
		kind, text := flag.UnquoteUsage(f)
		line := "  --" + f.Name
		if kind != "" {
			line += " " + strings.ToUpper(kind)
		}
		fmt.Fprintf(w, "%s\n      %s", line, text)
		if isZero := f.DefValue == "" || f.DefValue == "false" || f.DefValue == "0s"; !isZero {
			fmt.Fprintf(w, " (default %s)", shorten(f.DefValue))
		}
		fmt.Fprintf(w, "\n      %s\n", envName(f.Name))
	})
}

// shorten writes the duration 1m30s as it is, and 1h0m0s as 1h.
func shorten(value string) string {
	d, err := time.ParseDuration(value)
	if err != nil {
		return value
	}
	s := []byte(d.String())
	if bytes.HasSuffix(s, []byte("m0s")) {
		s = s[:len(s)-2]
	}
	if bytes.HasSuffix(s, []byte("h0m")) {
		s = s[:len(s)-2]
	}
	return string(s)
}
