package main

import (
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"
)

// answers are those to the questions of one mode; what a mode leaves out is
// answered as in a small and healthy pod.
type answers map[string]func(io.Writer)

type envoy struct {
	mu    sync.Mutex
	mode  answers
	asked int
	plain answers
}

func newEnvoy(leaf, ca []byte) *envoy {
	return &envoy{plain: answers{
		"server_info": func(w io.Writer) {
			fmt.Fprintf(w, `{"version":"x/1.36.4/y","state":"LIVE","uptime_current_epoch":"%ds"}`, int(time.Since(now).Seconds()))
		},
		"stats":    says(""),
		"secrets":  says(`{"configs":[` + identity(pemOf(leaf, ca)) + `,` + bundle(pemOf(ca)) + `]}`),
		"warming":  says(`{}`),
		"certs":    says(`{"certificates":[` + tlsContext + `]}`),
		"clusters": says(`{"cluster_statuses":[` + cluster("sds-grpc") + `]}`),
	}}
}

func (e *envoy) set(mode answers) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.mode, e.asked = mode, 0
}

// looks is how often the watchdog has begun a look in this mode.
func (e *envoy) looks() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.asked
}

func (e *envoy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	question := strings.TrimPrefix(r.URL.Path, "/")
	switch r.URL.Query().Get("resource") {
	case "dynamic_active_secrets":
		question = "secrets"
	case "dynamic_warming_secrets":
		question = "warming"
	}
	e.mu.Lock()
	if question == "server_info" {
		e.asked++
	}
	answer := e.mode[question]
	if answer == nil {
		answer = e.plain[question]
	}
	e.mu.Unlock()
	if answer == nil {
		http.Error(w, "unexpected "+r.URL.String(), http.StatusNotFound)
		return
	}
	answer(w)
}

func says(text string) func(io.Writer) {
	return func(w io.Writer) { _, _ = io.WriteString(w, text) } // the watchdog hung up
}

func repeat(head, element string, n int, tail string) func(io.Writer) {
	return func(w io.Writer) {
		_, err := io.WriteString(w, head)
		for i := 0; i < n && err == nil; i++ {
			_, err = io.WriteString(w, element)
		}
		_, _ = io.WriteString(w, tail)
	}
}

func endless(head, element string) func(io.Writer) {
	chunk := strings.Repeat(element, 1+(64<<10)/len(element))
	return func(w io.Writer) {
		_, err := io.WriteString(w, head)
		for err == nil {
			_, err = io.WriteString(w, chunk)
		}
	}
}

func identity(chain string) string {
	return fmt.Sprintf(`{"name":"default","version_info":"1","last_updated":%q,"secret":{"@type":"type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret","tls_certificate":{"certificate_chain":{"inline_bytes":%q}}}}`,
		now.Format(time.RFC3339), base64.StdEncoding.EncodeToString([]byte(chain)))
}

func bundle(authorities string) string {
	return fmt.Sprintf(`{"name":"ROOTCA","version_info":"1","last_updated":%q,"secret":{"@type":"type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret","validation_context":{"trusted_ca":{"inline_bytes":%q}}}}`,
		now.Format(time.RFC3339), base64.StdEncoding.EncodeToString([]byte(authorities)))
}

// tlsContext is one element of /certs.
var tlsContext = `{"ca_cert":[],"cert_chain":[{"path":"<inline>","serial_number":"0abc","subject_alt_names":[{"uri":"` + workloadID + `"}],` +
	`"days_until_expiration":"0","valid_from":"` + now.Add(-time.Minute).Format(time.RFC3339) + `","expiration_time":"` + now.Add(time.Hour).Format(time.RFC3339) + `"}]}`

func cluster(name string) string {
	return fmt.Sprintf(`{"name":%q,"observability_name":%[1]q,"host_statuses":[{"stats":[{"name":"cx_connect_fail"},{"value":"7","name":"rq_total"},{"type":"GAUGE","value":"1","name":"cx_active"},{"type":"GAUGE","value":"2","name":"rq_active"}]}]}`, name)
}
