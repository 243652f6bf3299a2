package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

// manner is how the Workload API behaves. The zero manner sends one SVID and is
// then silent, as an agent is.
type manner struct {
	// message is what is sent instead, again and again.
	message func(*issuer) *workload.X509SVIDResponse
	// raw takes over each connection, instead.
	raw func(net.Conn) error
}

// issuer is the Workload API.
type issuer struct {
	workload.UnimplementedSpiffeWorkloadAPIServer

	leaf, ca, key []byte

	mu      sync.Mutex
	manner  manner
	sent    int
	changed chan struct{} // closed with the manner
}

func newIssuer(leaf, ca, key []byte) *issuer {
	return &issuer{leaf: leaf, ca: ca, key: key, changed: make(chan struct{})}
}

// set changes the manner, also for those who are there.
func (i *issuer) set(m manner) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.manner, i.sent = m, 0
	close(i.changed)
	i.changed = make(chan struct{})
}

// times is how often something was sent in this manner.
func (i *issuer) times() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.sent
}

func (i *issuer) now() (manner, <-chan struct{}) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.manner, i.changed
}

// count counts what was sent, unless the manner has changed since.
func (i *issuer) count(changed <-chan struct{}) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if changed == i.changed {
		i.sent++
	}
}

// serve serves at a path.
func (i *issuer) serve(path string) error {
	listener, err := net.Listen("unix", path) //nolint:noctx // it returns at once
	if err != nil {
		return err
	}
	if err := os.Chmod(path, 0o777); err != nil { //nolint:gosec // as the agent's
		return err
	}
	server := grpc.NewServer(grpc.MaxSendMsgSize(64 << 20))
	workload.RegisterSpiffeWorkloadAPIServer(server, i)
	return server.Serve(&sieve{Listener: listener, issuer: i})
}

// sieve keeps the connections to itself that are to be treated raw.
type sieve struct {
	net.Listener
	issuer *issuer
}

// Accept implements net.Listener.
func (s *sieve) Accept() (net.Conn, error) {
	for {
		conn, err := s.Listener.Accept()
		if err != nil {
			return nil, err
		}
		m, changed := s.issuer.now()
		if m.raw == nil {
			return conn, nil
		}
		go func() {
			defer conn.Close()
			_ = m.raw(conn) // it hung up
			s.issuer.count(changed)
		}()
	}
}

// FetchX509SVID implements workload.SpiffeWorkloadAPIServer. One stream lasts
// from one manner to the next, where it can.
func (i *issuer) FetchX509SVID(_ *workload.X509SVIDRequest, stream grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
	for {
		m, changed := i.now()
		if m.raw != nil {
			return nil // and its next connection is treated raw
		}
		if err := i.send(m, changed, stream); err != nil {
			return err
		}
	}
}

// send sends in one manner until it changes.
func (i *issuer) send(m manner, changed <-chan struct{}, stream grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
	message := i.small()
	if m.message != nil {
		message = m.message(i)
	}
	for {
		if err := stream.Send(message); err != nil {
			return err
		}
		i.count(changed)
		if m.message == nil {
			select {
			case <-stream.Context().Done():
				return stream.Context().Err()
			case <-changed:
				return nil
			}
		}
		select {
		case <-changed:
			return nil
		default:
		}
	}
}

// small is what an agent sends.
func (i *issuer) small() *workload.X509SVIDResponse {
	return &workload.X509SVIDResponse{Svids: []*workload.X509SVID{{SpiffeId: workloadID, X509Svid: i.leaf, X509SvidKey: i.key, Bundle: i.ca}}}
}

// mostOfAMessage is a little less than the watchdog takes.
const mostOfAMessage = 4<<20 - 8<<10

// sending sends a small message that is made larger up to a size in bytes.
func sending(enlarge func(m *workload.X509SVIDResponse, by int), size int) manner {
	return manner{message: func(i *issuer) *workload.X509SVIDResponse {
		m := i.small()
		enlarge(m, size-proto.Size(m))
		return m
	}}
}

func nothing(*workload.X509SVIDResponse, int) {}

// authorities makes the trust bundle large.
func authorities(m *workload.X509SVIDResponse, by int) {
	m.Svids[0].Bundle = bytes.Repeat(m.Svids[0].Bundle, 1+by/len(m.Svids[0].Bundle))
}

