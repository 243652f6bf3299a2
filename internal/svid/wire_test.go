package svid

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
)

// frames cuts a message into frames.
func frames(wire []byte, size int) mem.BufferSlice {
	var all mem.BufferSlice
	for len(wire) > 0 {
		n := min(size, len(wire))
		data := bytes.Clone(wire[:n])
		all = append(all, mem.NewBuffer(&data, pool{}))
		wire = wire[n:]
	}
	return all
}

func marshal(t testing.TB, m proto.Message) []byte {
	t.Helper()
	wire, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return wire
}

// TestCodecOverwritesFrames: nothing of a message is left in the memory that
// it came in, whether it was good or not.
func TestCodecOverwritesFrames(t *testing.T) {
	good := marshal(t, message(t, 1))
	for name, wire := range map[string][]byte{"good": good, "cut off": good[:len(good)-1], "junk": []byte("the secret key")} {
		for _, size := range []int{7, 1500, len(good)} {
			f := frames(wire, size)
			err := codec{}.Unmarshal(f, new(workload.X509SVIDResponse))
			if (err == nil) != (name == "good") {
				t.Errorf("%s: %v", name, err)
			}
			for _, frame := range f {
				if data := frame.ReadOnlyData(); !bytes.Equal(data, make([]byte, len(data))) {
					t.Errorf("%s in frames of %d bytes: %q is left", name, size, data)
				}
			}
		}
	}
}

// TestWhatIsNotRead: a message of many small parts takes no more memory than it
// has on the wire, and its identity is read.
func TestWhatIsNotRead(t *testing.T) {
	for name, m := range map[string]*workload.X509SVIDResponse{
		"SVIDs":            {Svids: slices.Repeat([]*workload.X509SVID{{}}, 1<<20)},
		"revocation lists": {Crl: make([][]byte, 1<<20)},
	} {
		t.Run(name, func(t *testing.T) {
			m.Svids = append([]*workload.X509SVID{newSVID(t, idA, 1)}, m.Svids...)
			wire := marshal(t, m)
			var got workload.X509SVIDResponse
			if err := (codec{}).Unmarshal(mem.BufferSlice{mem.SliceBuffer(wire)}, &got); err != nil {
				t.Fatal(err)
			}
			if len(got.Svids) > maxSVIDs+1 || len(got.Crl) > 0 || got.Svids[0].SpiffeId != idA {
				t.Errorf("%d SVIDs, %d revocation lists, the first is %s", len(got.Svids), len(got.Crl), got.Svids[0].SpiffeId)
			}
			if _, err := parse(&got, time.Now()); (err == nil) != (len(m.Svids) == 1) {
				t.Errorf("error %v", err)
			}
		})
	}
}

// TestPoolOverwrites: what is given back is overwritten to its last byte.
func TestPoolOverwrites(t *testing.T) {
	b := pool{}.Get(2000)
	whole := *b
	for i := range whole {
		whole[i] = 'k'
	}
	*b = whole[:10]
	pool{}.Put(b)
	if !bytes.Equal(whole, make([]byte, len(whole))) {
		t.Errorf("%q is left", whole)
	}
}

// FuzzCodec: a message is taken apart as protobuf does it, but for the keys,
// of which nothing is left.
func FuzzCodec(f *testing.F) {
	good := marshal(f, message(f, 1))
	f.Add(good, 1)
	f.Add(good[:len(good)/2], 16384)
	f.Add(marshal(f, &workload.X509SVIDResponse{
		Svids:            []*workload.X509SVID{newSVID(f, idA, 1), newSVID(f, idB, 2)},
		Crl:              [][]byte{{1, 2, 3}},
		FederatedBundles: map[string][]byte{"spiffe://other.test": {4, 5}},
	}), 100)
	// The field of the key as a number, and twice.
	f.Add([]byte{0x0a, 0x02, 0x18, 0x01}, 1)
	f.Add([]byte{0x0a, 0x06, 0x1a, 0x01, 'k', 0x1a, 0x01, 'l'}, 3)
	f.Fuzz(func(t *testing.T, wire []byte, size int) {
		var want, got workload.X509SVIDResponse
		wantErr := proto.Unmarshal(wire, &want)
		cut := frames(wire, max(1, size))
		err := codec{}.Unmarshal(cut, &got)
		for _, frame := range cut {
			if data := frame.ReadOnlyData(); !bytes.Equal(data, make([]byte, len(data))) {
				t.Fatalf("%q is left", data)
			}
		}
		if wantErr == nil && err != nil {
			t.Fatalf("error %v, protobuf says none", err)
		}
		if wantErr != nil {
			return // or only what nobody reads is malformed
		}
		// Nobody reads these.
		want.Crl, want.FederatedBundles = nil, nil
		want.ProtoReflect().SetUnknown(nil)
		want.Svids = want.Svids[:min(len(want.Svids), maxSVIDs+1)]
		if len(got.Svids) != len(want.Svids) {
			t.Fatalf("%d SVIDs, want %d", len(got.Svids), len(want.Svids))
		}
		for i, svid := range got.Svids {
			if key := svid.GetX509SvidKey(); !bytes.Equal(key, make([]byte, len(want.Svids[i].X509SvidKey))) {
				t.Fatalf("the key is %q", key)
			}
		}
		dropKeys(&want)
		dropKeys(&got)
		if !proto.Equal(&want, &got) {
			t.Fatalf("%v, want %v", &got, &want)
		}
	})
}
