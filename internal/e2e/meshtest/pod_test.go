package meshtest

import (
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"testing"
)

// object is a part of a manifest.
type object map[string]any

func asJSON(value any) string {
	text, err := json.Marshal(value)
	if err != nil {
		panic(err) // it is made of maps and strings
	}
	return string(text)
}

// pod is one that the API server has accepted.
type pod struct {
	Metadata struct {
		Namespace   string            `json:"namespace"`
		Labels      map[string]string `json:"labels"`
		Annotations map[string]string `json:"annotations"`
	} `json:"metadata"`
	Spec struct {
		InitContainers []object `json:"initContainers"`
		Containers     []object `json:"containers"`
		Volumes        []object `json:"volumes"`
	} `json:"spec"`
}

// names are those of containers, in their order.
func names(containers []object) string {
	var all []string
	for _, c := range containers {
		all = append(all, c["name"].(string))
	}
	return strings.Join(all, " ")
}

func find(containers []object, name string) object {
	for _, c := range containers {
		if c["name"] == name {
			return c
		}
	}
	return nil
}

// container finds one in the pod; native tells whether it is a native sidecar
// or an init container.
func (p *pod) container(t *testing.T, name string) (found object, native bool) {
	t.Helper()
	plain, early := find(p.Spec.Containers, name), find(p.Spec.InitContainers, name)
	switch {
	case plain != nil && early != nil:
		t.Fatalf("the container %s is there twice, as native sidecar and as container", name)
	case plain == nil && early == nil:
		t.Fatalf("there is no container %s: init containers %q, containers %q", name, names(p.Spec.InitContainers), names(p.Spec.Containers))
	}
	if plain != nil {
		return plain, false
	}
	return early, true
}

func list(o object, key string) []object {
	var all []object
	values, _ := o[key].([]any)
	for _, v := range values {
		all = append(all, object(v.(map[string]any)))
	}
	return all
}

// mounts are those of a container by their path, as volume and access.
func mounts(container object) map[string]string {
	all := map[string]string{}
	for _, m := range list(container, "volumeMounts") {
		access := "rw"
		if m["readOnly"] == true {
			access = "ro"
		}
		all[m["mountPath"].(string)] = fmt.Sprintf("%s %s", m["name"], access)
	}
	return all
}

// env are the variables of a container; those that are given twice fail the
// test.
func env(t *testing.T, container object) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, e := range list(container, "env") {
		name := e["name"].(string)
		if _, there := all[name]; there {
			t.Errorf("the container %s is given %s twice", container["name"], name)
		}
		value, plain := e["value"].(string)
		if !plain {
			value = asJSON(e["valueFrom"])
		}
		all[name] = value
	}
	return all
}

// without is an object that lacks some keys.
func (o object) without(keys ...string) object {
	less := maps.Clone(o)
	for _, key := range keys {
		delete(less, key)
	}
	return less
}

// asSubmitted is an application's container as text, without the mount of the
// service account's token, whose volume has a name at random.
func asSubmitted(container object) string {
	var kept []object
	for _, m := range list(container, "volumeMounts") {
		if m["mountPath"] != "/var/run/secrets/kubernetes.io/serviceaccount" {
			kept = append(kept, m)
		}
	}
	less := container.without("volumeMounts")
	less["volumeMounts"] = kept
	return asJSON(less)
}
