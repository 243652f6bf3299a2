package webconfig

import (
	"crypto/tls"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v2"
)

// document is the file. The format is described in the exporter-toolkit's
// docs/web-configuration.md.
type document struct {
	TLS  tlsSection `yaml:"tls_server_config"`
	HTTP struct {
		// HTTP2 is read and without effect, see the package comment.
		HTTP2   bool              `yaml:"http2"`
		Headers map[string]string `yaml:"headers"`
	} `yaml:"http_server_config"`
	RateLimit struct {
		Burst    int           `yaml:"burst"`
		Interval time.Duration `yaml:"interval"`
	} `yaml:"rate_limit"`
	// Users holds the bcrypt hash of each user's password.
	Users map[string]string `yaml:"basic_auth_users"`
}

// parse reads a document; a key that it does not know is an error.
func parse(content []byte) (*document, error) {
	d := &document{TLS: tlsSection{MinVersion: tls.VersionTLS12, MaxVersion: tls.VersionTLS13}}
	if err := yaml.UnmarshalStrict(content, d); err != nil {
		return nil, err
	}
	for name, value := range d.HTTP.Headers {
		if err := checkHeader(name, value); err != nil {
			return nil, err
		}
	}
	return d, nil
}

// settableHeaders are the headers that may be set, and the values that they
// may have, any if there are none.
var settableHeaders = map[string][]string{
	"Content-Security-Policy":   nil,
	"Strict-Transport-Security": nil,
	"X-Content-Type-Options":    {"nosniff"},
	"X-Frame-Options":           {"deny", "sameorigin"},
	"X-XSS-Protection":          nil,
}

func checkHeader(name, value string) error {
	values, ok := settableHeaders[name]
	switch {
	case !ok:
		return fmt.Errorf("the HTTP header %q cannot be set", name)
	case len(values) > 0 && !slices.Contains(values, value):
		return fmt.Errorf("the HTTP header %s cannot be %q, only %s", name, value, strings.Join(values, " or "))
	}
	return nil
}

// version, cipher and curve are numbers that the file has names for.
type (
	version uint16
	cipher  uint16
	curve   tls.CurveID
)

// UnmarshalYAML implements yaml.Unmarshaler.
func (v *version) UnmarshalYAML(unmarshal func(any) error) error {
	return lookUp(v, "TLS version", unmarshal, func(name string) (version, bool) {
		switch name {
		case "TLS10":
			return tls.VersionTLS10, true
		case "TLS11":
			return tls.VersionTLS11, true
		case "TLS12":
			return tls.VersionTLS12, true
		case "TLS13":
			return tls.VersionTLS13, true
		}
		return 0, false
	})
}

// UnmarshalYAML implements yaml.Unmarshaler.
func (c *cipher) UnmarshalYAML(unmarshal func(any) error) error {
	return lookUp(c, "cipher suite", unmarshal, func(name string) (cipher, bool) {
		for _, s := range tls.CipherSuites() { // the insecure ones are not among them
			if s.Name == name {
				return cipher(s.ID), true
			}
		}
		return 0, false
	})
}

// UnmarshalYAML implements yaml.Unmarshaler.
func (c *curve) UnmarshalYAML(unmarshal func(any) error) error {
	return lookUp(c, "curve", unmarshal, func(name string) (curve, bool) {
		switch name {
		case "CurveP256":
			return curve(tls.CurveP256), true
		case "CurveP384":
			return curve(tls.CurveP384), true
		case "CurveP521":
			return curve(tls.CurveP521), true
		case "X25519":
			return curve(tls.X25519), true
		}
		return 0, false
	})
}

func lookUp[T any](to *T, kind string, unmarshal func(any) error, find func(string) (T, bool)) error {
	var name string
	if err := unmarshal(&name); err != nil {
		return err
	}
	found, ok := find(name)
	if !ok {
		return fmt.Errorf("unknown %s %q", kind, name)
	}
	*to = found
	return nil
}
