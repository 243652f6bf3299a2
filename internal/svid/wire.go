package svid

import (
	"fmt"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// Each message of the Workload API brings a private key along. It passes
// through memory that gRPC would keep for later messages, so that the newest
// key would stay in the process for as long as nothing overwrites it. Here it
// is overwritten before the message is taken apart:
//
//   - there is no read buffer (see connect): what is read goes straight into
//     the buffer of its frame;
//   - the codec overwrites the frames of a message, and its own copy;
//   - the pool overwrites what is given back unread: what was too large, or
//     was cut off.

// codec takes messages apart as gRPC's own codec does, and leaves no key
// behind.
type codec struct{}

// Name implements encoding.CodecV2. An empty one leaves the content type as
// other clients have it.
func (codec) Name() string { return "" }

// Marshal implements encoding.CodecV2.
func (codec) Marshal(v any) (mem.BufferSlice, error) {
	m, ok := v.(proto.Message)
	if !ok {
		return nil, fmt.Errorf("%T is no message of protobuf", v)
	}
	wire, err := proto.Marshal(m)
	if err != nil {
		return nil, err
	}
	return mem.BufferSlice{mem.SliceBuffer(wire)}, nil
}

// Unmarshal implements encoding.CodecV2.
func (codec) Unmarshal(frames mem.BufferSlice, v any) error {
	m, ok := v.(proto.Message)
	if !ok {
		return fmt.Errorf("%T is no message of protobuf", v)
	}
	wire := make([]byte, 0, frames.Len())
	defer func() { clear(wire) }()
	for _, frame := range frames {
		data := frame.ReadOnlyData()
		wire = append(wire, data...)
		// Who else has a reference must not see it change; nobody has one to
		// what has just been received.
		clear(data)
	}
	read := wire
	if _, ok := v.(*workload.X509SVIDResponse); ok {
		if err := blankKeys(wire); err != nil {
			return err
		}
		var err error
		if read, err = keepSVIDs(wire); err != nil {
			return err
		}
	}
	return proto.Unmarshal(read, m)
}

// The fields of the messages, by their numbers (workload.proto).
const (
	fieldSVIDs = 1 // of X509SVIDResponse
	fieldKey   = 3 // x509_svid_key of X509SVID
)

// blankKeys overwrites the private keys in a message on the wire.
func blankKeys(wire []byte) error {
	return eachBytes(wire, fieldSVIDs, func(svid []byte) error {
		return eachBytes(svid, fieldKey, func(key []byte) error {
			clear(key)
			return nil
		})
	})
}

// keepSVIDs leaves of a message, in its place, what is read of it: the SVIDs, of
// which one more than are allowed shows that there are too many. On the wire the
// rest (revocation lists, federated bundles) is no larger than a message may be,
// but in memory a list of empty entries takes many times as much.
func keepSVIDs(wire []byte) (kept []byte, err error) {
	kept = wire[:0]
	for svids := 0; len(wire) > 0; {
		number, kind, n := protowire.ConsumeField(wire)
		if n < 0 {
			return nil, protowire.ParseError(n)
		}
		if number == fieldSVIDs && kind == protowire.BytesType && svids <= maxSVIDs {
			kept = append(kept, wire[:n]...)
			svids++
		}
		wire = wire[n:]
	}
	return kept, nil
}

// eachBytes calls do with each value of a field of bytes.
func eachBytes(wire []byte, field protowire.Number, do func([]byte) error) error {
	for len(wire) > 0 {
		number, kind, n := protowire.ConsumeTag(wire)
		if n < 0 {
			return protowire.ParseError(n)
		}
		wire = wire[n:]
		if number == field && kind == protowire.BytesType {
			value, n := protowire.ConsumeBytes(wire)
			if n < 0 {
				return protowire.ParseError(n)
			}
			if err := do(value); err != nil {
				return err
			}
			wire = wire[n:]
			continue
		}
		n = protowire.ConsumeFieldValue(number, kind, wire)
		if n < 0 {
			return protowire.ParseError(n)
		}
		wire = wire[n:]
	}
	return nil
}

// pool keeps nothing and overwrites what it is given: messages come every
// twenty minutes.
type pool struct{}

// Get implements mem.BufferPool.
func (pool) Get(length int) *[]byte {
	b := make([]byte, length)
	return &b
}

// Put implements mem.BufferPool.
func (pool) Put(b *[]byte) { clear((*b)[:cap(*b)]) }
