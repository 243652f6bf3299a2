package pod

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// object is a part of a manifest.
type object = map[string]any

// list is a list of objects in an object.
func list(o object, key string) []object {
	var all []object
	values, _ := o[key].([]any)
	for _, v := range values {
		all = append(all, v.(object))
	}
	return all
}

// node is what a kubelet would know and do.
type node struct {
	t   *testing.T
	dir string // of the pod's volumes
	// socketDir is where the identity provider has its socket.
	socketDir string
	podIP     string
	// token is istio-proxy's service account token for istiod, rootCert what it
	// knows istiod by.
	token, rootCert string
	// pace is environment for the watchdog, since an hour takes a minute here.
	pace map[string]string
}

// forPodman returns the merged pod as podman can run it. These are all changes,
// each with its reason; the rest stays as the API server has it.
func (n node) forPodman(merged []byte) []byte {
	n.t.Helper()
	var pod object
	if err := json.Unmarshal(merged, &pod); err != nil {
		n.t.Fatal(err)
	}
	metadata, spec := pod["metadata"].(object), pod["spec"].(object)

	// podman does not read what the API server and the scheduler added for
	// themselves.
	changed := object{
		"apiVersion": "v1", "kind": "Pod",
		"metadata": object{
			"name": metadata["name"], "labels": metadata["labels"],
			// podman forgets its init containers after their first run, which is
			// when the pod is made and has no network yet.
			"annotations": object{"io.podman.annotations.init.container.type": "always"},
		},
	}
	// podman gives an emptyDir to root and knows neither csi nor projected, and
	// there is no kubelet that writes the others.
	var volumes []any
	dropped := make(map[any]bool)
	for _, v := range list(spec, "volumes") {
		name := v["name"].(string)
		path := filepath.Join(n.dir, name)
		switch {
		case v["csi"] != nil: // the driver mounts the provider's directory
			path = n.socketDir
		case v["emptyDir"] != nil:
			n.mkdir(path, 0o777)
		case name == "istio-token":
			n.file(path, "istio-token", n.token)
		case name == "istiod-ca-cert":
			n.file(path, "root-cert.pem", n.rootCert)
		case name == "istio-podinfo":
			n.file(path, "labels", quoted(metadata["labels"]))
			n.file(path, "annotations", quoted(metadata["annotations"]))
		case name == "istio-ca-crl": // optional, and not there
			n.mkdir(path, 0o755)
		case strings.HasPrefix(name, "kube-api-access-"): // nobody here asks the API server
			dropped[name] = true
			continue
		default:
			n.t.Fatalf("a volume that this test does not know: %v", v)
		}
		volumes = append(volumes, object{"name": name, "hostPath": object{"path": path, "type": "Directory"}})
	}
	changed["spec"] = object{
		// By Always podman runs init containers again as soon as they have ended.
		"restartPolicy": "OnFailure", "volumes": volumes,
		"initContainers": n.containers(spec, "initContainers", metadata, dropped),
		"containers":     n.containers(spec, "containers", metadata, dropped),
	}
	out, err := json.Marshal(changed)
	if err != nil {
		n.t.Fatal(err)
	}
	return out
}

func (n node) containers(spec object, key string, metadata object, dropped map[any]bool) []any {
	n.t.Helper()
	var changed []any
	for _, c := range list(spec, key) {
		// There is no registry: the images were built here.
		image := map[any]string{"istio-init": proxyImage, "istio-proxy": proxyImage, "svid-watchdog": watchdogImage, "web": webImage}[c["name"]]
		if image == "" {
			n.t.Fatalf("a container that this test does not know: %v", c["name"])
		}
		c["image"], c["imagePullPolicy"] = image, "Never"
		var mounts []any
		for _, m := range list(c, "volumeMounts") {
			if !dropped[m["name"]] {
				mounts = append(mounts, m)
			}
		}
		c["volumeMounts"] = mounts
		// podman would publish the ports on the machine, which a network of none
		// forbids; they are information only.
		delete(c, "ports")
		// podman probes by systemd's timers, which are not here, and Istio's agent
		// is asked by the test.
		delete(c, "startupProbe")
		delete(c, "readinessProbe")
		// Of fieldRef podman knows a few, and $(NAME) it does not expand.
		env, known := []any{}, make(map[string]string)
		for _, e := range list(c, "env") {
			name := e["name"].(string)
			value, plain := e["value"].(string)
			if !plain {
				value = n.field(e["valueFrom"].(object), c, spec, metadata)
			}
			known[name] = expand(value, known)
			env = append(env, object{"name": name, "value": known[name]})
		}
		if args, ok := c["args"].([]any); ok {
			for i := range args {
				args[i] = expand(args[i].(string), known)
			}
		}
		// The pace of the lab: certificates live for a minute.
		if c["name"] == "svid-watchdog" {
			for name, value := range n.pace {
				env = append(env, object{"name": name, "value": value})
			}
		}
		c["env"] = env
		changed = append(changed, c)
	}
	return changed
}

// field is the value of a fieldRef or a resourceFieldRef.
func (n node) field(from, container, spec, metadata object) string {
	n.t.Helper()
	if ref, ok := from["resourceFieldRef"].(object); ok {
		limits := container["resources"].(object)["limits"].(object)
		return map[any]string{"limits.cpu/2": "2", "limits.memory/1Gi": "1073741824"}[fmt.Sprintf("%s/%s", ref["resource"],
			limits[strings.TrimPrefix(ref["resource"].(string), "limits.")])]
	}
	switch path := from["fieldRef"].(object)["fieldPath"]; path {
	case "metadata.name":
		return metadata["name"].(string)
	case "metadata.namespace":
		return metadata["namespace"].(string)
	case "spec.serviceAccountName":
		return spec["serviceAccountName"].(string)
	case "spec.nodeName":
		return "node-1"
	case "status.podIP", "status.hostIP":
		return n.podIP
	default:
		n.t.Fatalf("a field that this test does not know: %v", path)
		return ""
	}
}

func expand(text string, known map[string]string) string {
	for name, value := range known {
		text = strings.ReplaceAll(text, "$("+name+")", value)
	}
	return text
}

// quoted is how a kubelet writes labels and annotations.
func quoted(values any) string {
	var b strings.Builder
	pairs, _ := values.(object)
	for key, value := range pairs {
		fmt.Fprintf(&b, "%s=%q\n", key, value)
	}
	return b.String()
}

func (n node) mkdir(path string, mode os.FileMode) {
	n.t.Helper()
	if err := os.MkdirAll(path, mode); err != nil {
		n.t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		n.t.Fatal(err)
	}
}

func (n node) file(dir, name, text string) {
	n.t.Helper()
	n.mkdir(dir, 0o755)
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil { //nolint:gosec // the pod's user reads it
		n.t.Fatal(err)
	}
}
