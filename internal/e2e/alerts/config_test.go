package alerts

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"svid-watchdog/internal/e2e/neighbour"
	"svid-watchdog/internal/e2e/prom"
)

// TestAlertmanager: Alertmanager takes the example, and it leads each alert to
// whom its severity says, and those of others nowhere.
func TestAlertmanager(t *testing.T) {
	t.Parallel()
	amtool := neighbour.Installed(t, "amtool", "prometheus-alertmanager")
	run(t, amtool, "check-config", "alertmanager.yaml")
	leads := func(to string, labels ...string) {
		t.Helper()
		run(t, amtool, append([]string{"config", "routes", "test", "--config.file=alertmanager.yaml", "--verify.receivers=" + to}, labels...)...)
	}
	for _, r := range prom.ShippedRules(t).Alerts() {
		to := map[string]string{"critical": "svid-watchdog-pages", "warning": "svid-watchdog-tickets"}[r.Labels["severity"]]
		leads(to, "alertname="+r.Alert, "severity="+r.Labels["severity"], "scope="+r.Labels["scope"])
	}
	leads("others", "alertname=KubePodCrashLooping", "severity=critical")
}

// TestScrapeConfig: a Prometheus with the shipped configuration gives each target
// the labels that the rules rely on. Debian's is built without the discovery of
// Kubernetes, so that the pods come from a file, with the labels that Kubernetes'
// discovery gives them.
func TestScrapeConfig(t *testing.T) {
	t.Parallel()
	promtool := neighbour.Installed(t, "promtool", "prometheus")
	const meta = "__meta_kubernetes_"
	pod := func(name, address, kind, controller string, more map[string]string) map[string]any {
		labels := map[string]string{
			meta + "namespace": "shop", meta + "pod_name": name, meta + "pod_node_name": "node-1", meta + "pod_phase": "Running",
			meta + "pod_container_name": "svid-watchdog", meta + "pod_container_port_number": "9816",
			meta + "pod_container_port_name": "svid-watchdog", meta + "pod_container_init": "true",
		}
		if kind != "" {
			labels[meta+"pod_controller_kind"], labels[meta+"pod_controller_name"] = kind, controller
		}
		maps.Copy(labels, more)
		return map[string]any{"targets": []string{address}, "labels": labels}
	}
	pods := []any{
		pod("front-end-7d4b9c5f6-x2x4z", "127.0.0.1:11", "ReplicaSet", "front-end-7d4b9c5f6", nil),
		pod("carts-db-0", "127.0.0.1:12", "StatefulSet", "carts-db", map[string]string{meta + "pod_container_init": "false"}),
		pod("report-28340520-abcde", "127.0.0.1:13", "Job", "report-28340520", nil),
		pod("migrate-x7x7x", "127.0.0.1:14", "Job", "migrate", nil),
		pod("node-agent-q9q9q", "127.0.0.1:15", "DaemonSet", "node-agent", nil),
		pod("debug", "127.0.0.1:16", "", "", nil),
		pod("other-container", "127.0.0.1:17", "ReplicaSet", "x-1", map[string]string{meta + "pod_container_name": "app"}),
		pod("other-port", "127.0.0.1:18", "ReplicaSet", "x-1", map[string]string{meta + "pod_container_port_number": "8080"}),
		pod("ended", "127.0.0.1:19", "Job", "once", map[string]string{meta + "pod_phase": "Succeeded"}),
		map[string]any{"targets": []string{"127.0.0.1:20"}, "labels": map[string]string{
			meta + "service_label_app_kubernetes_io_name": "kube-state-metrics", meta + "endpoint_port_name": "http",
		}},
	}
	dir := t.TempDir()
	discovered, err := json.Marshal(pods)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"pods.json": string(discovered), "rules.yaml": read(t, "deploy", "prometheus", "rules.yaml")} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	config := read(t, "deploy", "prometheus", "scrape-config.yaml")
	for _, role := range []string{"pod", "endpoints"} {
		discovery := "  kubernetes_sd_configs:\n  - role: " + role + "\n"
		if strings.Count(config, discovery) != 1 {
			t.Fatalf("the configuration does not discover %s once", role)
		}
		config = strings.Replace(config, discovery, "  file_sd_configs: [{files: [pods.json]}]\n", 1)
	}
	file := filepath.Join(dir, "prometheus.yaml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, promtool, "check", "config", file)

	p := prom.StartFile(t, file)
	label := func(pod, workload string) map[string]string {
		return map[string]string{"namespace": "shop", "pod": pod, "workload": workload, "node": "node-1", "job": "svid-watchdog"}
	}
	want := map[string]map[string]string{
		"127.0.0.1:11": label("front-end-7d4b9c5f6-x2x4z", "front-end"),
		"127.0.0.1:12": label("carts-db-0", "carts-db"),
		"127.0.0.1:13": label("report-28340520-abcde", "report"),
		"127.0.0.1:14": label("migrate-x7x7x", "migrate"),
		"127.0.0.1:15": label("node-agent-q9q9q", "node-agent"),
		"127.0.0.1:16": label("debug", "debug"),
		"127.0.0.1:20": {"job": "kube-state-metrics"},
	}
	for address, labels := range want {
		labels["instance"] = address
	}
	var got map[string]map[string]string
	neighbour.Until(t, 20*time.Second, "the targets", func() bool {
		got = make(map[string]map[string]string)
		for _, labels := range p.Targets() {
			got[labels["instance"]] = labels
		}
		return len(got) >= len(want)
	}, p)
	for address, labels := range want {
		if !maps.Equal(got[address], labels) {
			t.Errorf("%s has the labels %v, want %v", address, got[address], labels)
		}
		delete(got, address)
	}
	if len(got) > 0 {
		t.Errorf("scraped though it should not be: %v", got)
	}
}
