package mesh

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// etcdPath finds etcd, which is Debian's.
func etcdPath() (string, error) {
	path, err := exec.LookPath("etcd")
	if err != nil {
		return "", errors.New("no etcd here: apt-get install etcd-server")
	}
	return path, nil
}

func (c *ControlPlane) bin(name string) string { return filepath.Join(c.neighbours(), "bin", name) }

// neighbours is absolute, since the programs run in a directory of their own.
func (c *ControlPlane) neighbours() string {
	path, err := filepath.Abs(c.cfg.Neighbours)
	if err != nil {
		return c.cfg.Neighbours
	}
	return path
}

func (c *ControlPlane) startEtcd(ctx context.Context) error {
	path, err := etcdPath()
	if err != nil {
		return err
	}
	client, peer := fmt.Sprintf("http://127.0.0.1:%d", c.ports.etcd), fmt.Sprintf("http://127.0.0.1:%d", c.ports.etcdPeer)
	return c.run(ctx, path, nil, []string{
		"--data-dir", filepath.Join(c.dir, "etcd"),
		"--listen-client-urls", client, "--advertise-client-urls", client,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "default=" + peer,
		// What it keeps need not outlive the machine.
		"--unsafe-no-fsync",
	}, func(ctx context.Context) error { return c.answers(ctx, client+"/health") })
}

func (c *ControlPlane) startAPIServer(ctx context.Context) error {
	tokens := filepath.Join(c.dir, "tokens.csv")
	if err := os.WriteFile(tokens, []byte(adminToken+",admin,admin,system:masters\n"), 0o600); err != nil {
		return fmt.Errorf("write the API server's tokens: %w", err)
	}
	return c.run(ctx, c.bin("kube-apiserver"), nil, []string{
		fmt.Sprintf("--etcd-servers=http://127.0.0.1:%d", c.ports.etcd),
		"--bind-address=127.0.0.1", fmt.Sprintf("--secure-port=%d", c.ports.api),
		// Nobody is told of this address: it is for documentation, and keeps the
		// server from looking for a network of the machine.
		"--advertise-address=192.0.2.1", "--endpoint-reconciler-type=none",
		"--tls-cert-file=" + c.pki.certFile, "--tls-private-key-file=" + c.pki.keyFile,
		"--cert-dir=" + filepath.Join(c.dir, "pki"),
		"--token-auth-file=" + tokens, "--authorization-mode=RBAC",
		"--service-cluster-ip-range=10.96.0.0/16",
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=" + c.pki.tokenKeyFile, "--service-account-signing-key-file=" + c.pki.tokenKeyFile,
		"--enable-priority-and-fairness=false", "--profiling=false",
	}, func(ctx context.Context) error { return c.answers(ctx, c.Server()+"/readyz") })
}

// controllers are those of a cluster that need neither nodes nor a network.
var controllers = []string{
	"deployment-controller", "replicaset-controller", "statefulset-controller", "daemonset-controller",
	"job-controller", "cronjob-controller", "namespace-controller", "garbage-collector-controller",
	"serviceaccount-controller", "serviceaccount-token-controller", "root-ca-certificate-publisher-controller",
	"endpoints-controller", "endpointslice-controller",
	"clusterrole-aggregation-controller",
}

func (c *ControlPlane) startControllers(ctx context.Context) error {
	return c.run(ctx, c.bin("kube-controller-manager"), nil, []string{
		"--kubeconfig=" + c.Kubeconfig(),
		"--controllers=" + strings.Join(controllers, ","),
		"--leader-elect=false",
		"--root-ca-file=" + c.pki.caFile, "--service-account-private-key-file=" + c.pki.tokenKeyFile,
		// It serves nobody.
		"--secure-port=0",
	}, func(ctx context.Context) error {
		// The controllers work when pods could be made in the first namespace.
		return c.answers(ctx, c.Server()+"/api/v1/namespaces/default/serviceaccounts/default")
	})
}

// installDefinitions makes the kinds of the Prometheus operator known.
func (c *ControlPlane) installDefinitions(ctx context.Context) error {
	dir := filepath.Join(c.neighbours(), "crds")
	if files, err := filepath.Glob(filepath.Join(dir, "*.yaml")); err != nil || len(files) == 0 {
		return fmt.Errorf("no definitions of PodMonitor and PrometheusRule in %s: run `tools/neighbours kubernetes`", dir)
	}
	if _, err := c.Kubectl(ctx, "", "apply", "--server-side", "-f", dir); err != nil {
		return err
	}
	_, err := c.Kubectl(ctx, "", "wait", "--for=condition=Established", "--timeout=60s", "-f", dir)
	return err
}

// answers tells whether a URL answers with 200.
func (c *ControlPlane) answers(ctx context.Context, url string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return fmt.Errorf("ask %s: %w", url, err)
	}
	if strings.HasPrefix(url, c.Server()) {
		request.Header.Set("Authorization", "Bearer "+adminToken)
	}
	response, err := c.http.Do(request)
	if err != nil {
		return fmt.Errorf("ask %s: %w", url, err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 4096))
	if err != nil {
		return fmt.Errorf("read the answer of %s: %w", url, err)
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answered %s: %s", url, response.Status, bytes.TrimSpace(body))
	}
	return nil
}

func (c *ControlPlane) writeKubeconfig() error {
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters:
- name: mesh
  cluster: {server: %q, certificate-authority: %q}
users:
- name: admin
  user: {token: %q}
contexts:
- name: mesh
  context: {cluster: mesh, user: admin}
current-context: mesh
`, c.Server(), c.pki.caFile, adminToken)
	if err := os.WriteFile(c.Kubeconfig(), []byte(text), 0o600); err != nil {
		return fmt.Errorf("write the kubeconfig: %w", err)
	}
	return nil
}

// KubectlPath is the kubectl of the API server's version.
func (c *ControlPlane) KubectlPath() string { return c.bin("kubectl") }

// Kubectl runs kubectl with all rights and returns what it printed. What it
// said on standard error is in the error.
func (c *ControlPlane) Kubectl(ctx context.Context, stdin string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, c.KubectlPath(), args...) //nolint:gosec // our own program
	cmd.Env = append(os.Environ(), "KUBECONFIG="+c.Kubeconfig(), "KUBECACHEDIR="+filepath.Join(c.dir, "cache"))
	cmd.Stdin = strings.NewReader(stdin)
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(complaint.String()))
	}
	return out.String(), nil
}