// certificates makes the chain large.
func certificates(m *workload.X509SVIDResponse, by int) {
	m.Svids[0].X509Svid = append(bytes.Clone(m.Svids[0].X509Svid), bytes.Repeat(m.Svids[0].Bundle, by/len(m.Svids[0].Bundle))...)
}

// identities makes SVIDs of nothing but an identity.
func identities(m *workload.X509SVIDResponse, by int) {
	small := &workload.X509SVID{SpiffeId: "spiffe://a/b"}
	for n := by / (proto.Size(small) + 2); n > 0; n-- {
		m.Svids = append(m.Svids, small)
	}
}

// revocations makes a list of revoked certificates, which nobody reads.
func revocations(m *workload.X509SVIDResponse, by int) {
	m.Crl = [][]byte{make([]byte, by)}
}

// headersWithoutEnd answers a stream with headers of 64 MB, whatever the client
// says that it takes.
var headersWithoutEnd = manner{raw: func(conn net.Conn) error {
	return answer(conn, func(framer *http2.Framer, stream uint32) error {
		encoder, fields, err := response("13", "")
		if err != nil {
			return err
		}
		if err := framer.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: fields.Bytes()}); err != nil {
			return err
		}
		for range 64 {
			fields.Reset()
			for n := range 64 {
				if err := encoder.WriteField(hpack.HeaderField{Name: fmt.Sprint("grpc-message", n), Value: strings.Repeat("x", 16<<10)}); err != nil {
					return err
				}
			}
			for fields.Len() > 0 {
				if err := framer.WriteContinuation(stream, false, fields.Next(16<<10)); err != nil {
					return err
				}
			}
		}
		return framer.WriteContinuation(stream, true, nil)
	})
}}

// longError ends a stream with an error whose text has 12 MB.
var longError = manner{raw: func(conn net.Conn) error {
	return answer(conn, func(framer *http2.Framer, stream uint32) error {
		_, fields, err := response("13", strings.Repeat("%41", 4<<20))
		if err != nil {
			return err
		}
		if err := framer.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, EndStream: true, BlockFragment: fields.Next(16 << 10)}); err != nil {
			return err
		}
		for fields.Len() > 0 {
			if err := framer.WriteContinuation(stream, fields.Len() <= 16<<10, fields.Next(16<<10)); err != nil {
				return err
			}
		}
		return nil
	})
}}

// longestMessage begins a message of 4 GiB.
var longestMessage = manner{raw: func(conn net.Conn) error {
	return answer(conn, func(framer *http2.Framer, stream uint32) error {
		_, fields, err := response("", "")
		if err != nil {
			return err
		}
		if err := framer.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, EndHeaders: true, BlockFragment: fields.Bytes()}); err != nil {
			return err
		}
		return framer.WriteData(stream, false, binary.BigEndian.AppendUint32([]byte{0}, 1<<32-1))
	})
}}

// response encodes the headers of a response; a status makes them its end.
func response(status, message string) (*hpack.Encoder, *bytes.Buffer, error) {
	fields := new(bytes.Buffer)
	encoder := hpack.NewEncoder(fields)
	for _, f := range [][2]string{{":status", "200"}, {"content-type", "application/grpc"}, {"grpc-status", status}, {"grpc-message", message}} {
		if f[1] == "" {
			continue
		}
		if err := encoder.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}); err != nil {
			return nil, nil, err
		}
	}
	return encoder, fields, nil
}

// answer waits for the first stream of a connection, answers it, and reads on
// until the other side hangs up.
func answer(conn net.Conn, with func(framer *http2.Framer, stream uint32) error) error {
	if _, err := io.CopyN(io.Discard, conn, int64(len(http2.ClientPreface))); err != nil {
		return err
	}
	framer := http2.NewFramer(conn, conn)
	if err := framer.WriteSettings(); err != nil {
		return err
	}
	for {
		frame, err := framer.ReadFrame()
		if err != nil {
			return err
		}
		if frame, ok := frame.(*http2.HeadersFrame); ok {
			// A lock-step peer would wait for each other's frames.
			go func() { _, _ = io.Copy(io.Discard, conn) }()
			if err := with(framer, frame.StreamID); err != nil {
				return err
			}
			break
		}
	}
	return conn.SetReadDeadline(time.Now().Add(time.Second))
}
