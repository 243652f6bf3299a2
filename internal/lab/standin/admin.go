package standin

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"sort"
	"strings"
	"time"

	adminv3 "github.com/envoyproxy/go-control-plane/envoy/admin/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// handler answers the admin questions that the watchdog asks.
func (l *life) handler(life context.Context) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /server_info", l.serverInfo)
	mux.HandleFunc("GET /ready", func(w http.ResponseWriter, _ *http.Request) {
		if state := l.serverState(); state != adminv3.ServerInfo_LIVE {
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprintln(w, state)
			return
		}
		fmt.Fprintln(w, "LIVE")
	})
	mux.HandleFunc("GET /config_dump", l.configDump)
	mux.HandleFunc("GET /certs", l.certs)
	mux.HandleFunc("GET /clusters", l.clusters)
	mux.HandleFunc("GET /stats", l.stats)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		defer context.AfterFunc(life, cancel)()
		if l.pass(ctx) != nil {
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// write prints a message as Envoy does: proto3 JSON with the fields' original
// names; defaults are left out, but in /certs.
func write(w http.ResponseWriter, m proto.Message, defaults bool) {
	text, err := protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: defaults}.Marshal(m)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(text) // the client may have gone
}

// serverState is PRE_INITIALIZING until both secrets came, as the clusters
// wait for them.
func (l *life) serverState() adminv3.ServerInfo_State {
	l.state.Lock()
	defer l.state.Unlock()
	for _, s := range l.secrets {
		if !s.active {
			return adminv3.ServerInfo_PRE_INITIALIZING
		}
	}
	return adminv3.ServerInfo_LIVE
}

func (l *life) serverInfo(w http.ResponseWriter, _ *http.Request) {
	up := time.Since(l.started).Truncate(time.Second)
	write(w, &adminv3.ServerInfo{
		Version:            "0000000000000000000000000000000000000000/" + l.Version() + "/Clean/RELEASE/BoringSSL",
		State:              l.serverState(),
		UptimeCurrentEpoch: durationpb.New(up),
		UptimeAllEpochs:    durationpb.New(up),
		Node:               &corev3.Node{Id: "sidecar~lab"},
	}, false)
}

// configDump answers for the dynamic secrets by resource=, name_regex= (a full
// match) and mask=.
func (l *life) configDump(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	resource := query.Get("resource")
	if resource != "dynamic_active_secrets" && resource != "dynamic_warming_secrets" {
		http.Error(w, resource+" not found in config dump", http.StatusNotFound)
		return
	}
	names, err := regexp.Compile("^(?:" + query.Get("name_regex") + ")$")
	if err != nil {
		http.Error(w, "bad name_regex", http.StatusBadRequest)
		return
	}
	mask := query.Get("mask")
	var configs []json.RawMessage
	l.state.Lock()
	for _, name := range []string{identitySecret, bundleSecret} {
		s := l.secrets[name]
		if s.active != (resource == "dynamic_active_secrets") || query.Has("name_regex") && !names.MatchString(name) {
			continue
		}
		element := &adminv3.SecretsConfigDump_DynamicSecret{
			Name: name, VersionInfo: s.version, LastUpdated: timestamppb.New(s.updated.Truncate(time.Millisecond)),
		}
		if content := shown(s.content, mask); content != nil {
			if element.Secret, err = anypb.New(content); err != nil {
				break
			}
		}
		var packed *anypb.Any
		if packed, err = anypb.New(element); err != nil {
			break
		}
		var text []byte
		if text, err = (protojson.MarshalOptions{UseProtoNames: true}).Marshal(packed); err != nil {
			break
		}
		configs = append(configs, text)
	}
	l.state.Unlock()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	// An empty list is left out like any default.
	_ = json.NewEncoder(w).Encode(struct { // the client may have gone
		Configs []json.RawMessage `json:"configs,omitempty"`
	}{configs})
}

// shown is a secret as the dump shows it: the private key redacted, or gone
// with what else the mask leaves out.
func shown(s *tlsv3.Secret, mask string) *tlsv3.Secret {
	if s == nil || mask != "" && !strings.Contains(mask, "secret.") {
		return nil
	}
	out, ok := proto.Clone(s).(*tlsv3.Secret)
	if !ok {
		return nil
	}
	if c := out.GetTlsCertificate(); c != nil {
		c.PrivateKey = &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: []byte("[redacted]")}}
		if mask != "" {
			c.PrivateKey = nil
		}
	}
	if mask != "" {
		out.Name = ""
	}
	return out
}

