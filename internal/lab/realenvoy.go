package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"svid-watchdog/internal/child"
	"svid-watchdog/internal/freeport"
)

// RealEnvoyConfig says how to run a real Envoy.
type RealEnvoyConfig struct {
	// Path is the binary.
	Path string
	// SDSSocket is the socket of the identity provider.
	SDSSocket string
	// Dir is where the bootstrap and the log are written.
	Dir string
	// SDSStats lets the sds. statistics through the stats matcher.
	SDSStats bool
	// Permissive gives the listener the shape of PERMISSIVE mutual TLS: only a
	// peer that offers one of Istio's own protocols reaches the certificate, the
	// TLS of others is passed on to the application.
	Permissive bool
	// AllStats lets all statistics through.
	AllStats bool
	// Clusters is how many upstream clusters have a TLS context, 2 if zero.
	Clusters int
	// SecondProvider makes the clusters ask for the secrets by a second
	// configuration source, which is a provider of its own to Envoy.
	SecondProvider bool
	// Reconnect is how long Envoy waits at most before it opens a stream again,
	// its own 30 s if zero.
	Reconnect time.Duration
	// Begin is called with each process before its first instruction; nil for
	// nothing.
	Begin func(pid int) error
}

// RealEnvoy is an Envoy process.
type RealEnvoy struct {
	cfg             RealEnvoyConfig
	version         string
	admin, listener string // host:port

	mu     sync.Mutex
	cmd    *exec.Cmd
	exited <-chan struct{}
}

// startTimeout bounds the start of Envoy: it takes a second, or several on a
// busy machine.
const startTimeout = 30 * time.Second

// NewRealEnvoy looks at the binary and writes the bootstrap; Start starts it.
func NewRealEnvoy(cfg RealEnvoyConfig) (*RealEnvoy, error) {
	if cfg.Clusters == 0 {
		cfg.Clusters = 2
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, cfg.Path, "--version").Output() //nolint:gosec // the user names the binary
	if err != nil {
		return nil, fmt.Errorf("ask %s for its version: %w", cfg.Path, err)
	}
	e := &RealEnvoy{cfg: cfg}
	// "/path/envoy  version: <commit>/1.40.0/Clean/RELEASE/BoringSSL"
	if parts := strings.Split(string(out[strings.LastIndex(string(out), "version:")+1:]), "/"); len(parts) >= 2 {
		e.version = parts[1]
	}
	if e.version == "" {
		return nil, fmt.Errorf("%s does not look like Envoy: it says %q", cfg.Path, out)
	}
	if e.admin, err = freeport.Address(); err != nil {
		return nil, err
	}
	if e.listener, err = freeport.Address(); err != nil {
		return nil, err
	}
	bootstrap, err := json.MarshalIndent(e.bootstrap(), "", " ")
	if err != nil {
		return nil, fmt.Errorf("write Envoy's bootstrap: %w", err)
	}
	if err := os.WriteFile(e.bootstrapPath(), bootstrap, 0o600); err != nil {
		return nil, fmt.Errorf("write Envoy's bootstrap: %w", err)
	}
	return e, nil
}

func (e *RealEnvoy) bootstrapPath() string { return filepath.Join(e.cfg.Dir, "bootstrap.json") }

// LogPath is where Envoy's log goes.
func (e *RealEnvoy) LogPath() string { return filepath.Join(e.cfg.Dir, "envoy.log") }

// Version implements Envoy.
func (e *RealEnvoy) Version() string { return e.version }

// AdminAddress implements Envoy.
func (e *RealEnvoy) AdminAddress() string { return "http://" + e.admin }

// ListenerAddress implements Envoy.
func (e *RealEnvoy) ListenerAddress() string { return e.listener }

// PID is the process, 0 while there is none.
func (e *RealEnvoy) PID() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.cmd == nil {
		return 0
	}
	return e.cmd.Process.Pid
}

type object = map[string]any

