package meshtest

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"svid-watchdog/internal/mesh"
)

const (
	templates     = "inject.istio.io/templates"
	nativeSidecar = "sidecar.istio.io/nativeSidecar"
	statsPrefixes = "sidecar.istio.io/statsInclusionPrefixes"
	proxyConfig   = "proxy.istio.io/config"
	socketDir     = "/var/run/secrets/workload-spiffe-uds"
	certsDir      = "/var/run/secrets/workload-spiffe-credentials"
	holdProxy     = `{"holdApplicationUntilProxyStarts": true}`
)

// application is a Deployment that has most of what an application may have,
// so that a template that touches any of it is found out. Probes that are not
// commands are not among it: Istio's own template rewrites them.
func application(namespace string, annotations map[string]string) string {
	return fmt.Sprintf(`{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"web","namespace":%q},"spec":{
"replicas":1,"selector":{"matchLabels":{"app":"web"}},
"template":{"metadata":{"labels":{"app":"web"},"annotations":%s},"spec":{
 "serviceAccountName":"default",
 "initContainers":[{"name":"migrate","image":"web:1","command":["migrate"],"volumeMounts":[{"name":"data","mountPath":"/data"}]}],
 "containers":[
  {"name":"web","image":"web:1","args":["serve"],"ports":[{"name":"http","containerPort":8080}],
   "env":[{"name":"CA_ADDR","value":"mine"},{"name":"POD","valueFrom":{"fieldRef":{"fieldPath":"metadata.name"}}}],
   "resources":{"requests":{"cpu":"100m","memory":"64Mi"},"limits":{"memory":"128Mi"}},
   "securityContext":{"runAsUser":1000,"readOnlyRootFilesystem":false},
   "livenessProbe":{"exec":{"command":["alive"]}},"readinessProbe":{"exec":{"command":["ready"]}},
   "lifecycle":{"preStop":{"exec":{"command":["sleep","5"]}}},
   "volumeMounts":[{"name":"data","mountPath":"/data"}]},
  {"name":"helper","image":"helper:1","volumeMounts":[{"name":"data","mountPath":"/var/run/secrets/workload-spiffe-uds","readOnly":true}]}],
 "volumes":[{"name":"data","emptyDir":{}}]}}}}`, namespace, asJSON(annotations))
}

