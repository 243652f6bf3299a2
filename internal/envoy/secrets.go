package envoy

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/encoding/protojson"

	"svid-watchdog/internal/certificate"
	"svid-watchdog/internal/rotation"
)

// maxSecrets bounds the filtered dump, of which maxElement is the longest
// secret. Two secrets take 3 KB; a federated bundle with hundreds of
// authorities stays below 1 MiB.
const maxSecrets = 4 << 20

// secretsQuery asks only for the named secrets. name_regex is matched in full
// by Envoy; the mask leaves the (redacted) private key out of the answer.
func secretsQuery(resource, mask string, names ...string) string {
	quoted := make([]string, len(names))
	for i, n := range names {
		quoted[i] = regexp.QuoteMeta(n)
	}
	return "/config_dump?resource=" + resource + "&name_regex=" + url.QueryEscape(strings.Join(quoted, "|")) + "&mask=" + mask
}

const (
	activeMask  = "name,version_info,last_updated,secret.tls_certificate.certificate_chain,secret.validation_context"
	warmingMask = "name,version_info,last_updated"
)

// dynamicSecret is envoy.admin.v3.SecretsConfigDump.DynamicSecret. The admin
// types themselves would bring every listener, route and cluster type into
// the binary, so only the secret inside is decoded with Envoy's types.
type dynamicSecret struct {
	Name        string          `json:"name"`
	VersionInfo string          `json:"version_info"`
	LastUpdated string          `json:"last_updated"`
	Secret      json.RawMessage `json:"secret"`
}

// maxProviders bounds how many secrets of the two names are read. Each
// configuration source in use makes one, and a pod has one or two.
const maxProviders = 64

// errTooManySecrets: the dump shows more secrets of a name than any pod has.
var errTooManySecrets = errors.New("too many secrets")

// eachDynamicSecret decodes the secrets of the two names one at a time, so that
// never more than one is held.
func eachDynamicSecret(body io.Reader, identityName, bundleName string, identity, bundle func(dynamicSecret)) error {
	n := 0
	return eachElement(body, "configs", func(element []byte) error {
		var d dynamicSecret
		if err := json.Unmarshal(element, &d); err != nil {
			return fmt.Errorf("secret %d: %w", n, err)
		}
		if n++; n > maxProviders {
			return errTooManySecrets
		}
		switch d.Name {
		case identityName:
			identity(d)
		case bundleName:
			bundle(d)
		}
		return nil
	})
}

// readActiveSecrets reads the dump of the active secrets. A secret that cannot
// be decoded does not fail the answer: it carries the error.
func readActiveSecrets(body io.Reader, identityName, bundleName string) (*rotation.Secrets, error) {
	secrets := &rotation.Secrets{}
	err := eachDynamicSecret(body, identityName, bundleName,
		func(d dynamicSecret) { secrets.Identity = append(secrets.Identity, deliveredIdentity(d)) },
		func(d dynamicSecret) { secrets.Bundle = append(secrets.Bundle, deliveredBundle(d)) })
	if err != nil {
		return nil, err
	}
	return secrets, nil
}

// readWarming counts the providers that wait for their first secret.
func readWarming(body io.Reader, identityName, bundleName string) (identity, bundle int, err error) {
	err = eachDynamicSecret(body, identityName, bundleName,
		func(dynamicSecret) { identity++ }, func(dynamicSecret) { bundle++ })
	if err != nil {
		return 0, 0, err
	}
	return identity, bundle, nil
}

func meta(d dynamicSecret) rotation.SecretMeta {
	m := rotation.SecretMeta{Version: brief(d.VersionInfo, 100), SentAt: sentAt(d.VersionInfo)}
	if d.LastUpdated != "" { // absent when it is the zero time
		t, err := time.Parse(time.RFC3339Nano, d.LastUpdated)
		if err != nil || !certificate.Plausible(t) {
			t = time.Time{}
			m.Err = fmt.Sprintf("last_updated %.40q is not a time", d.LastUpdated)
		}
		m.LastUpdated = t
	}
	return m
}

// sentAt reads a version as the time at which tbot sent the secret
// (teleport: lib/tbot/internal/sds/handler.go writes RFC3339Nano). SPIRE
// counts, and Istio's agent writes a time with a suffix: neither is a time.
func sentAt(version string) time.Time {
	t, err := time.Parse(time.RFC3339Nano, version)
	if err != nil || !certificate.Plausible(t) {
		return time.Time{}
	}
	return t
}

