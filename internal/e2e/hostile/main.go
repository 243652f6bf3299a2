// Command hostile answers in the place of Envoy's admin interface what no Envoy
// would, or only one in a very large mesh, in one mode after the other. In each
// it waits until the watchdog has taken some answers, looks at the watchdog's
// metrics, and says so. It is for a test that gives the watchdog little memory.
//
//	hostile ADMIN_ADDRESS METRICS_URL
package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strings"
	"sync"
	"time"
)

// looks is how many looks of the watchdog a mode lasts.
const looks = 12

// answers are those to the questions of one mode; what a mode leaves out is
// answered as in a small and healthy pod.
type answers map[string]func(io.Writer)

type envoy struct {
	mu    sync.Mutex
	mode  answers
	asked int
	plain answers
}

func main() {
	if len(os.Args) != 3 {
		log.Fatal("want ADMIN_ADDRESS METRICS_URL")
	}
	leaf, ca := chain(big.NewInt(0xabc))
	e := &envoy{plain: answers{
		"server_info": says(`{"version":"x/1.36.4/y","state":"LIVE","uptime_current_epoch":"100s"}`),
		"stats":       says(""),
		"secrets":     says(`{"configs":[` + identity(pemOf(leaf, ca)) + `,` + bundle(pemOf(ca)) + `]}`),
		"warming":     says(`{}`),
		"certs":       says(`{"certificates":[` + tlsContext + `]}`),
		"clusters":    says(`{"cluster_statuses":[` + cluster("sds-grpc") + `]}`),
	}}
	listener, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	server := &http.Server{Handler: e, ReadHeaderTimeout: 5 * time.Second}
	go func() { log.Fatal(server.Serve(listener)) }()

	for _, m := range modes(leaf, ca) {
		e.mu.Lock()
		e.mode, e.asked = m.answers, 0
		e.mu.Unlock()
		for {
			e.mu.Lock()
			n := e.asked
			e.mu.Unlock()
			if n >= looks {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
		page, err := get(os.Args[2])
		if err != nil {
			log.Fatalf("%s: %v", m.name, err)
		}
		resident := regexp.MustCompile(`(?m)^process_resident_memory_bytes (\S+)`).FindStringSubmatch(page)
		if resident == nil {
			log.Fatalf("%s: no process metrics:\n%s", m.name, page)
		}
		fmt.Printf("%s: survived, resident %s\n", m.name, resident[1])
	}
	fmt.Println("all survived")
	select {}
}

func get(url string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	return string(text), err
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

func modes(leaf, ca []byte) []struct {
	name    string
	answers answers
} {
	id := identity(pemOf(leaf, ca))
	return []struct {
		name    string
		answers answers
	}{
		{"healthy", nil},
		{"ten thousand clusters", answers{
			"certs":    repeat(`{"certificates":[`, tlsContext+",", 10_000, tlsContext+"]}"),
			"clusters": repeat(`{"cluster_statuses":[`, cluster("outbound|8080||service.namespace.svc.cluster.local")+",", 10_000, cluster("sds-grpc")+"]}"),
		}},
		{"a trust bundle of a thousand authorities", answers{
			"secrets": says(`{"configs":[` + id + `,` + bundle(strings.Repeat(pemOf(ca), 1000)) + `]}`),
		}},
		{"as many secrets as fit", answers{
			"secrets": says(`{"configs":[` + strings.Repeat(id+",", (4<<20-100_000)/(len(id)+1)) + id + `]}`),
		}},
		{"a trust bundle as long as an element may be", answers{
			"secrets": says(`{"configs":[` + id + `,` + bundle(strings.Repeat(pemOf(ca), (3<<18)/len(pemOf(ca))-10)) + `]}`),
		}},
		{"secrets without end", answers{"secrets": endless(`{"configs":[`, id+",")}},
		{"certificates without end", answers{"certs": endless(`{"certificates":[`, tlsContext+",")}},
		{"one certificate without end", answers{"certs": endless(`{"certificates":[{"cert_chain":[{"path":"`, "aaaaaaaaaaaaaaaa")}},
		{"one array in another without end", answers{"secrets": endless(`{"configs":[`, "[[[[[[[["), "certs": endless(`{"certificates":[`, "[[[[[[[[")}},
		{"clusters with large elements", answers{
			"clusters": repeat(`{"cluster_statuses":[`, `{"name":"sds-grpc","x":"`+strings.Repeat("a", 900<<10)+`"},`, 60, cluster("sds-grpc")+"]}"),
		}},
		{"statistics and server info without end", answers{"stats": endless("sds.default.x: ", "1"), "server_info": endless(`{"version":"`, "aaaaaaaa")}},
		{"healthy again", nil},
	}
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

const workload = "spiffe://example.test/ns/shop/sa/front-end"

func chain(serial *big.Int) (leaf, ca []byte) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		log.Fatal(err)
	}
	now := time.Now().Truncate(time.Second)
	authority := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: now.Add(-time.Minute), NotAfter: now.Add(24 * time.Hour),
	}
	uri, err := url.Parse(workload)
	if err != nil {
		log.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: serial, NotBefore: now.Add(-time.Minute), NotAfter: now.Add(time.Hour), URIs: []*url.URL{uri}}
	if ca, err = x509.CreateCertificate(rand.Reader, authority, authority, &key.PublicKey, key); err != nil {
		log.Fatal(err)
	}
	if leaf, err = x509.CreateCertificate(rand.Reader, template, authority, &key.PublicKey, key); err != nil {
		log.Fatal(err)
	}
	return leaf, ca
}

func pemOf(ders ...[]byte) string {
	var out strings.Builder
	for _, der := range ders {
		out.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	}
	return out.String()
}

func identity(chain string) string {
	return fmt.Sprintf(`{"name":"default","version_info":"1","last_updated":"2026-11-23T20:16:04.645Z","secret":{"@type":"type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret","tls_certificate":{"certificate_chain":{"inline_bytes":%q}}}}`,
		base64.StdEncoding.EncodeToString([]byte(chain)))
}

func bundle(authorities string) string {
	return fmt.Sprintf(`{"name":"ROOTCA","version_info":"1","last_updated":"2026-11-23T20:16:04.645Z","secret":{"@type":"type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret","validation_context":{"trusted_ca":{"inline_bytes":%q}}}}`,
		base64.StdEncoding.EncodeToString([]byte(authorities)))
}

// tlsContext is one element of /certs.
const tlsContext = `{"ca_cert":[],"cert_chain":[{"path":"<inline>","serial_number":"0abc","subject_alt_names":[{"uri":"` + workload + `"}],` +
	`"days_until_expiration":"0","valid_from":"2026-11-23T20:00:00Z","expiration_time":"2026-11-23T21:00:00Z"}]}`

func cluster(name string) string {
	return fmt.Sprintf(`{"name":%q,"observability_name":%[1]q,"host_statuses":[{"stats":[{"name":"cx_connect_fail"},{"value":"7","name":"rq_total"},{"type":"GAUGE","value":"1","name":"cx_active"},{"type":"GAUGE","value":"2","name":"rq_active"}]}]}`, name)
}
