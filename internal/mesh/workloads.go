package mesh

import (
	"context"
	"encoding/json"
	"fmt"
	"time"
)

// CreateNamespace makes a namespace, injected or not, and waits until pods can
// be made in it.
func (c *ControlPlane) CreateNamespace(ctx context.Context, name string, injected bool) error {
	labels := map[string]string{}
	if injected {
		labels["istio-injection"] = "enabled"
	}
	text, err := json.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Namespace",
		"metadata": map[string]any{"name": name, "labels": labels},
	})
	if err != nil {
		return fmt.Errorf("write the namespace %s: %w", name, err)
	}
	if _, err := c.Kubectl(ctx, string(text), "create", "-f", "-"); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	wanted := []string{"serviceaccounts/default"}
	if c.cfg.Istio {
		wanted = append(wanted, "configmaps/istio-ca-root-cert")
	}
	return Await(ctx, "the namespace "+name, func(ctx context.Context) error {
		for _, object := range wanted {
			if err := c.answers(ctx, c.Server()+"/api/v1/namespaces/"+name+"/"+object); err != nil {
				return err
			}
		}
		return nil
	})
}

// Pods waits until the controllers have made so many pods for a label selector
// and returns them, a JSON object each.
func (c *ControlPlane) Pods(ctx context.Context, namespace, selector string, count int) ([]json.RawMessage, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	var pods []json.RawMessage
	err := Await(ctx, fmt.Sprintf("%d pods %s in %s", count, selector, namespace), func(ctx context.Context) error {
		out, err := c.Kubectl(ctx, "", "get", "pods", "-n", namespace, "-l", selector, "-o", "json")
		if err != nil {
			return err
		}
		var list struct {
			Items []json.RawMessage `json:"items"`
		}
		if err := json.Unmarshal([]byte(out), &list); err != nil {
			return fmt.Errorf("read the pods of %s: %w", namespace, err)
		}
		if len(list.Items) != count {
			// Why a pod cannot be made stands in the events of its ReplicaSet.
			events, _ := c.Kubectl(ctx, "", "get", "events", "-n", namespace, "--field-selector", "type=Warning", "-o", "jsonpath={range .items[*]}{.message}{'\\n'}{end}") // nothing else could be told
			return fmt.Errorf("there are %d; %s", len(list.Items), events)
		}
		pods = list.Items
		return nil
	})
	return pods, err
}

// SayReady says of all pods of a namespace that they run and are ready, as
// kubelets would, and returns of how many that was news.
func (c *ControlPlane) SayReady(ctx context.Context, namespace string) (int, error) {
	out, err := c.Kubectl(ctx, "", "get", "pods", "-n", namespace, "-o", "json")
	if err != nil {
		return 0, err
	}
	var list struct {
		Items []struct {
			Metadata struct {
				Name string `json:"name"`
			} `json:"metadata"`
			Status struct {
				Phase string `json:"phase"`
			} `json:"status"`
		} `json:"items"`
	}
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		return 0, fmt.Errorf("read the pods of %s: %w", namespace, err)
	}
	news := 0
	for _, pod := range list.Items {
		if pod.Status.Phase == "Running" {
			continue
		}
		now := time.Now().UTC().Format(time.RFC3339)
		status := fmt.Sprintf(`{"status":{"phase":"Running","podIP":"192.0.2.10","podIPs":[{"ip":"192.0.2.10"}],"startTime":%[1]q,"conditions":[`+
			`{"type":"Ready","status":"True","lastTransitionTime":%[1]q},{"type":"ContainersReady","status":"True","lastTransitionTime":%[1]q}]}}`, now)
		if _, err := c.Kubectl(ctx, "", "patch", "pod", "-n", namespace, pod.Metadata.Name, "--subresource=status", "--type=merge", "-p", status); err != nil {
			return news, err
		}
		news++
	}
	return news, nil
}

// KeepReady says again and again of the pods of a namespace that they are
// ready, until the context ends: so that rollouts proceed.
func (c *ControlPlane) KeepReady(ctx context.Context, namespace string) error {
	again := time.NewTicker(200 * time.Millisecond)
	defer again.Stop()
	for {
		// A pod may be gone before its status is patched.
		if _, err := c.SayReady(ctx, namespace); err != nil && ctx.Err() == nil {
			c.cfg.Log.Debug("could not say that the pods are ready", "namespace", namespace, "error", err)
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
