// Package webconfig reads the file that --web.config.file names, and serves as
// it says: TLS, client certificates, basic auth, headers and a rate limit, in
// the format of Prometheus' exporter-toolkit.
//
// It exists because of weight. The toolkit's own reader imports
// prometheus/common/config, and with it a tracing page whose templates keep
// the linker from dropping unused methods: five megabytes of the binary. The
// tests hold the two side by side, so that a file means the same here.
//
// In one thing they differ: HTTP/2 is not served, and the key http2 has no
// effect. A scrape gains nothing from it.
//
// The file is read again with each request and each TLS handshake. What can
// only be set when serving begins is whether there is TLS at all, and the rate
// limit.
package webconfig

import (
	"crypto/sha256"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/time/rate"
)

// File is a web configuration in use.
type File struct {
	path string
	log  *slog.Logger

	mu      sync.Mutex
	seen    *[sha256.Size]byte // digest of what was parsed last
	parsed  *document
	err     error  // of the parsing
	failure string // as logged

	passwords passwords
}

// Open reads the file and all that it names, and says what is wrong with it.
// An empty path is a configuration that asks for nothing.
func Open(path string, log *slog.Logger) (*File, error) {
	f := &File{path: path, log: log}
	if path == "" {
		return f, nil
	}
	if err := f.check(); err != nil {
		return nil, fmt.Errorf("the web configuration %s is not usable: %w", path, err)
	}
	return f, nil
}

func (f *File) check() error {
	d, err := f.read()
	if err != nil {
		return err
	}
	if err := checkPasswords(d.Users); err != nil {
		return err
	}
	if d.TLS.enabled() {
		_, err = d.TLS.config(filepath.Dir(f.path))
	}
	return err
}

// Serve serves on the listener, until the server is shut down, what its
// handler answers to those whom the file admits.
func (f *File) Serve(l net.Listener, server *http.Server) error {
	// Not even where the binary was built with it.
	server.Protocols = new(http.Protocols)
	server.Protocols.SetHTTP1(true)
	if f.path == "" {
		return server.Serve(l)
	}
	d, err := f.read()
	if err != nil {
		return err
	}
	var limit *rate.Limiter
	if d.RateLimit.Interval != 0 {
		limit = rate.NewLimiter(rate.Every(d.RateLimit.Interval), d.RateLimit.Burst)
	}
	server.Handler = f.admit(server.Handler, limit)
	if !d.TLS.enabled() {
		return server.Serve(l)
	}
	server.TLSConfig = f.tlsConfig()
	return server.ServeTLS(l, "", "")
}

// read returns the file as it is now. It is parsed only when it has changed.
func (f *File) read() (*document, error) {
	content, err := os.ReadFile(f.path)
	f.mu.Lock()
	defer f.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if sum := sha256.Sum256(content); f.seen == nil || *f.seen != sum {
		f.parsed, f.err = parse(content)
		f.seen = &sum
	}
	return f.parsed, f.err
}

// complain logs what is wrong with the file, once for as long as it stays so.
func (f *File) complain(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	f.mu.Lock()
	news := text != f.failure
	f.failure = text
	f.mu.Unlock()
	switch {
	case !news:
	case err != nil:
		f.log.Error("the web configuration is not usable, nobody is admitted until it is", "file", f.path, "error", text)
	default:
		f.log.Info("the web configuration is usable again", "file", f.path)
	}
}
