package webconfig

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// tlsSection says how to speak TLS. What it names by file wins over what it
// has inline.
type tlsSection struct {
	Cert        string   `yaml:"cert"`
	CertFile    string   `yaml:"cert_file"`
	Key         string   `yaml:"key"`
	KeyFile     string   `yaml:"key_file"`
	ClientAuth  string   `yaml:"client_auth_type"`
	ClientCA    string   `yaml:"client_ca"`
	ClientCAs   string   `yaml:"client_ca_file"`
	AllowedSANs []string `yaml:"client_allowed_sans"`
	Ciphers     []cipher `yaml:"cipher_suites"`
	Curves      []curve  `yaml:"curve_preferences"`
	MinVersion  version  `yaml:"min_version"`
	MaxVersion  version  `yaml:"max_version"`
	// PreferServerCipherSuites is read and without effect: Go orders them.
	PreferServerCipherSuites bool `yaml:"prefer_server_cipher_suites"`
}

var errNoTLS = errors.New("there is no tls_server_config any more; whether there is TLS is set when serving begins")

// enabled tells whether the file asks for TLS.
func (s *tlsSection) enabled() bool {
	return s.Cert+s.CertFile+s.Key+s.KeyFile+s.ClientCA+s.ClientCAs+s.ClientAuth != ""
}

// tlsConfig is that of a server which reads the file with each handshake.
func (f *File) tlsConfig() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12, // of this shell; the file says which holds
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			d, err := f.read()
			if err == nil && !d.TLS.enabled() {
				err = errNoTLS
			}
			var config *tls.Config
			if err == nil {
				config, err = d.TLS.config(filepath.Dir(f.path))
			}
			f.complain(err)
			return config, err
		},
	}
}

// config reads the files that the section names; relative paths begin at dir.
func (s *tlsSection) config(dir string) (*tls.Config, error) {
	cert, err := content("cert", s.Cert, s.CertFile, dir)
	if err != nil {
		return nil, err
	}
	key, err := content("key", s.Key, s.KeyFile, dir)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("cert and key: %w", err)
	}
	config := &tls.Config{
		Certificates: []tls.Certificate{pair},
		MinVersion:   uint16(s.MinVersion),
		MaxVersion:   uint16(s.MaxVersion),
		NextProtos:   []string{"http/1.1"},
		// A session that is resumed would escape a client CA that was taken
		// away. A scraper keeps its connection anyway.
		SessionTicketsDisabled: true,
	}
	for _, c := range s.Ciphers {
		config.CipherSuites = append(config.CipherSuites, uint16(c))
	}
	for _, c := range s.Curves {
		config.CurvePreferences = append(config.CurvePreferences, tls.CurveID(c))
	}
	switch s.ClientAuth {
	case "", "NoClientCert":
	case "RequestClientCert":
		config.ClientAuth = tls.RequestClientCert
	case "RequireAnyClientCert", "RequireClientCert": // the second is the old name
		config.ClientAuth = tls.RequireAnyClientCert
	case "VerifyClientCertIfGiven":
		config.ClientAuth = tls.VerifyClientCertIfGiven
	case "RequireAndVerifyClientCert":
		config.ClientAuth = tls.RequireAndVerifyClientCert
	default:
		return nil, fmt.Errorf("unknown client_auth_type %q", s.ClientAuth)
	}
	if s.AllowedSANs != nil && config.ClientAuth != tls.NoClientCert {
		config.VerifyConnection = s.allowed
	}
	if s.ClientCA+s.ClientCAs != "" {
		if config.ClientAuth == tls.NoClientCert {
			return nil, errors.New("there is a client CA and no client_auth_type that would use it")
		}
		authorities, err := content("client_ca", s.ClientCA, s.ClientCAs, dir)
		if err != nil {
			return nil, err
		}
		config.ClientCAs = x509.NewCertPool()
		config.ClientCAs.AppendCertsFromPEM(authorities)
	}
	return config, nil
}

func content(key, inline, file, dir string) ([]byte, error) {
	switch {
	case file != "":
		if !filepath.IsAbs(file) {
			file = filepath.Join(dir, file)
		}
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("%s_file: %w", key, err)
		}
		return text, nil
	case inline != "":
		return []byte(inline), nil
	}
	return nil, fmt.Errorf("one of %s and %s_file is needed for TLS", key, key)
}

// allowed admits clients by the names in their certificates, and none without.
func (s *tlsSection) allowed(state tls.ConnectionState) error {
	if len(state.PeerCertificates) == 0 {
		return errors.New("client_allowed_sans admits nobody without a certificate")
	}
	client := state.PeerCertificates[0]
	names := slices.Concat(client.DNSNames, client.EmailAddresses)
	for _, ip := range client.IPAddresses {
		names = append(names, ip.String())
	}
	for _, uri := range client.URIs {
		names = append(names, uri.String())
	}
	for _, name := range names {
		if slices.Contains(s.AllowedSANs, name) {
			return nil
		}
	}
	return fmt.Errorf("none of the names of the client's certificate is in client_allowed_sans: %q", names)
}
