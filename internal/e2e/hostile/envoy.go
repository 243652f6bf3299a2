package main

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"fmt"
	"io"
	"log"
	"net/http"
	"strings"
	"sync"
	"time"
)

// answers are those to the questions of one mode; what a mode leaves out is
// answered as in a small and healthy pod.
type answers map[string]func(http.ResponseWriter)

type envoy struct {
	mu    sync.Mutex
	mode  answers
	asked int
	plain answers
}

func newEnvoy(leaf, ca []byte) *envoy {
	return &envoy{plain: answers{
		"server_info": func(w http.ResponseWriter) {
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

func says(text string) func(http.ResponseWriter) {
	return func(w http.ResponseWriter) { _, _ = io.WriteString(w, text) } // the watchdog hung up
}

func repeat(head, element string, n int, tail string) func(http.ResponseWriter) {
	return func(w http.ResponseWriter) { array(w, head, element, n, tail) }
}

func array(w io.Writer, head, element string, n int, tail string) {
	_, err := io.WriteString(w, head)
	for i := 0; i < n && err == nil; i++ {
		_, err = io.WriteString(w, element)
	}
	_, _ = io.WriteString(w, tail) // the watchdog hung up
}

func endless(head, element string) func(http.ResponseWriter) {
	chunk := strings.Repeat(element, 1+(64<<10)/len(element))
	return func(w http.ResponseWriter) {
		_, err := io.WriteString(w, head)
		for err == nil {
			_, err = io.WriteString(w, chunk)
		}
	}
}

// slow sends a byte now and then, and never ends.
func slow(head string) func(http.ResponseWriter) {
	return func(w http.ResponseWriter) {
		_, err := io.WriteString(w, head)
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for err == nil {
			<-tick.C
			if _, err = io.WriteString(w, " "); err == nil {
				err = http.NewResponseController(w).Flush()
			}
		}
	}
}

// bomb is a gigabyte of an array, compressed, whether that was asked for or not.
func bomb(head, element string) func(http.ResponseWriter) {
	var small bytes.Buffer
	z, err := gzip.NewWriterLevel(&small, gzip.BestSpeed)
	if err != nil {
		log.Fatal(err)
	}
	array(z, head, strings.Repeat(element, 1+(1<<20)/len(element)), 1<<10, element[:len(element)-1]+"]}")
	if err := z.Close(); err != nil {
		log.Fatal(err)
	}
	return func(w http.ResponseWriter) {
		w.Header().Set("Content-Encoding", "gzip")
		_, _ = w.Write(small.Bytes()) // the watchdog hung up
	}
}

// elsewhere sends the watchdog on to a host that is not in the pod.
func elsewhere(w http.ResponseWriter) {
	w.Header().Set("Location", "http://192.0.2.1/certs")
	w.WriteHeader(http.StatusFound)
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
var tlsContext = contextOf("0abc", workloadID, now.Add(-time.Minute).Format(time.RFC3339), now.Add(time.Hour).Format(time.RFC3339))

func contextOf(serial, uri, from, until string) string {
	return fmt.Sprintf(`{"ca_cert":[],"cert_chain":[{"path":"<inline>","serial_number":%q,"subject_alt_names":[{"uri":%q}],"days_until_expiration":"0","valid_from":%q,"expiration_time":%q}]}`,
		serial, uri, from, until)
}

func cluster(name string) string {
	return fmt.Sprintf(`{"name":%q,"observability_name":%[1]q,"host_statuses":[{"stats":[{"name":"cx_connect_fail"},{"value":"7","name":"rq_total"},{"type":"GAUGE","value":"1","name":"cx_active"},{"type":"GAUGE","value":"2","name":"rq_active"}]}]}`, name)
}
