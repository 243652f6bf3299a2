package handshake

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"io"
	"math/big"
	"net"
	"net/url"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"svid-watchdog/internal/rotation"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const testID = "spiffe://example.test/ns/shop/sa/front-end"

// pair is a self-signed leaf with its key.
func pair(t testing.TB) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	id, err := url.Parse(testID)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(0xabc123), Subject: pkix.Name{CommonName: "leaf"}, URIs: []*url.URL{id},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// serve answers each connection, and returns the address.
func serve(t *testing.T, answer func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			answer(conn)
			conn.Close()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	return l.Addr().String()
}

func look(t *testing.T, cfg Config) rotation.Handshake {
	t.Helper()
	cfg.Timeout = 500 * time.Millisecond
	p, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return p.Look(t.Context())
}

// TestLook: the leaf is seen without a certificate of our own, whatever the
// server makes of that and of the protocols that are offered.
func TestLook(t *testing.T) {
	for name, version := range map[string]uint16{"TLS 1.2": tls.VersionTLS12, "TLS 1.3": tls.VersionTLS13} {
		for _, protocols := range [][]string{nil, {"istio-peer-exchange"}, {"h2"}} {
			server := &tls.Config{
				Certificates: []tls.Certificate{pair(t)}, ClientAuth: tls.RequireAndVerifyClientCert,
				MinVersion: version, MaxVersion: version,
			}
			var offered []string
			server.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
				offered = hello.SupportedProtos
				c := server.Clone()
				c.GetConfigForClient = nil
				if len(protocols) > 0 && protocols[0] == "istio-peer-exchange" {
					c.NextProtos = protocols
				}
				return c, nil
			}
			address := serve(t, func(conn net.Conn) {
				_ = tls.Server(conn, server).Handshake() // it fails: no client certificate
			})
			h := look(t, Config{Address: address})
			if h.Leaf == nil || h.Failure != rotation.HandshakeOK || h.Leaf.SPIFFEID != testID || h.Leaf.Serial != "abc123" || h.Leaf.SHA256.IsZero() {
				t.Errorf("%s, %v: %+v", name, protocols, h)
			}
			if len(offered) != 2 || offered[0] != "istio-peer-exchange" || offered[1] != "istio" {
				t.Errorf("offered %v", offered)
			}
		}
	}
}

func TestFailures(t *testing.T) {
	nobody, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody.Close()
	for want, address := range map[rotation.HandshakeFailure]string{
		rotation.HandshakeRefused: nobody.Addr().String(),
		rotation.HandshakeClosed:  serve(t, func(net.Conn) {}),
		rotation.HandshakeSilent:  serve(t, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }),
		rotation.HandshakeNotTLS: serve(t, func(c net.Conn) {
			_, _ = io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n")
			_, _ = io.Copy(io.Discard, c)
		}),
		rotation.HandshakeFailed: serve(t, func(c net.Conn) {
			_, _ = c.Write([]byte{21, 3, 3, 0, 2, 2, 40}) // alert: handshake failure
			_, _ = io.Copy(io.Discard, c)
		}),
	} {
		h := look(t, Config{Address: address})
		if h.Leaf != nil || h.Failure != want || h.Err == "" {
			t.Errorf("want %s: %+v", want, h)
		}
	}
}

func TestBadAddress(t *testing.T) {
	for _, address := range []string{"", "10.0.0.1", "10.0.0.1:", ":8080", "10.0.0.1:0", "10.0.0.1:70000", "10.0.0.1:http", "http://10.0.0.1:8080"} {
		if _, err := New(Config{Address: address}); err == nil {
			t.Errorf("%q is accepted", address)
		}
	}
	for _, address := range []string{"10.0.0.1:8080", "[fd00::1]:8080", "localhost:15443"} {
		if _, err := New(Config{Address: address}); err != nil {
			t.Error(err)
		}
	}
}

// TestRun: a handshake at once, then at each interval, and soon after a nudge.
func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		seen := make(chan time.Time, 10)
		p, err := New(Config{Address: "127.0.0.1:1", Interval: time.Minute, Timeout: time.Second, Observe: func(rotation.Handshake) { seen <- time.Now() }})
		if err != nil {
			t.Fatal(err)
		}
		p.dial = func(context.Context) (rotation.Certificate, error) { return rotation.Certificate{}, nil }
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- p.Run(ctx) }()
		begin := time.Now()
		for _, want := range []time.Duration{0, time.Minute, 2 * time.Minute} {
			if at := (<-seen).Sub(begin); at != want {
				t.Errorf("a handshake after %s, want %s", at, want)
			}
		}
		p.Nudge()
		p.Nudge()
		if at := (<-seen).Sub(begin); at != 2*time.Minute+settle {
			t.Errorf("nudged: a handshake after %s", at)
		}
		// Nudges without end do not put it off for ever.
		begin = time.Now()
		for range 10 {
			p.Nudge()
			time.Sleep(settle / 2)
		}
		if n := len(seen); n < 3 || n > 5 {
			t.Errorf("%d handshakes in %s of nudges, want one each %s", n, time.Since(begin), settle)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// FuzzPeer: whatever a peer answers, it is a certificate or an error.
func FuzzPeer(f *testing.F) {
	for _, seed := range []string{"", "HTTP/1.1 200 OK\r\n\r\n", "\x15\x03\x03\x00\x02\x02\x28", "\x16\x03\x03\xff\xff"} {
		f.Add([]byte(seed))
	}
	// The beginning of a real TLS 1.2 server's answer.
	answer, err := hex.DecodeString("160303003a02000036030300000000000000000000000000000000000000000000000000000000000000000000c02b00000eff0100010000170000000b000201001603030007" + "0b000003000000")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(answer)
	p, err := New(Config{Address: "127.0.0.1:1"})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, answer []byte) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		leaf, err := p.shake(ctx, &scripted{answer: bytes.NewReader(answer)})
		if err == nil && leaf.SHA256.IsZero() {
			t.Errorf("a certificate without a digest: %+v", leaf)
		}
	})
}

// scripted is a connection whose peer has said everything already.
type scripted struct {
	net.Conn
	answer *bytes.Reader
}

func (s *scripted) Read(b []byte) (int, error)       { return s.answer.Read(b) }
func (s *scripted) Write(b []byte) (int, error)      { return len(b), nil }
func (s *scripted) Close() error                     { return nil }
func (s *scripted) SetDeadline(time.Time) error      { return nil }
func (s *scripted) SetReadDeadline(time.Time) error  { return nil }
func (s *scripted) SetWriteDeadline(time.Time) error { return nil }
