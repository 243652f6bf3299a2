package mesh

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// operator is how istiod is installed here, laid over all other settings: the
// API server reaches its webhooks by a URL, since there is no network of
// services; and the Envoys are stock ones, which know no filters of Istio's.
const operator = `apiVersion: install.istio.io/v1alpha1
kind: IstioOperator
spec:
  profile: minimal
  values:
    telemetry: {enabled: false}
    istiodRemote: {injectionURL: "https://localhost:%[1]d/inject"}
    base: {validationURL: "https://localhost:%[1]d/validate"}
`

// manifest renders what istioctl would install with the files, without what
// makes pods for istiod.
func (c *ControlPlane) manifest(ctx context.Context, operators []string) (string, error) {
	own := filepath.Join(c.dir, "istio-operator.yaml")
	if err := os.WriteFile(own, fmt.Appendf(nil, operator, c.ports.istiodWebhook), 0o600); err != nil {
		return "", fmt.Errorf("write the settings of istiod: %w", err)
	}
	args := []string{"manifest", "generate"}
	for _, file := range append(slices.Clone(operators), own) {
		args = append(args, "-f", file)
	}
	cmd := exec.CommandContext(ctx, c.bin("istioctl"), args...) //nolint:gosec // our own program
	// Without a cluster it does not look for one.
	cmd.Env = append(os.Environ(), "KUBECONFIG="+os.DevNull)
	var complaint strings.Builder
	cmd.Stderr = &complaint
	text, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("render the manifest of Istio: %w: %s", err, strings.TrimSpace(complaint.String()))
	}
	var documents []string
	for document := range strings.SplitSeq(string(text), "\n---\n") {
		if !notHere.MatchString(document) {
			documents = append(documents, document)
		}
	}
	return strings.Join(documents, "\n---\n"), nil
}

// notHere are the kinds of the manifest that make pods for istiod, which runs
// here as a process.
var notHere = regexp.MustCompile(`(?m)^kind: (Deployment|HorizontalPodAutoscaler|PodDisruptionBudget|DaemonSet)$`)

func (c *ControlPlane) startIstio(ctx context.Context) error {
	text, err := c.manifest(ctx, c.cfg.Operators)
	if err != nil {
		return err
	}
	if _, err := c.Kubectl(ctx, "", "create", "namespace", "istio-system"); err != nil {
		return err
	}
	if _, err := c.Kubectl(ctx, text, "apply", "--server-side", "-f", "-"); err != nil {
		return fmt.Errorf("install Istio: %w", err)
	}
	address := func(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }
	env := append([]string{
		// The name that its certificate is good for.
		"ISTIOD_CUSTOM_HOST=localhost",
		"POD_NAME=istiod", "POD_NAMESPACE=istio-system", "SERVICE_ACCOUNT=istiod",
		"REVISION=default", "CLUSTER_ID=Kubernetes",
		"INJECTION_WEBHOOK_CONFIG_NAME=istio-sidecar-injector",
		// Filters that a stock Envoy does not know.
		"PILOT_ENABLE_METADATA_EXCHANGE=false", "PILOT_ENABLE_ALPN_FILTER=false",
	}, c.cfg.IstiodEnv...)
	if err := c.run(ctx, c.bin("pilot-discovery"), env, []string{
		"discovery", "--kubeconfig", c.Kubeconfig(),
		"--httpAddr", address(c.ports.istiodHTTP), "--httpsAddr", address(c.ports.istiodWebhook),
		"--grpcAddr", address(c.ports.istiodGRPC), "--secureGRPCAddr", address(c.ports.istiodTLS),
		"--monitoringAddr", address(c.ports.istiodStats), "--ctrlz_port", "0",
		"--shutdownDuration", "1s", "--profile=false",
	}, func(ctx context.Context) error {
		return c.answers(ctx, "http://"+address(c.ports.istiodHTTP)+"/ready")
	}); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	return Await(ctx, "the injection of pods", c.injects)
}

// injects tells whether the API server and istiod's webhook have found each
// other: a pod that asks for it, and is only tried, comes back injected.
func (c *ControlPlane) injects(ctx context.Context) error {
	out, err := c.Kubectl(ctx, `apiVersion: v1
kind: Pod
metadata: {name: injected, namespace: default, labels: {sidecar.istio.io/inject: "true"}, annotations: {inject.istio.io/templates: sidecar}}
spec: {containers: [{name: app, image: app}]}
`, "create", "--dry-run=server", "-o", "yaml", "-f", "-")
	if err != nil {
		return err
	}
	if !strings.Contains(out, "name: istio-proxy") {
		return errors.New("the pod came back as it was sent")
	}
	return nil
}

// injector is the ConfigMap of the injection templates.
const injector = "istio-sidecar-injector"

// Configure gives istiod other files of the kind IstioOperator than it was
// started with, as far as they concern injection and the mesh. istiod reads
// them soon after: Await what they should change.
func (c *ControlPlane) Configure(ctx context.Context, operators ...string) error {
	text, err := c.manifest(ctx, operators)
	if err != nil {
		return err
	}
	var documents []string
	for document := range strings.SplitSeq(text, "\n---\n") {
		if configMap.MatchString(document) {
			documents = append(documents, document)
		}
	}
	if _, err := c.Kubectl(ctx, strings.Join(documents, "\n---\n"), "apply", "--server-side", "--force-conflicts", "-f", "-"); err != nil {
		return fmt.Errorf("configure istiod: %w", err)
	}
	return nil
}

var configMap = regexp.MustCompile(`(?m)^kind: ConfigMap$`)

// StockTemplate is the text of Istio's own injection template `sidecar`.
func (c *ControlPlane) StockTemplate(ctx context.Context) (string, error) {
	config, err := c.Kubectl(ctx, "", "get", "configmap", "-n", "istio-system", injector, "-o", "jsonpath={.data.config}")
	if err != nil {
		return "", err
	}
	_, rest, found := strings.Cut(config, "\n  sidecar: |\n")
	if !found {
		return "", errors.New("the injector's configuration has no template sidecar")
	}
	var template strings.Builder
	for line := range strings.Lines(rest) {
		if strings.TrimSpace(line) != "" && !strings.HasPrefix(line, "    ") {
			break
		}
		template.WriteString(strings.TrimPrefix(line, "    "))
	}
	return template.String(), nil
}