// bootstrap has the shape of Istio's where it matters here (istio:
// tools/packaging/common/envoy_bootstrap.json and what istiod adds): the
// cluster sds-grpc, an inbound listener and upstream clusters that take the
// secrets from it, and Istio's stats matcher, which hides the sds. statistics.
func (e *RealEnvoy) bootstrap() object {
	const (
		tlsPackage = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3."
		manager    = "envoy.filters.network.http_connection_manager"
		managerV3  = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
		routerV3   = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
		httpOption = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
	)
	grpc := object{"cluster_name": "sds-grpc"}
	if most := e.cfg.Reconnect; most > 0 {
		grpc["retry_policy"] = object{"retry_back_off": object{
			"base_interval": fmt.Sprintf("%.3fs", (most / 10).Seconds()), "max_interval": fmt.Sprintf("%.3fs", most.Seconds()),
		}}
	}
	sds := object{
		"initial_fetch_timeout": "0s",
		"resource_api_version":  "V3",
		"api_config_source": object{
			"api_type": "GRPC", "transport_api_version": "V3",
			"grpc_services": []any{object{"envoy_grpc": grpc}},
		},
	}
	common := func(source object) object {
		return object{
			"tls_certificate_sds_secret_configs": []any{object{"name": identitySecret, "sds_config": source}},
			"combined_validation_context": object{
				"default_validation_context":           object{},
				"validation_context_sds_secret_config": object{"name": bundleSecret, "sds_config": source},
			},
		}
	}
	upstream := sds
	if e.cfg.SecondProvider {
		// Envoy keys a provider by the bytes of its configuration source.
		upstream = maps.Clone(sds)
		upstream["initial_fetch_timeout"] = "1s"
	}
	transport := func(kind string, source, more object) object {
		config := object{"@type": tlsPackage + kind, "common_tls_context": common(source)}
		maps.Copy(config, more)
		return object{"name": "envoy.transport_sockets.tls", "typed_config": config}
	}
	endpoint := func(name string, address object) object {
		return object{"cluster_name": name, "endpoints": []any{object{"lb_endpoints": []any{object{"endpoint": object{"address": address}}}}}}
	}
	// The application answers by itself. A TCP proxy would not do: it closes
	// the connection in the middle of the handshake when its upstream is not
	// there.
	application := object{
		"@type": managerV3, "stat_prefix": "inbound",
		"http_filters": []any{object{"name": "envoy.filters.http.router", "typed_config": object{"@type": routerV3}}},
		"route_config": object{"virtual_hosts": []any{object{
			"name": "front-end", "domains": []any{"*"},
			"routes": []any{object{
				"match":           object{"prefix": "/"},
				"direct_response": object{"status": 200, "body": object{"inline_string": "Hello from the lab.\n"}},
			}},
		}}},
	}
	clusters := []any{object{
		"name": "sds-grpc", "type": "STATIC", "connect_timeout": "1s", "alt_stat_name": "sds-grpc;",
		"typed_extension_protocol_options": object{httpOption: object{
			"@type":                "type.googleapis.com/" + httpOption,
			"explicit_http_config": object{"http2_protocol_options": object{}},
		}},
		"load_assignment": endpoint("sds-grpc", object{"pipe": object{"path": e.cfg.SDSSocket}}),
	}}
	for i := range e.cfg.Clusters {
		name := fmt.Sprintf("outbound|%d||upstream.lab.test", 8000+i)
		clusters = append(clusters, object{
			"name": name, "type": "STATIC", "connect_timeout": "1s",
			"load_assignment":  endpoint(name, socketAddress("127.0.0.1:1")),
			"transport_socket": transport("UpstreamTlsContext", upstream, nil),
		})
	}
	prefixes := []any{}
	for _, p := range []string{"cluster_manager", "listener_manager", "server", "cluster.xds-grpc"} {
		prefixes = append(prefixes, object{"prefix": p})
	}
	if e.cfg.SDSStats {
		prefixes = append(prefixes, object{"prefix": "sds."})
	}
	chain := object{
		"filters":          []any{object{"name": manager, "typed_config": application}},
		"transport_socket": transport("DownstreamTlsContext", sds, object{"require_client_certificate": true}),
	}
	listener := object{"name": "virtualInbound", "address": socketAddress(e.listener), "filter_chains": []any{chain}}
	if e.cfg.Permissive {
		// istio: pilot/pkg/networking/core/listener_inbound.go
		const (
			inspector = "envoy.filters.listener.tls_inspector"
			proxy     = "envoy.filters.network.tcp_proxy"
		)
		chain["filter_chain_match"] = object{
			"transport_protocol":    "tls",
			"application_protocols": []any{"istio", "istio-peer-exchange", "istio-http/1.0", "istio-http/1.1", "istio-h2"},
		}
		listener["listener_filters"] = []any{object{"name": inspector, "typed_config": object{
			"@type": "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector",
		}}}
		listener["filter_chains"] = []any{chain, object{
			"filter_chain_match": object{"transport_protocol": "tls"},
			"filters": []any{object{"name": proxy, "typed_config": object{
				"@type":       "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
				"stat_prefix": "passthrough", "cluster": "outbound|8000||upstream.lab.test",
			}}},
		}}
	}
	matcher := object{"inclusion_list": object{"patterns": prefixes}}
	if e.cfg.AllStats {
		matcher = object{"reject_all": false}
	}
	return object{
		"node":         object{"id": "sidecar~lab", "cluster": "front-end.shop"},
		"admin":        object{"address": socketAddress(e.admin)},
		"stats_config": object{"stats_matcher": matcher},
		"static_resources": object{
			"clusters":  clusters,
			"listeners": []any{listener},
		},
	}
}

