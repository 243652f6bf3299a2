package web_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// dialFrom connects to the server from one of loopback's addresses.
func dialFrom(t *testing.T, host, address string) net.Conn {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(host)}, Timeout: 10 * time.Second}
	conn, err := d.DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// say sends a request on a connection and returns the status of the answer, or
// why there is none.
func say(conn net.Conn, request string) string {
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(conn, request); err != nil {
		return err.Error()
	}
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return err.Error()
	}
	defer response.Body.Close()
	if _, err := io.Copy(io.Discard, response.Body); err != nil {
		return err.Error()
	}
	return response.Status
}

const question = "GET /metrics HTTP/1.1\r\nHost: pod\r\n\r\n"

// TestACrowd: hundreds of connections, at rest or in the middle of a request
// that does not end, cost those places who hold the most, and keep nobody else
// out.
func TestACrowd(t *testing.T) {
	address := start(t, config())
	// A scraper keeps its connection between scrapes, from another address.
	scraper := dialFrom(t, "127.0.0.3", address)
	if got := say(scraper, question); got != "200 OK" {
		t.Fatal(got)
	}
	const crowd, most = 300, 64
	var atRest []net.Conn
	for i := range crowd {
		conn := dialFrom(t, "127.0.0.2", address)
		if got := say(conn, question); got != "200 OK" {
			t.Fatalf("connection %d: %s", i, got)
		}
		atRest = append(atRest, conn)
	}
	// They would be kept for two minutes, were it not for the others.
	for i, conn := range atRest[:crowd-most] {
		_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
		if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("connection %d of %d is still open: %v", i, crowd, err)
		}
	}
	for range crowd {
		conn := dialFrom(t, "127.0.0.2", address)
		if _, err := io.WriteString(conn, "GET /metrics HTTP/1.1\r\nX-Slow: "); err != nil && !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
			t.Fatal(err)
		}
	}
	if got := say(scraper, question); got != "200 OK" {
		t.Errorf("the scraper's connection: %s", got)
	}
	if got := say(dialFrom(t, "127.0.0.4", address), question); got != "200 OK" {
		t.Errorf("a stranger from another address: %s", got)
	}
	if got := say(dialFrom(t, "127.0.0.2", address), question); got != "200 OK" {
		t.Errorf("one more from the address of the crowd: %s", got)
	}
}

// large is a page that no socket's buffers hold.
type large struct{}

func (large) Describe(chan<- *prometheus.Desc) {}

func (large) Collect(ch chan<- prometheus.Metric) {
	help := strings.Repeat("a", 32<<20)
	ch <- prometheus.MustNewConstMetric(prometheus.NewDesc("large", help, nil, nil), prometheus.GaugeValue, 1)
}

// TestSlowReaders: clients who ask for the metrics and read nothing take no
// turn from those who do.
func TestSlowReaders(t *testing.T) {
	cfg := config()
	registry := prometheus.NewRegistry()
	registry.MustRegister(large{})
	cfg.Registry = registry
	address := start(t, cfg)
	for range 10 {
		conn := dialFrom(t, "127.0.0.1", address)
		if _, err := io.WriteString(conn, question); err != nil {
			t.Fatal(err)
		}
		// Its page is on the way, and it reads no more. A page that is made
		// while it is sent would be given up after 30 seconds.
		_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
		if _, err := conn.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	if got := say(dialFrom(t, "127.0.0.1", address), question); got != "200 OK" {
		t.Error(got)
	}
}

// TestLimits: no request has a body, a long header or another method.
func TestLimits(t *testing.T) {
	address := start(t, config())
	for name, tt := range map[string]struct{ request, want string }{
		"a body":           {"GET /metrics HTTP/1.1\r\nHost: pod\r\nContent-Length: 1000000000\r\n\r\nabc", "413 Request Entity Too Large"},
		"a body in chunks": {"GET /metrics HTTP/1.1\r\nHost: pod\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", "413 Request Entity Too Large"},
		"a long header":    {"GET /metrics HTTP/1.1\r\nHost: pod\r\nX: " + strings.Repeat("a", 64<<10) + "\r\n\r\n", "431 Request Header Fields Too Large"},
		"a long path":      {"GET /" + strings.Repeat("a", 64<<10) + " HTTP/1.1\r\nHost: pod\r\n\r\n", "431 Request Header Fields Too Large"},
		"POST":             {"POST /metrics HTTP/1.1\r\nHost: pod\r\nContent-Length: 0\r\n\r\n", "405 Method Not Allowed"},
		"CONNECT":          {"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n", "405 Method Not Allowed"},
		"an upgrade":       {"GET /metrics HTTP/1.1\r\nHost: pod\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n", "200 OK"},
		"HTTP/2":           {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "413 Request Entity Too Large"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := say(dialFrom(t, "127.0.0.1", address), tt.request); got != tt.want {
				t.Errorf("%s, want %s", got, tt.want)
			}
		})
	}
}

// TestRotatedCertificates: a server's own certificate and the authority of its
// clients change below it, as a volume changes, and hold for the next
// handshake.
func TestRotatedCertificates(t *testing.T) {
	dir, clients, strangers := t.TempDir(), t.TempDir(), t.TempDir()
	for _, d := range []string{dir, clients, strangers} {
		writeKeyPair(t, d)
	}
	copyFile := func(from, name string) {
		text, err := os.ReadFile(filepath.Join(from, "tls.crt"))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	copyFile(clients, "clients.crt")
	cfg := config()
	cfg.ConfigFile = filepath.Join(dir, "web.yml")
	text := "tls_server_config: {cert_file: tls.crt, key_file: tls.key, client_auth_type: RequireAndVerifyClientCert, client_ca_file: clients.crt}\n"
	if err := os.WriteFile(cfg.ConfigFile, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	address := start(t, cfg)
	get := func(as string) (served string, err error) {
		config := &tls.Config{InsecureSkipVerify: true} //nolint:gosec // the certificate is the test's own
		if as != "" {
			pair, err := tls.LoadX509KeyPair(filepath.Join(as, "tls.crt"), filepath.Join(as, "tls.key"))
			if err != nil {
				t.Fatal(err)
			}
			config.Certificates = []tls.Certificate{pair}
		}
		conn, err := (&tls.Dialer{Config: config}).DialContext(context.Background(), "tcp", address)
		if err != nil {
			return "", err
		}
		defer conn.Close()
		if status := say(conn, "GET /healthz HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n"); status != "200 OK" {
			return "", errors.New(status)
		}
		return fmt.Sprintf("%x", conn.(*tls.Conn).ConnectionState().PeerCertificates[0].Signature), nil
	}
	first, err := get(clients)
	if err != nil {
		t.Fatal(err)
	}
	for _, as := range []string{"", strangers} {
		if _, err := get(as); err == nil {
			t.Errorf("%q was let in", as)
		}
	}
	writeKeyPair(t, dir)
	if second, err := get(clients); err != nil || second == first {
		t.Errorf("after the rotation: the same certificate %t, %v", second == first, err)
	}
	copyFile(strangers, "clients.crt")
	if _, err := get(clients); err == nil {
		t.Error("the authority of the clients was changed, and a client of the old one was let in")
	}
	if _, err := get(strangers); err != nil {
		t.Error(err)
	}
}
