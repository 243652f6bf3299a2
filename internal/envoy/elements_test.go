package envoy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"

	"svid-watchdog/internal/rotation"
)

// elementsPlainly is eachElement as encoding/json alone would do it.
func elementsPlainly(data []byte, key string) (elements [][]byte, err error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	err = eachField(dec, func(name string) error {
		var raw json.RawMessage
		if err := dec.Decode(&raw); err != nil {
			return err
		}
		if name != key {
			return nil
		}
		var list []json.RawMessage
		if err := json.Unmarshal(raw, &list); err != nil {
			return err
		}
		for _, e := range list {
			elements = append(elements, e)
		}
		return nil
	})
	return elements, err
}

// FuzzElements: what encoding/json makes of an answer, the scanner finds too,
// however the answer arrives.
func FuzzElements(f *testing.F) {
	addRecorded(f, "clusters")
	for _, seed := range []string{
		`{"cluster_statuses":[1,"a",null,{"a":[]},[{}],-1.5e+3]}`, `{"a":"]}\"","cluster_statuses":["\\","\\\""," "]}`, `{}`, `{"cluster_statuses":null}`,
		`{"cluster_statuses":[] ,"x":{"y":[1,2,{"z":"}"}]}}`, `{"cluster_statuses":[1],"cluster_statuses":[2]}`, `{"cluster\u005fstatuses":[1]}`, "\ufeff{}",
		`{"cluster_statuses":[1,]}`, `{"cluster_statuses":[}`, `{"cluster_statuses":{}}`, `{"a":}`, `{"a" 1}`, `[`, `{"a":[:]}`, `{"cluster_statuses":[1 2]}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		want, wantErr := elementsPlainly(data, "cluster_statuses")
		for name, r := range map[string]io.Reader{"at once": bytes.NewReader(data), "in bytes": iotest.OneByteReader(bytes.NewReader(data))} {
			var got [][]byte
			err := eachElement(r, "cluster_statuses", func(element []byte) error {
				got = append(got, bytes.Clone(element))
				return nil
			})
			if wantErr == nil && (err != nil || !reflect.DeepEqual(got, want)) {
				t.Errorf("%s: %q, %v, want %q", name, got, err, want)
			}
			if err == nil && len(got) == 0 && len(want) > 0 {
				t.Errorf("%s: nothing was found in %q", name, data)
			}
		}
	})
}

// TestBrokenElements: an answer that breaks off or is no JSON is an error.
func TestBrokenElements(t *testing.T) {
	whole := `{"a":{"b":[1,"x\"y",true]},"k":[{"c":"d"},2]}`
	for end := range len(whole) {
		err := eachElement(strings.NewReader(whole[:end]), "k", func([]byte) error { return nil })
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%s: %v", whole[:end], err)
		}
	}
	for _, bad := range []string{`[]`, `1`, `"a"`, `{"a":}`, `{"a" 1}`, `{1:2}`, `{"k":[1 2]}`, `{"k":[,]}`, `{"k":{}}`, `{"k":1}`, `{"a":1]`, `{"a":)}`, `{"a":1,}`} {
		if err := eachElement(strings.NewReader(bad), "k", func([]byte) error { return nil }); err == nil {
			t.Errorf("%s was accepted", bad)
		}
	}
	stop := errors.New("stop")
	if err := eachElement(strings.NewReader(whole), "k", func([]byte) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("an error of take became %v", err)
	}
	for _, failing := range []io.Reader{iotest.ErrReader(stop), io.MultiReader(strings.NewReader(whole[:20]), iotest.ErrReader(stop))} {
		if err := eachElement(failing, "k", func([]byte) error { return nil }); !errors.Is(err, stop) {
			t.Errorf("an error of the reader became %v", err)
		}
	}
}

// mesh is an Envoy's answer with so many elements, the last of which may be
// another. It is never whole in memory. "#12345678" in an element is its number.
type mesh struct {
	head, element, last, tail string
	elements                  int

	now    []byte // what is still to be read of it
	buffer []byte
}

func (m *mesh) Read(p []byte) (int, error) {
	if len(m.now) == 0 {
		switch m.elements--; {
		case m.head != "":
			m.now, m.head = append(m.buffer[:0], m.head...), ""
			m.elements++
		case m.elements > 0:
			m.now = append(m.buffer[:0], m.element...)
			for rest := m.now; ; {
				at := bytes.IndexByte(rest, '#')
				if at < 0 {
					break
				}
				strconv.AppendInt(rest[:at+1], int64(10_000_000+m.elements), 10)
				rest = rest[at+1:]
			}
		case m.elements == 0:
			m.now = append(append(m.buffer[:0], m.last...), m.tail...)
		default:
			return 0, io.EOF
		}
		m.buffer = m.now
	}
	n := copy(p, m.now)
	m.now = m.now[n:]
	return n, nil
}

// certsOf is /certs of a sidecar with n contexts. It is as long as Envoy's,
// and as indented.
func certsOf(n int) *mesh {
	element := `{"ca_cert":[{"path":"<inline>","serial_number":"4a5d0c8f5b1c34ab3c50b5d0d7d0b1a3","subject_alt_names":[{"uri":"spiffe://example.test"}],"days_until_expiration":"3649","valid_from":"2026-11-23T20:00:00Z","expiration_time":"2036-11-20T20:00:00Z"}],"cert_chain":[{"path":"<inline>","serial_number":"00e3d4a1c2b5f6978812334455667788","subject_alt_names":[{"uri":"spiffe://example.test/ns/shop/sa/front-end"}],"days_until_expiration":"0","valid_from":"2026-11-23T20:00:00Z","expiration_time":"2026-11-23T21:00:00Z"}]}`
	element = indented(element)
	return &mesh{head: "{\n \"certificates\": [\n  ", element: element + ",\n  ", last: element, tail: "\n ]\n}\n", elements: n}
}

// indented is an element as Envoy prints it.
func indented(element string) string {
	var out bytes.Buffer
	if err := json.Indent(&out, []byte(element), "  ", " "); err != nil {
		panic(err) // the test's own
	}
	return out.String()
}

// clustersOf is /clusters of an Envoy that does not honour the filter.
func clustersOf(n int) *mesh {
	element := `{"name":"outbound|8080||service-#12345678.namespace-56.svc.cluster.local","added_via_api":true,"host_statuses":[{"address":{"socket_address":{"address":"10.10.10.10","port_value":8080}},"stats":[{"name":"cx_connect_fail"},{"value":"12","name":"cx_total"},{"name":"rq_error"},{"name":"rq_success","value":"10042"},{"name":"rq_timeout"},{"value":"10042","name":"rq_total"},{"type":"GAUGE","value":"2","name":"cx_active"},{"type":"GAUGE","name":"rq_active"},{"type":"GAUGE","name":"rq_pending_active"}],"health_status":{"eds_health_status":"HEALTHY"},"weight":1,"locality":{"region":"region-1","zone":"zone-1a"}}],"circuit_breakers":{"thresholds":[{"max_connections":4294967295,"max_pending_requests":4294967295,"max_requests":4294967295,"max_retries":4294967295},{"priority":"HIGH","max_connections":1024,"max_pending_requests":1024,"max_requests":1024,"max_retries":3}]},"observability_name":"outbound|8080||service-#12345678.namespace-56.svc.cluster.local;","eds_service_name":"outbound|8080||service-#12345678.namespace-56.svc.cluster.local"}`
	element = indented(element)
	return &mesh{head: "{\n \"cluster_statuses\": [\n  ", element: element + ",\n  ", last: clusterJSON, tail: "\n ]\n}\n", elements: n}
}

// allocated is what f allocates, in bytes and in objects.
func allocated(f func()) (size, objects uint64) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // nobody else
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc, after.Mallocs - before.Mallocs
}

// TestLargeAnswersAreNotHeld: what an answer costs us does not grow with the
// mesh. All that is allocated, whether it could be freed meanwhile or not, is
// an eighth of the megabyte that the memory may grow by.
func TestLargeAnswersAreNotHeld(t *testing.T) {
	const (
		maxBytes   = 128 << 10
		maxObjects = 150
	)
	// The first use of a type by encoding/json is dearer.
	if _, err := readContexts(certsOf(1)); err != nil {
		t.Fatal(err)
	}
	if _, err := readSDSCluster(clustersOf(1), "sds-grpc"); err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{10, 1000, 10_000, 100_000} {
		read := &boundedReader{r: certsOf(n), total: maxContexts, part: maxContexts}
		size, objects := allocated(func() {
			c, err := readContexts(read)
			if err != nil || len(c.Leaves) != 1 || c.Leaves[0].Contexts != n {
				t.Fatalf("%d contexts: %+v, %v", n, c, err)
			}
		})
		t.Logf("%d contexts: %d bytes in, %d allocated in %d objects", n, maxContexts-read.total, size, objects)
		if size > maxBytes || objects > maxObjects {
			t.Errorf("%d contexts took %d bytes in %d objects", n, size, objects)
		}
		read = &boundedReader{r: clustersOf(n), total: maxClusters, part: maxClusters}
		size, objects = allocated(func() {
			c, err := readSDSCluster(read, "sds-grpc")
			if err != nil || !c.Found || c.Requests != 7 {
				t.Fatalf("%d clusters: %+v, %v", n, c, err)
			}
		})
		t.Logf("%d clusters: %d bytes in, %d allocated in %d objects", n, maxClusters-read.total, size, objects)
		if size > maxBytes || objects > maxObjects {
			t.Errorf("%d clusters took %d bytes in %d objects", n, size, objects)
		}
	}
}

// TestManyCertificates: contexts that take turns are counted as they are, also
// where they are more than are remembered.
func TestManyCertificates(t *testing.T) {
	for _, distinct := range []int{2, 4, 5, 9} {
		var elements []string
		for i := range 900 {
			elements = append(elements, strings.ReplaceAll(contextJSON, "0abc", fmt.Sprintf("%x", 1+i%distinct)))
		}
		c, err := readContexts(strings.NewReader(`{"certificates":[` + strings.Join(elements, ",") + `]}`))
		if err != nil || len(c.Leaves) != distinct {
			t.Fatalf("%d: %+v, %v", distinct, c, err)
		}
		for _, l := range c.Leaves {
			if l.Contexts != 900/distinct {
				t.Errorf("%d: %+v", distinct, l)
			}
		}
	}
}

func benchmark(b *testing.B, answer func(int) *mesh, read func(io.Reader) error) {
	for _, n := range []int{10, 1000, 10_000} {
		b.Run(fmt.Sprintf("clusters=%d", n), func(b *testing.B) {
			length, err := io.Copy(io.Discard, answer(n))
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(length)
			b.ReportAllocs()
			for b.Loop() {
				if err := read(answer(n)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkCerts(b *testing.B) {
	benchmark(b, certsOf, func(r io.Reader) error {
		_, err := readContexts(r)
		return err
	})
}

func BenchmarkClusters(b *testing.B) {
	benchmark(b, clustersOf, func(r io.Reader) error {
		_, err := readSDSCluster(r, "sds-grpc")
		return err
	})
}

func BenchmarkSecrets(b *testing.B) {
	leaf, ca := chain(b, testID)
	answer := dumpOf(identityJSON("default", "2026-11-23T20:16:04.644123456Z", "2026-11-23T20:16:04.645Z", pemOf(leaf, ca)), spiffeBundleJSON(pemOf(ca)))
	b.SetBytes(int64(len(answer)))
	b.ReportAllocs()
	var secrets *rotation.Secrets
	for b.Loop() {
		var err error
		if secrets, err = readActiveSecrets(body(answer), "default", "ROOTCA"); err != nil {
			b.Fatal(err)
		}
	}
	if len(secrets.Identity) != 1 {
		b.Error(secrets)
	}
}