func socketAddress(hostport string) object {
	host, port, err := net.SplitHostPort(hostport)
	if err != nil {
		panic(err) // the address is our own
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		panic(err)
	}
	return object{"socket_address": object{"address": host, "port_value": n}}
}

// Start implements Envoy.
func (e *RealEnvoy) Start(ctx context.Context) error {
	log, err := os.OpenFile(e.LogPath(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("open Envoy's log: %w", err)
	}
	defer log.Close()
	// Not CommandContext: the process lives longer than the call.
	cmd := exec.Command(e.cfg.Path, "-c", e.bootstrapPath(), "--use-dynamic-base-id", "--concurrency", "1", "--log-level", "info") //nolint:gosec,noctx // see above
	cmd.Stdout, cmd.Stderr = log, log
	exited, err := child.StartHeld(cmd, e.cfg.Begin)
	if err != nil {
		return fmt.Errorf("start Envoy %s: %w", e.version, err)
	}
	e.mu.Lock()
	e.cmd, e.exited = cmd, exited
	e.mu.Unlock()
	if err := e.awaitAdmin(ctx, exited); err != nil {
		return errors.Join(err, e.Stop())
	}
	return nil
}

// awaitAdmin waits until the admin interface answers. Envoy may still wait
// for its secrets then.
func (e *RealEnvoy) awaitAdmin(ctx context.Context, exited <-chan struct{}) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	retry := time.NewTicker(50 * time.Millisecond)
	defer retry.Stop()
	for {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, e.AdminAddress()+"/server_info", nil)
		if err != nil {
			return fmt.Errorf("ask Envoy: %w", err)
		}
		if response, err := client.Do(request); err == nil {
			_, err = io.Copy(io.Discard, response.Body)
			response.Body.Close()
			if err == nil && response.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-exited:
			return fmt.Errorf("Envoy %s ended at its start:\n%s", e.version, e.logTail())
		case <-ctx.Done():
			return fmt.Errorf("Envoy %s did not start in time: %w\n%s", e.version, ctx.Err(), e.logTail())
		case <-retry.C:
		}
	}
}

// logTail is the end of Envoy's log.
func (e *RealEnvoy) logTail() string {
	text, err := os.ReadFile(e.LogPath())
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-4000):])
}

func (e *RealEnvoy) signal(s syscall.Signal) error {
	e.mu.Lock()
	cmd := e.cmd
	e.mu.Unlock()
	if cmd == nil {
		return errors.New("Envoy does not run")
	}
	if err := cmd.Process.Signal(s); err != nil {
		return fmt.Errorf("send %s to Envoy: %w", s, err)
	}
	return nil
}

// DrainListeners implements Envoy.
func (e *RealEnvoy) DrainListeners(ctx context.Context) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, e.AdminAddress()+"/drain_listeners", nil)
	if err != nil {
		return fmt.Errorf("drain Envoy's listeners: %w", err)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Do(request)
	if err != nil {
		return fmt.Errorf("drain Envoy's listeners: %w", err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("drain Envoy's listeners: %s", response.Status)
	}
	return nil
}

// Hang implements Envoy.
func (e *RealEnvoy) Hang() error { return e.signal(syscall.SIGSTOP) }

// Resume implements Envoy.
func (e *RealEnvoy) Resume() error { return e.signal(syscall.SIGCONT) }

// Stop implements Envoy.
func (e *RealEnvoy) Stop() error {
	e.mu.Lock()
	cmd, exited := e.cmd, e.exited
	e.cmd = nil
	e.mu.Unlock()
	if cmd == nil {
		return nil
	}
	if err := cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("end Envoy: %w", err)
	}
	<-exited
	return nil
}

// Close implements Envoy.
func (e *RealEnvoy) Close() error { return e.Stop() }