// deploy has the controllers make a pod of a Deployment in a namespace of its
// own, and returns what came of it.
func deploy(t *testing.T, plane *mesh.ControlPlane, namespace string, injected bool, annotations map[string]string) *pod {
	t.Helper()
	if err := plane.CreateNamespace(t.Context(), namespace, injected); err != nil {
		t.Fatal(err)
	}
	if _, err := plane.Kubectl(t.Context(), application(namespace, annotations), "create", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	pods, err := plane.Pods(t.Context(), namespace, "app=web", 1)
	if err != nil {
		t.Fatal(err)
	}
	p := new(pod)
	if err := json.Unmarshal(pods[0], p); err != nil {
		t.Fatal(err)
	}
	return p
}

// expectation is what must be true of a merged pod.
type expectation struct {
	native, strict, hold bool
	// stats is the wanted annotation.
	stats string
	// handshake is the port of the option, and makes Envoy's user the watchdog's.
	handshake string
}

// variants are the ways in which the templates are put on a pod.
var variants = []struct {
	name        string
	annotations map[string]string
	want        expectation
}{
	{"guarded-native", map[string]string{templates: "sidecar,teleport-sidecar"}, expectation{native: true}},
	{"guarded-classic", map[string]string{templates: "sidecar,teleport-sidecar", nativeSidecar: "false"}, expectation{}},
	{"guarded-native-hold", map[string]string{templates: "sidecar,teleport-sidecar", proxyConfig: holdProxy}, expectation{native: true, hold: true}},
	{"guarded-classic-hold", map[string]string{templates: "sidecar,teleport-sidecar", nativeSidecar: "false", proxyConfig: holdProxy}, expectation{hold: true}},
	{"strict-native", map[string]string{templates: "sidecar,teleport-sidecar,teleport-strict"}, expectation{native: true, strict: true}},
	{"strict-classic", map[string]string{templates: "sidecar,teleport-sidecar,teleport-strict", nativeSidecar: "false"}, expectation{strict: true}},
	{"strict-classic-hold", map[string]string{templates: "sidecar,teleport-sidecar,teleport-strict", nativeSidecar: "false", proxyConfig: holdProxy}, expectation{strict: true, hold: true}},
	{"own-stats", map[string]string{templates: "sidecar,teleport-sidecar", statsPrefixes: "cluster.outbound"}, expectation{native: true, stats: "cluster.outbound"}},
	{"mesh-stats", map[string]string{templates: "sidecar,teleport-sidecar", proxyConfig: `{"proxyStatsMatcher": {"inclusionPrefixes": ["cluster.outbound"]}}`}, expectation{native: true, stats: "none"}},
	{"handshake-native", map[string]string{templates: "sidecar,teleport-sidecar", "svid-watchdog/handshake-port": "8080"}, expectation{native: true, handshake: "8080"}},
	{"handshake-classic", map[string]string{templates: "sidecar,teleport-sidecar", "svid-watchdog/handshake-port": "8080", nativeSidecar: "false"}, expectation{handshake: "8080"}},
	// Over a full copy of Istio's template, which may lack workload-certs.
	{"full-copy-native", map[string]string{templates: "older,teleport-sidecar"}, expectation{native: true}},
	{"full-copy-classic", map[string]string{templates: "older,teleport-sidecar", nativeSidecar: "false"}, expectation{}},
	{"explicit-volume", map[string]string{templates: "explicit,teleport-sidecar"}, expectation{native: true}},
	{"full-copy-strict", map[string]string{templates: "older,teleport-sidecar,teleport-strict"}, expectation{native: true, strict: true}},
}

// TestMergedPods has real controllers make pods of a Deployment, and judges what
// istiod's webhook and the API server make of them. With MERGED_PODS set to a
// directory the pods are written there.
func TestMergedPods(t *testing.T) {
	plane := controlPlane(t)
	submitted := deploy(t, plane, "as-submitted", false, nil)
	stock := map[bool]*pod{
		true:  deploy(t, plane, "stock-native", true, map[string]string{templates: "sidecar"}),
		false: deploy(t, plane, "stock-classic", true, map[string]string{templates: "sidecar", nativeSidecar: "false"}),
	}
	for _, v := range variants {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			p := deploy(t, plane, v.name, true, v.annotations)
			keep(t, plane, v.name)
			judge(t, p, v.want)
			untouched(t, p, submitted)
			onlyOurs(t, p, stock[v.want.native], v.want)
		})
	}
}

// keep writes the merged pods where they are wanted, for people.
func keep(t *testing.T, plane *mesh.ControlPlane, namespace string) {
	t.Helper()
	dir := os.Getenv("MERGED_PODS")
	if dir == "" {
		return
	}
	out, err := plane.Kubectl(t.Context(), "", "get", "pods", "-n", namespace, "-o", "yaml")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, namespace+".yaml"), []byte(out), 0o600); err != nil {
		t.Fatal(err)
	}
}

func judge(t *testing.T, p *pod, want expectation) {
	t.Helper()
	proxy, native := p.container(t, "istio-proxy")
	if native != want.native {
		t.Errorf("istio-proxy is a native sidecar: %t, want %t", native, want.native)
	}
	watchdog, native := p.container(t, "svid-watchdog")
	if native != want.native {
		t.Errorf("the watchdog is a native sidecar: %t, want %t as istio-proxy", native, want.native)
	}
	judgeOrder(t, p, want)
	judgeVolumes(t, p, proxy, watchdog, want)
	judgeWatchdog(t, watchdog, want)

	got := env(t, proxy)
	for name, value := range map[string]string{"PILOT_CERT_PROVIDER": "workloadapi", "CA_ADDR": "unix://" + socketDir + "/socket"} {
		if got[name] != value {
			t.Errorf("istio-proxy has %s=%q, want %q", name, got[name], value)
		}
	}
	if probers := got["ISTIO_KUBE_APP_PROBERS"]; strings.Contains(probers, "svid-watchdog") {
		t.Errorf("Istio's agent probes the watchdog: %s", probers)
	}
	if p.Metadata.Labels["spiffe.io/spire-managed-identity"] != "true" {
		t.Errorf("the labels are %v: the one of the identity is missing", p.Metadata.Labels)
	}
	stats, there := p.Metadata.Annotations[statsPrefixes]
	switch want.stats {
	case "none":
		if there {
			t.Errorf("the annotation %s: %s would replace the list of the mesh", statsPrefixes, stats)
		}
	case "":
		want.stats = "sds."
		fallthrough
	default:
		if stats != want.stats {
			t.Errorf("the annotation %s is %q, want %q", statsPrefixes, stats, want.stats)
		}
	}
}