// certs lists one element for each context: the leaf, and the first CA.
func (l *life) certs(w http.ResponseWriter, _ *http.Request) {
	out := &adminv3.Certificates{}
	l.state.Lock()
	for _, c := range l.contexts {
		leaf, ca := c.certificate.Leaf, c.authorities[0]
		details := func(path string, serial []byte, from, to time.Time, uris []*url.URL) *adminv3.CertificateDetails {
			d := &adminv3.CertificateDetails{
				Path: path, SerialNumber: fmt.Sprintf("%x", serial),
				ValidFrom: timestamppb.New(from), ExpirationTime: timestamppb.New(to),
			}
			if days := time.Until(to).Hours() / 24; days > 0 {
				d.DaysUntilExpiration = uint64(days)
			}
			for _, u := range uris {
				d.SubjectAltNames = append(d.SubjectAltNames, &adminv3.SubjectAlternateName{
					Name: &adminv3.SubjectAlternateName_Uri{Uri: u.String()},
				})
			}
			return d
		}
		out.Certificates = append(out.Certificates, &adminv3.Certificate{
			CaCert:    []*adminv3.CertificateDetails{details(c.caPath, ca.SerialNumber.Bytes(), ca.NotBefore, ca.NotAfter, ca.URIs)},
			CertChain: []*adminv3.CertificateDetails{details("<inline>", leaf.SerialNumber.Bytes(), leaf.NotBefore, leaf.NotAfter, leaf.URIs)},
		})
	}
	l.state.Unlock()
	write(w, out, true)
}

// clusters answers /clusters?format=json. The filter is honoured from Envoy
// 1.38 on (envoyproxy/envoy#43407) and ignored by older ones.
func (l *life) clusters(w http.ResponseWriter, r *http.Request) {
	filter := regexp.MustCompile("")
	if f := r.URL.Query().Get("filter"); f != "" && l.modern {
		var err error
		if filter, err = regexp.Compile(f); err != nil {
			http.Error(w, "bad filter", http.StatusBadRequest)
			return
		}
	}
	l.state.Lock()
	h := l.host
	if h.conn != nil {
		h.connections = 1
	}
	l.state.Unlock()
	sds := &adminv3.ClusterStatus{
		Name: sdsCluster, ObservabilityName: sdsCluster + ";",
		HostStatuses: []*adminv3.HostStatus{{
			Address: &corev3.Address{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: l.cfg.SDSSocket}}},
			Stats: []*adminv3.SimpleMetric{
				{Name: "cx_connect_fail", Value: h.connectFail},
				{Name: "cx_total", Value: h.total + h.connectFail},
				{Name: "rq_error", Value: h.rqError},
				{Name: "rq_success", Value: h.rqSuccess},
				{Name: "rq_timeout"},
				{Name: "rq_total", Value: h.rqTotal},
				{Name: "cx_active", Value: h.connections, Type: adminv3.SimpleMetric_GAUGE},
				{Name: "rq_active", Value: h.rqActive, Type: adminv3.SimpleMetric_GAUGE},
				{Name: "rq_pending_active", Type: adminv3.SimpleMetric_GAUGE},
			},
		}},
	}
	all := []*adminv3.ClusterStatus{sds}
	for i := range l.cfg.Clusters {
		name := fmt.Sprintf("outbound|%d||upstream.lab.test", 8000+i)
		all = append(all, &adminv3.ClusterStatus{Name: name, ObservabilityName: name})
	}
	out := &adminv3.Clusters{}
	for _, c := range all {
		if filter.MatchString(c.GetName()) {
			out.ClusterStatuses = append(out.ClusterStatuses, c)
		}
	}
	write(w, out, false)
}

// stats answers /stats?filter=… as text. What the stats matcher hides is not
// there.
func (l *life) stats(w http.ResponseWriter, r *http.Request) {
	filter, err := regexp.Compile(r.URL.Query().Get("filter"))
	if err != nil {
		http.Error(w, "bad filter", http.StatusBadRequest)
		return
	}
	lines := []string{fmt.Sprintf("server.uptime: %d", int(time.Since(l.started).Seconds()))}
	if l.cfg.SDSStats {
		l.state.Lock()
		for name, s := range l.secrets {
			for stat, value := range map[string]any{
				"update_attempt": s.attempts, "update_success": s.successes, "update_rejected": s.rejections,
				"update_failure": s.failures, "update_time": max(0, s.statTime.UnixMilli()), "version_text": fmt.Sprintf("%q", s.statVersion),
			} {
				lines = append(lines, fmt.Sprintf("sds.%s.%s: %v", name, stat, value))
			}
		}
		l.state.Unlock()
	}
	sort.Strings(lines)
	for _, line := range lines {
		if name, _, _ := strings.Cut(line, ": "); filter.MatchString(name) {
			fmt.Fprintln(w, line)
		}
	}
}
