package envoy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"
)

// Errors of the admin interface.
var (
	// ErrTooLarge: an answer, or one element of it, is larger than anything
	// that Envoy sends for this question.
	ErrTooLarge = errors.New("the answer is too large")
	// ErrRedirect: the answer points elsewhere. It is not followed.
	ErrRedirect = errors.New("the answer is a redirect, which is not followed")
)

// statusError is an answer with another status than 200.
type statusError struct {
	status int
	text   string
}

func (e *statusError) Error() string {
	if e.text == "" {
		return fmt.Sprintf("status %d", e.status)
	}
	return fmt.Sprintf("status %d: %s", e.status, e.text)
}

// admin asks one admin interface.
type admin struct {
	base    string
	address string
	client  *http.Client
	timeout time.Duration
}

// newAdmin checks the address: http://host:port on loopback, unless remote ones
// are allowed, or unix:///path.
func newAdmin(address string, allowRemote bool, timeout time.Duration) (*admin, error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, fmt.Errorf("the Envoy admin address %q is not a URL: %w", address, err)
	}
	dialer := new(net.Dialer)
	transport := &http.Transport{
		Proxy:                  nil, // never by way of an HTTP_PROXY
		DisableCompression:     true,
		MaxIdleConns:           1,
		MaxConnsPerHost:        1,
		IdleConnTimeout:        2 * time.Minute,
		MaxResponseHeaderBytes: 64 << 10,
		DialContext:            dialer.DialContext,
	}
	a := &admin{address: address, timeout: timeout}
	switch {
	case u.Scheme == "http" && u.Host != "" && strings.Trim(u.Path, "/") == "" && u.RawQuery == "" && u.User == nil:
		a.base = "http://" + u.Host
		if allowRemote {
			break
		}
		if !isLoopback(u.Hostname()) {
			return nil, fmt.Errorf("the Envoy admin address %q is not on this pod's loopback: an admin interface that others reach is open to all of them; "+
				"if that is meant, add --envoy.allow-remote-admin", address)
		}
		// The name localhost may stand for anything.
		dialer.ControlContext = onlyLoopback
	case u.Scheme == "unix" && u.Host == "" && u.Path != "":
		a.base = "http://envoy-admin"
		path := u.Path
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", path)
		}
	default:
		return nil, fmt.Errorf("the Envoy admin address %q is neither http://HOST:PORT nor unix:///PATH", address)
	}
	a.client = &http.Client{
		Transport: transport,
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse
		},
	}
	return a, nil
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// onlyLoopback refuses to dial an address that is not on loopback.
func onlyLoopback(_ context.Context, _, address string, _ syscall.RawConn) error {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
		return fmt.Errorf("%s is not on loopback, and --envoy.allow-remote-admin is not set", address)
	}
	return nil
}

func (a *admin) close() { a.client.CloseIdleConnections() }

// get asks for path and hands at most limit bytes of the answer to read. It
// returns how long Envoy took for all of it.
func (a *admin) get(ctx context.Context, path string, limit int64, read func(*boundedReader) error) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, a.base+path, nil)
	if err != nil {
		return 0, fmt.Errorf("ask %s: %w", path, err)
	}
	start := time.Now()
	response, err := a.client.Do(request)
	if err != nil {
		return time.Since(start), a.explain(ctx, err)
	}
	defer response.Body.Close()
	body := &boundedReader{r: response.Body, total: limit, part: limit}
	switch {
	case response.StatusCode >= 300 && response.StatusCode < 400:
		return time.Since(start), ErrRedirect
	case response.StatusCode != http.StatusOK:
		text, _ := io.ReadAll(io.LimitReader(response.Body, 200))
		return time.Since(start), &statusError{response.StatusCode, strings.TrimSpace(string(text))}
	}
	if err := read(body); err != nil {
		return time.Since(start), a.explain(ctx, err)
	}
	// Read what is left, so that the connection can be used again.
	body.allow(limit)
	if _, err := io.Copy(io.Discard, body); err != nil {
		return time.Since(start), a.explain(ctx, err)
	}
	return time.Since(start), nil
}

// explain turns the errors that people meet into a sentence.
func (a *admin) explain(ctx context.Context, err error) error {
	var timeout net.Error
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return fmt.Errorf("no answer within %s: %w", a.timeout, context.DeadlineExceeded)
	default:
		if wrapped, ok := errors.AsType[*url.Error](err); ok {
			return wrapped.Err
		}
		return err
	}
}

// boundedReader fails when more is read than is allowed: total over the whole
// answer, and part since the last call of allow.
type boundedReader struct {
	r           io.Reader
	total, part int64
}

// allow bounds what may be read from now on until the next call.
func (b *boundedReader) allow(n int64) { b.part = n }

func (b *boundedReader) Read(p []byte) (int, error) {
	left := min(b.total, b.part)
	if left <= 0 {
		// One byte more tells an answer that ends just here from one that
		// goes on.
		var one [1]byte
		n, err := b.r.Read(one[:])
		if n > 0 {
			return 0, ErrTooLarge
		}
		return 0, err
	}
	if int64(len(p)) > left {
		p = p[:left]
	}
	n, err := b.r.Read(p)
	b.total -= int64(n)
	b.part -= int64(n)
	return n, err
}