// brief keeps the beginning of a long text.
func brief(text string, most int) string {
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most], "") + "…"
}

func decodeSecret(raw json.RawMessage) (*tlsv3.Secret, error) {
	secret := &tlsv3.Secret{}
	if len(raw) == 0 {
		return secret, nil
	}
	// The secret is printed as an Any: DiscardUnknown skips its "@type".
	err := protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(raw, secret)
	return secret, err
}

func inline(source *corev3.DataSource) ([]byte, error) {
	switch s := source.GetSpecifier().(type) {
	case *corev3.DataSource_InlineBytes:
		return s.InlineBytes, nil
	case *corev3.DataSource_InlineString:
		return []byte(s.InlineString), nil
	case nil:
		return nil, certificate.ErrNoCertificate
	default:
		return nil, errors.New("its content is not shown inline")
	}
}

func deliveredIdentity(d dynamicSecret) rotation.DeliveredIdentity {
	out := rotation.DeliveredIdentity{SecretMeta: meta(d)}
	fail := func(err error) rotation.DeliveredIdentity {
		out.Err = fmt.Sprintf("secret %q: %v", d.Name, err)
		return out
	}
	secret, err := decodeSecret(d.Secret)
	if err != nil {
		return fail(err)
	}
	pem, err := inline(secret.GetTlsCertificate().GetCertificateChain())
	if err != nil {
		return fail(err)
	}
	out.Content = sha256.Sum256(pem)
	chain, err := certificate.FromPEM(pem)
	if err != nil {
		return fail(err)
	}
	out.Leaf = certificate.Leaf(chain)
	return out
}

func deliveredBundle(d dynamicSecret) rotation.DeliveredBundle {
	out := rotation.DeliveredBundle{SecretMeta: meta(d)}
	secret, err := decodeSecret(d.Secret)
	if err == nil {
		out.Bundles, err = bundles(secret.GetValidationContext())
	}
	if err != nil {
		out.Err = fmt.Sprintf("secret %q: %v", d.Name, err)
		return out
	}
	out.Content = bundleContent(out.Bundles)
	return out
}

// bundles reads both forms of a validation context: SPIFFE's validator, which
// tbot and SPIRE send, and the plain trusted_ca. The first may have an empty
// trusted_ca beside it, so it is looked for first.
func bundles(context *tlsv3.CertificateValidationContext) ([]rotation.TrustBundle, error) {
	if custom := context.GetCustomValidatorConfig(); custom != nil {
		config := &tlsv3.SPIFFECertValidatorConfig{}
		if err := custom.GetTypedConfig().UnmarshalTo(config); err != nil {
			return nil, fmt.Errorf("validator %q: %w", custom.GetName(), err)
		}
		var out []rotation.TrustBundle
		for _, domain := range config.GetTrustDomains() {
			b, err := bundle(domain.GetName(), domain.GetTrustBundle())
			if err != nil {
				return nil, fmt.Errorf("trust domain %q: %w", domain.GetName(), err)
			}
			out = append(out, b)
		}
		if len(out) == 0 {
			return nil, certificate.ErrNoCertificate
		}
		return out, nil
	}
	b, err := bundle("", context.GetTrustedCa())
	if err != nil {
		return nil, err
	}
	return []rotation.TrustBundle{b}, nil
}

func bundle(trustDomain string, source *corev3.DataSource) (rotation.TrustBundle, error) {
	pem, err := inline(source)
	if err != nil {
		return rotation.TrustBundle{}, err
	}
	authorities, err := certificate.FromPEM(pem)
	if err != nil {
		return rotation.TrustBundle{}, err
	}
	return certificate.Bundle(trustDomain, authorities), nil
}

// bundleContent digests bundles as a set: tbot's order of federated bundles is
// that of a Go map.
func bundleContent(bundles []rotation.TrustBundle) rotation.Fingerprint {
	var lines []string
	for _, b := range bundles {
		for _, a := range b.Authorities {
			lines = append(lines, b.TrustDomain+" "+a.SHA256.String())
		}
	}
	slices.Sort(lines)
	hash := sha256.New()
	for _, l := range slices.Compact(lines) {
		fmt.Fprintln(hash, l)
	}
	return rotation.Fingerprint(hash.Sum(nil))
}