func judgeOrder(t *testing.T, p *pod, want expectation) {
	t.Helper()
	early, late := "migrate istio-init", "svid-watchdog web helper istio-proxy"
	switch {
	case want.native:
		early, late = "istio-init istio-proxy svid-watchdog migrate", "web helper"
	case want.hold:
		late = "istio-proxy svid-watchdog web helper"
	}
	if got := names(p.Spec.InitContainers); got != early {
		t.Errorf("the init containers are %q, want %q", got, early)
	}
	if got := names(p.Spec.Containers); got != late {
		t.Errorf("the containers are %q, want %q", got, late)
	}
	if init := find(p.Spec.InitContainers, "istio-init"); init != nil && !excludes(init, "9816") {
		t.Errorf("istio-init redirects the port of the watchdog to Envoy: %v", init["args"])
	}
}

// excludes tells whether istio-init leaves an inbound port alone.
func excludes(init object, port string) bool {
	args, _ := init["args"].([]any)
	at := slices.Index(args, any("-d"))
	return at >= 0 && at+1 < len(args) && slices.Contains(strings.Split(args[at+1].(string), ","), port)
}

func judgeVolumes(t *testing.T, p *pod, proxy, watchdog object, want expectation) {
	t.Helper()
	var sockets, certs []object
	for _, v := range p.Spec.Volumes {
		switch {
		case v["csi"] != nil || v["name"] == "workload-socket":
			sockets = append(sockets, v)
		case v["name"] == "workload-certs":
			certs = append(certs, v)
		}
	}
	csi := []object{{"name": "workload-socket", "csi": map[string]any{"driver": "csi.spiffe.io", "readOnly": true}}}
	if asJSON(sockets) != asJSON(csi) {
		t.Errorf("the socket volumes are %s, want exactly %s", asJSON(sockets), asJSON(csi))
	}
	ofProxy, ofWatchdog := mounts(proxy), mounts(watchdog)
	wantMounts := map[string]string{socketDir: "workload-socket ro", certsDir: "workload-certs ro"}
	wantCerts := []object{{"name": "workload-certs", "emptyDir": map[string]any{}}}
	if want.strict {
		delete(wantMounts, certsDir)
		wantCerts = nil
	}
	if asJSON(certs) != asJSON(wantCerts) {
		t.Errorf("the volumes of credential files are %s, want %s", asJSON(certs), asJSON(wantCerts))
	}
	delete(ofWatchdog, "/var/run/secrets/kubernetes.io/serviceaccount")
	if !maps.Equal(ofWatchdog, wantMounts) {
		t.Errorf("the watchdog mounts %v, want %v", ofWatchdog, wantMounts)
	}
	for path, mount := range ofWatchdog {
		if ofProxy[path] != mount {
			t.Errorf("at %s the watchdog sees %q, istio-proxy %q", path, mount, ofProxy[path])
		}
	}
	for path, mount := range ofProxy {
		volume, _, _ := strings.Cut(mount, " ")
		if (volume == "workload-socket" || volume == "workload-certs" || strings.Contains(path, "workload-spiffe")) && wantMounts[path] != mount {
			t.Errorf("istio-proxy mounts %s at %s", mount, path)
		}
	}
}

