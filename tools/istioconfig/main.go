// Command istioconfig writes the settings of Istio in deploy/istio, in the form
// of Helm values and in that of an IstioOperator, out of the injection
// templates there: both say the same, and a template is text that can be read.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

func main() {
	if err := write("deploy/istio"); err != nil {
		fmt.Fprintln(os.Stderr, "istioconfig:", err)
		os.Exit(1)
	}
}

func write(dir string) error {
	files, err := render(dir)
	if err != nil {
		return err
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil { //nolint:gosec // for everybody to read
			return fmt.Errorf("write %s: %w", name, err)
		}
	}
	return nil
}

const head = "# Written by `make deploy`, out of the templates beside it.\n"

const operatorHead = head + `# Install it with ` + "`istioctl install -f`" + `, after the file of your own mesh.
apiVersion: install.istio.io/v1alpha1
kind: IstioOperator
metadata:
  name: svid-watchdog
  namespace: istio-system
spec:
  values:
`

const helmHead = head + `# Values of the chart istiod: ` + "`helm upgrade --reuse-values -f`" + `.
`

const settings = `global:
  proxy:
    # The port of the watchdog is not redirected to Envoy: its metrics can be
    # read when mTLS is broken. The pod's own annotation
    # traffic.sidecar.istio.io/excludeInboundPorts replaces this list.
    excludeInboundPorts: "9816"
sidecarInjectorWebhook:
  # For all injected pods that choose no templates by an annotation:
  # defaultTemplates: [sidecar, teleport-sidecar]
  templates:
`

// render returns the files, by their names.
func render(dir string) (map[string]string, error) {
	var values strings.Builder
	values.WriteString(settings)
	for _, name := range []string{"teleport-sidecar", "teleport-strict"} {
		template, err := os.ReadFile(filepath.Join(dir, name+".tpl"))
		if err != nil {
			return nil, fmt.Errorf("read the template %s: %w", name, err)
		}
		fmt.Fprintf(&values, "    %s: |\n%s", name, indent(string(template), 6))
	}
	return map[string]string{
		"istio-config.yaml": operatorHead + indent(values.String(), 4),
		"values.yaml":       helmHead + values.String(),
	}, nil
}

// indent moves each line to the right that has something on it.
func indent(text string, by int) string {
	var moved strings.Builder
	for line := range strings.Lines(text) {
		if strings.TrimSpace(line) != "" {
			moved.WriteString(strings.Repeat(" ", by))
		}
		moved.WriteString(line)
	}
	return moved.String()
}
