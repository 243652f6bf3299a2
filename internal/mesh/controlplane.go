package mesh

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"svid-watchdog/internal/freeport"
)

// Config says what to start.
type Config struct {
	// Neighbours is the directory of the programs and of the definitions, as
	// tools/neighbours fills it.
	Neighbours string
	// Istio starts istiod, and has the API server ask its webhooks.
	Istio bool
	// Operators are files of the kind IstioOperator, laid over our own settings
	// one after the other.
	Operators []string
	// IstiodEnv is more environment for istiod, NAME=value.
	IstiodEnv []string
	// Dir is where everything is written; a temporary directory if empty, which
	// Close removes.
	Dir string
	// Log is told what is started; nobody if nil.
	Log *slog.Logger
}

const (
	// startTimeout bounds the start of each program. It is generous: a machine
	// may have other things to do.
	startTimeout = 2 * time.Minute
	pollInterval = 50 * time.Millisecond
	// adminToken is no secret: whoever can read it can only reach a server on
	// loopback that has nothing to lose.
	adminToken = "mesh-admin"
)

// ControlPlane is a running control plane.
type ControlPlane struct {
	cfg   Config
	dir   string
	pki   *pki
	ports ports
	http  *http.Client

	mu       sync.Mutex
	programs []*program
}

// ports are those of the programs, all on loopback.
type ports struct {
	etcd, etcdPeer, api                                           int
	istiodHTTP, istiodWebhook, istiodGRPC, istiodTLS, istiodStats int
}

// Missing names what a control plane takes and is not there. It is nil when
// all is there.
func Missing(cfg Config) error {
	var lacking []string
	names := []string{"bin/kube-apiserver", "bin/kube-controller-manager", "bin/kubectl"}
	if cfg.Istio {
		names = append(names, "bin/pilot-discovery", "bin/istioctl")
	}
	for _, name := range names {
		if _, err := os.Stat(filepath.Join(cfg.Neighbours, name)); err != nil {
			lacking = append(lacking, name)
		}
	}
	if len(lacking) > 0 {
		return fmt.Errorf("no %s in %s: run `tools/neighbours kubernetes istio`", strings.Join(lacking, ", "), cfg.Neighbours)
	}
	if _, err := etcdPath(); err != nil {
		return err
	}
	return nil
}

// Start starts a control plane and returns when it serves: the API server, its
// controllers and, when wanted, the injection of pods.
func Start(ctx context.Context, cfg Config) (*ControlPlane, error) {
	if err := Missing(cfg); err != nil {
		return nil, err
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	c := &ControlPlane{cfg: cfg}
	if err := c.start(ctx); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

func (c *ControlPlane) start(ctx context.Context) error {
	began := time.Now()
	if err := c.prepare(); err != nil {
		return err
	}
	if err := c.startEtcd(ctx); err != nil {
		return err
	}
	if err := c.startAPIServer(ctx); err != nil {
		return err
	}
	if err := c.startControllers(ctx); err != nil {
		return err
	}
	if err := c.installDefinitions(ctx); err != nil {
		return err
	}
	if c.cfg.Istio {
		if err := c.startIstio(ctx); err != nil {
			return err
		}
	}
	c.cfg.Log.Info("the control plane serves", "api_server", c.Server(), "took", time.Since(began).Round(time.Millisecond))
	return nil
}

// prepare makes the directory, the keys, the kubeconfig, and finds free ports.
func (c *ControlPlane) prepare() error {
	c.dir = c.cfg.Dir
	if c.dir == "" {
		dir, err := os.MkdirTemp("", "svid-mesh-")
		if err != nil {
			return fmt.Errorf("make a directory for the control plane: %w", err)
		}
		c.dir = dir
	} else if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return fmt.Errorf("make the directory of the control plane: %w", err)
	}
	dir, err := filepath.Abs(c.dir)
	if err != nil {
		return fmt.Errorf("find the directory of the control plane: %w", err)
	}
	c.dir = dir
	for _, port := range []*int{
		&c.ports.etcd, &c.ports.etcdPeer, &c.ports.api,
		&c.ports.istiodHTTP, &c.ports.istiodWebhook, &c.ports.istiodGRPC, &c.ports.istiodTLS, &c.ports.istiodStats,
	} {
		if *port, err = freeport.Next(); err != nil {
			return err
		}
	}
	if c.pki, err = newPKI(filepath.Join(c.dir, "pki")); err != nil {
		return err
	}
	c.http = c.pki.client()
	return c.writeKubeconfig()
}

// Dir is where the control plane has its files, the logs of the programs among
// them.
func (c *ControlPlane) Dir() string { return c.dir }

// Server is the URL of the API server.
func (c *ControlPlane) Server() string { return fmt.Sprintf("https://127.0.0.1:%d", c.ports.api) }

// Kubeconfig is the path of a kubeconfig for the API server, with all rights.
func (c *ControlPlane) Kubeconfig() string { return filepath.Join(c.dir, "kubeconfig") }

// IstiodAddress is where istiod serves the agents of pods with TLS, to be used
// as discoveryAddress and CA_ADDR; its certificate is good for this name.
func (c *ControlPlane) IstiodAddress() string { return fmt.Sprintf("localhost:%d", c.ports.istiodTLS) }

// Log returns the end of what a program wrote: etcd, kube-apiserver,
// kube-controller-manager or pilot-discovery.
func (c *ControlPlane) Log(name string) string {
	text, err := os.ReadFile(c.logPath(name))
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-8000):])
}

func (c *ControlPlane) logPath(name string) string { return filepath.Join(c.dir, name+".log") }

// Close ends all programs, the last started first, and removes the temporary
// directory.
func (c *ControlPlane) Close() error {
	c.mu.Lock()
	programs := c.programs
	c.programs = nil
	c.mu.Unlock()
	for _, p := range slices.Backward(programs) {
		p.stop()
	}
	if c.cfg.Dir == "" && c.dir != "" {
		if err := os.RemoveAll(c.dir); err != nil {
			return fmt.Errorf("remove the directory of the control plane: %w", err)
		}
	}
	return nil
}

// Ended is closed when one of the programs has ended by itself, and name says
// which one then.
func (c *ControlPlane) Ended() (ended <-chan struct{}, name func() string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	one, which := make(chan struct{}), ""
	var once sync.Once
	for _, p := range c.programs {
		go func() {
			<-p.exited
			once.Do(func() { which = p.name; close(one) })
		}()
	}
	return one, func() string { return which }
}
