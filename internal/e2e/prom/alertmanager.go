package prom

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"go.yaml.in/yaml/v2"

	"svid-watchdog/internal/e2e/neighbour"
)

// Alertmanager is a running Alertmanager.
type Alertmanager struct {
	*neighbour.Process

	// Address is where it serves, as host:port.
	Address string

	t testing.TB
}

// StartAlertmanager starts an Alertmanager with the configuration that is
// shipped, whose receivers are replaced by the mailbox and whose intervals are
// divided by the factor.
func StartAlertmanager(t testing.TB, factor int, to *Mailbox) *Alertmanager {
	t.Helper()
	program := neighbour.Installed(t, "prometheus-alertmanager", "prometheus-alertmanager")
	text, err := os.ReadFile(filepath.Join(Dir(t), "alertmanager.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var config yaml.MapSlice
	if err := yaml.Unmarshal(text, &config); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "alertmanager.yaml")
	write(t, file, adapt(t, config, factor, to.server.URL))

	address := neighbour.Address(t)
	a := &Alertmanager{t: t, Address: address}
	a.Process = neighbour.Start(t, program, "--config.file="+file, "--storage.path="+filepath.Join(dir, "data"),
		"--cluster.listen-address=", "--web.listen-address="+address)
	ready(t, "http://"+address, a.Process)
	return a
}

// adapt divides the intervals by a factor and leads all webhooks to base.
func adapt(t testing.TB, node any, factor int, base string) any {
	t.Helper()
	switch node := node.(type) {
	case yaml.MapSlice:
		var adapted yaml.MapSlice
		name := ""
		for _, item := range node {
			if item.Key == "name" {
				name, _ = item.Value.(string)
			}
		}
		for _, item := range node {
			switch key, _ := item.Key.(string); key {
			case "group_wait", "group_interval", "repeat_interval":
				text, _ := item.Value.(string)
				d, err := model.ParseDuration(text)
				if err != nil {
					t.Fatalf("%s: %v", key, err)
				}
				item.Value = d / model.Duration(factor)
			case "url":
				item.Value = base
			case "webhook_configs":
				item.Value = adapt(t, item.Value, factor, base+"/"+name)
			default:
				item.Value = adapt(t, item.Value, factor, base)
			}
			adapted = append(adapted, item)
		}
		return adapted
	case []any:
		var adapted []any
		for _, item := range node {
			adapted = append(adapted, adapt(t, item, factor, base))
		}
		return adapted
	default:
		return node
	}
}

// Inhibited are the labels of the alerts that are held back by another.
func (a *Alertmanager) Inhibited() []map[string]string {
	a.t.Helper()
	body, err := fetch(a.t, "http://"+a.Address+"/api/v2/alerts")
	if err != nil {
		a.t.Fatal(err)
	}
	var alerts []struct {
		Labels map[string]string `json:"labels"`
		Status struct {
			InhibitedBy []string `json:"inhibitedBy"`
		} `json:"status"`
	}
	if err := json.Unmarshal(body, &alerts); err != nil {
		a.t.Fatalf("%v: %s", err, body)
	}
	var inhibited []map[string]string
	for _, alert := range alerts {
		if len(alert.Status.InhibitedBy) > 0 {
			inhibited = append(inhibited, alert.Labels)
		}
	}
	return inhibited
}

// Notification is what Alertmanager sent to a receiver.
type Notification struct {
	At       time.Time         `json:"-"`
	Receiver string            `json:"receiver"`
	Status   string            `json:"status"`
	Group    map[string]string `json:"groupLabels"`
	Alerts   []struct {
		Status      string            `json:"status"`
		Labels      map[string]string `json:"labels"`
		Annotations map[string]string `json:"annotations"`
	} `json:"alerts"`
}

// String tells a notification in one line: the receiver, the status, and each of
// its alerts by name, what it is about, and status.
func (n Notification) String() string {
	var alerts []string
	for _, a := range n.Alerts {
		alerts = append(alerts, fmt.Sprintf("%s(%s) %s", a.Labels["alertname"], a.Labels[a.Labels["scope"]], a.Status))
	}
	slices.Sort(alerts)
	return fmt.Sprintf("%s %s: %s", n.Receiver, n.Status, strings.Join(alerts, ", "))
}

// Mailbox receives notifications.
type Mailbox struct {
	server *httptest.Server

	mu       sync.Mutex
	received []Notification
	bad      []string
}

// NewMailbox starts a mailbox, which ends with the test. What it cannot read
// fails the test.
func NewMailbox(t testing.TB) *Mailbox {
	t.Helper()
	m := &Mailbox{}
	m.server = httptest.NewServer(http.HandlerFunc(m.receive))
	t.Cleanup(func() {
		m.server.Close()
		for _, bad := range m.bad {
			t.Error(bad)
		}
	})
	return m
}

func (m *Mailbox) receive(_ http.ResponseWriter, request *http.Request) {
	n := Notification{At: time.Now()}
	err := json.NewDecoder(request.Body).Decode(&n)
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case err != nil:
		m.bad = append(m.bad, "a notification that cannot be read: "+err.Error())
	case path.Base(request.URL.Path) != n.Receiver:
		m.bad = append(m.bad, "a notification for "+n.Receiver+" came to "+request.URL.Path)
	default:
		m.received = append(m.received, n)
	}
}

// Received are the notifications so far, oldest first.
func (m *Mailbox) Received() []Notification {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]Notification(nil), m.received...)
}