func judgeWatchdog(t *testing.T, watchdog object, want expectation) {
	t.Helper()
	for _, probe := range []string{"livenessProbe", "readinessProbe", "startupProbe", "lifecycle"} {
		if watchdog[probe] != nil {
			t.Errorf("the watchdog has a %s: %s", probe, asJSON(watchdog[probe]))
		}
	}
	if restarts := watchdog["restartPolicy"]; want.native != (restarts == "Always") {
		t.Errorf("the watchdog's restartPolicy is %v, and native is %t", restarts, want.native)
	}
	user := float64(65532)
	if want.handshake != "" {
		user = 1337
	}
	wanted := object{
		"allowPrivilegeEscalation": false, "privileged": false, "readOnlyRootFilesystem": true, "runAsNonRoot": true,
		"runAsUser": user, "runAsGroup": user,
		"capabilities":   map[string]any{"drop": []any{"ALL"}},
		"seccompProfile": map[string]any{"type": "RuntimeDefault"},
	}
	if got := asJSON(watchdog["securityContext"]); got != asJSON(wanted) {
		t.Errorf("the watchdog's security context is %s, want %s", got, asJSON(wanted))
	}
	resources, _ := watchdog["resources"].(map[string]any)
	if limits, _ := resources["limits"].(map[string]any); limits["memory"] != "32Mi" || limits["cpu"] != nil {
		t.Errorf("the watchdog's limits are %v, want 32Mi of memory and none of the processor", limits)
	}
	address := env(t, watchdog)["SVID_WATCHDOG_HANDSHAKE_ADDRESS"]
	wantAddress := ""
	if want.handshake != "" {
		wantAddress = "$(INSTANCE_IP):" + want.handshake
	}
	if address != wantAddress {
		t.Errorf("the watchdog's handshake address is %q, want %q", address, wantAddress)
	}
	ports := asJSON([]object{{"name": "svid-watchdog", "containerPort": 9816, "protocol": "TCP"}})
	if got := asJSON(list(watchdog, "ports")); got != ports {
		t.Errorf("the watchdog's ports are %s, want %s, which PodMonitor names", got, ports)
	}
}

// untouched compares the application's containers and volumes with those of
// the same Deployment where nothing is injected.
func untouched(t *testing.T, p, submitted *pod) {
	t.Helper()
	for _, name := range []string{"web", "helper", "migrate"} {
		got, _ := p.container(t, name)
		want, _ := submitted.container(t, name)
		if asSubmitted(got) != asSubmitted(want) {
			t.Errorf("the application's container %s is not as submitted:\n got %s\nwant %s", name, asSubmitted(got), asSubmitted(want))
		}
	}
	if got, want := find(p.Spec.Volumes, "data"), find(submitted.Spec.Volumes, "data"); !reflect.DeepEqual(got, want) {
		t.Errorf("the application's volume is %s, as submitted %s", asJSON(got), asJSON(want))
	}
}

// onlyOurs compares the injected containers with those of Istio's template
// alone: there is our container more, and in istio-proxy only the environment
// and the mounts of the identity differ.
func onlyOurs(t *testing.T, p, stock *pod, want expectation) {
	t.Helper()
	got, _ := p.container(t, "istio-proxy")
	plain, _ := stock.container(t, "istio-proxy")
	gotEnv, plainEnv := env(t, got), env(t, plain)
	for _, name := range []string{"PILOT_CERT_PROVIDER", "CA_ADDR", "PROXY_CONFIG"} {
		delete(gotEnv, name)
		delete(plainEnv, name)
	}
	const owner = "ISTIO_META_OWNER" // names the namespace, which is another
	gotEnv[owner] = strings.Replace(gotEnv[owner], "/"+p.Metadata.Namespace+"/", "/"+stock.Metadata.Namespace+"/", 1)
	if !maps.Equal(gotEnv, plainEnv) {
		t.Errorf("istio-proxy has more environment changed than the identity's:\n got %v\nwant %v", gotEnv, plainEnv)
	}
	gotMounts, plainMounts := mounts(got), mounts(plain)
	for _, m := range []map[string]string{gotMounts, plainMounts} {
		for _, path := range []string{socketDir, certsDir} {
			delete(m, path)
		}
		for path, mount := range m {
			if strings.HasPrefix(mount, "kube-api-access-") {
				m[path] = "token" // its volume has a name at random
			}
		}
	}
	if !maps.Equal(gotMounts, plainMounts) {
		t.Errorf("istio-proxy has more mounts changed than the identity's:\n got %v\nwant %v", gotMounts, plainMounts)
	}
	apart := []string{"env", "volumeMounts"}
	if want.hold {
		apart = append(apart, "lifecycle") // the option's own doing
	}
	if a, b := asJSON(got.without(apart...)), asJSON(plain.without(apart...)); a != b {
		t.Errorf("istio-proxy has more changed than environment and mounts:\n got %s\nwant %s", a, b)
	}
}
