package svid

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/protobuf/proto"
)

func TestParse(t *testing.T) {
	now := time.Unix(12, 0)
	first := newSVID(t, idA, 0xabc)
	// Leaf and intermediate, one after the other.
	first.X509Svid = append(first.X509Svid, newCert(t, "", 2)...)
	first.Bundle = append(first.Bundle, newCert(t, "", 3)...)
	got, err := parse(&workload.X509SVIDResponse{Svids: []*workload.X509SVID{first, newSVID(t, idB, 4)}}, now)
	if err != nil {
		t.Fatal(err)
	}
	if !got.At.Equal(now) {
		t.Errorf("At = %v, want the time that was told", got.At)
	}
	if got.Leaf.SPIFFEID != idA || got.Leaf.Serial != "abc" || len(got.Leaf.Chain) != 2 {
		t.Errorf("leaf %+v, want the first SVID with its chain", got.Leaf)
	}
	if !slices.Equal(got.SPIFFEIDs, []string{idA, idB}) {
		t.Errorf("SPIFFE IDs %v", got.SPIFFEIDs)
	}
	if got.Bundle.TrustDomain != "example.test" || len(got.Bundle.Authorities) != 2 {
		t.Errorf("bundle %+v", got.Bundle)
	}
}

func TestParseMalformed(t *testing.T) {
	with := func(change func(*workload.X509SVID)) *workload.X509SVIDResponse {
		svid := newSVID(t, idA, 1)
		change(svid)
		return &workload.X509SVIDResponse{Svids: []*workload.X509SVID{svid}}
	}
	for name, test := range map[string]struct {
		message *workload.X509SVIDResponse
		err     string
	}{
		"nothing":          {nil, "holds no SVID"},
		"an empty list":    {&workload.X509SVIDResponse{}, "holds no SVID"},
		"an absent SVID":   {&workload.X509SVIDResponse{Svids: []*workload.X509SVID{nil}}, "SVID 1"},
		"no ID":            {with(func(s *workload.X509SVID) { s.SpiffeId = "" }), "SVID 1"},
		"a URL":            {with(func(s *workload.X509SVID) { s.SpiffeId = "https://example.test/a" }), "SVID 1"},
		"no certificate":   {with(func(s *workload.X509SVID) { s.X509Svid = nil }), "no certificate"},
		"half of one":      {with(func(s *workload.X509SVID) { s.X509Svid = s.X509Svid[:100] }), "first SVID"},
		"PEM for DER":      {with(func(s *workload.X509SVID) { s.X509Svid = []byte("-----BEGIN CERTIFICATE-----") }), "first SVID"},
		"no bundle":        {with(func(s *workload.X509SVID) { s.Bundle = nil }), "trust bundle"},
		"a broken bundle":  {with(func(s *workload.X509SVID) { s.Bundle = []byte{1} }), "trust bundle"},
		"another's ID":     {with(func(s *workload.X509SVID) { s.SpiffeId = idB }), "announced as " + idB},
		"a nameless leaf":  {with(func(s *workload.X509SVID) { s.X509Svid = newCert(t, "", 1) }), `says ""`},
		"a long ID":        {with(func(s *workload.X509SVID) { s.SpiffeId = idA + strings.Repeat("/a", 1<<20) }), "too long"},
		"a thousand":       {&workload.X509SVIDResponse{Svids: slices.Repeat([]*workload.X509SVID{newSVID(t, idA, 1)}, 1000)}, "more than 64 SVIDs"},
		"many authorities": {with(func(s *workload.X509SVID) { s.Bundle = bytes.Repeat(s.Bundle, 5000) }), "too many"},
		"a bad second one": {&workload.X509SVIDResponse{Svids: []*workload.X509SVID{newSVID(t, idA, 1), {}}}, "SVID 2"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parse(test.message, time.Now())
			if err == nil || !strings.Contains(err.Error(), test.err) {
				t.Errorf("error %v, want %q in it", err, test.err)
			}
			if got.Leaf.SPIFFEID != "" || got.SPIFFEIDs != nil {
				t.Errorf("a malformed message gives %+v, want nothing", got)
			}
		})
	}
}

// The bytes themselves must be gone, not only the reference to them.
func TestKeysAreOverwritten(t *testing.T) {
	var keys [][]byte
	m := &workload.X509SVIDResponse{}
	for range 3 {
		svid := newSVID(t, idA, 1)
		keys = append(keys, svid.X509SvidKey)
		m.Svids = append(m.Svids, svid, nil)
	}
	dropKeys(m)
	for i, key := range keys {
		if len(key) == 0 || !bytes.Equal(key, make([]byte, len(key))) {
			t.Errorf("key %d is still %q", i, key)
		}
		if m.Svids[2*i].X509SvidKey != nil {
			t.Errorf("key %d is still referred to", i)
		}
	}
	dropKeys(nil)

	// A message that is refused has its keys dropped too.
	svid := newSVID(t, "spiffe://", 1)
	key := svid.X509SvidKey
	if _, err := parse(&workload.X509SVIDResponse{Svids: []*workload.X509SVID{svid}}, time.Now()); err == nil {
		t.Error("no error")
	}
	if !bytes.Equal(key, make([]byte, len(key))) {
		t.Errorf("the key is still %q", key)
	}
}

func FuzzParse(f *testing.F) {
	good := message(f, 1)
	two := &workload.X509SVIDResponse{Svids: []*workload.X509SVID{newSVID(f, idA, 1), newSVID(f, idB, 2)}}
	cut := message(f, 1)
	cut.Svids[0].X509Svid = cut.Svids[0].X509Svid[:50]
	other := message(f, 1)
	other.Svids[0].SpiffeId = idB
	for _, m := range []*workload.X509SVIDResponse{good, two, cut, other, {}} {
		wire, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(wire)
		f.Add(wire[:len(wire)/2])
	}
	f.Fuzz(func(t *testing.T, wire []byte) {
		var m workload.X509SVIDResponse
		if proto.Unmarshal(wire, &m) != nil {
			return
		}
		got, err := parse(&m, time.Unix(1, 0))
		for _, svid := range m.Svids {
			if svid.GetX509SvidKey() != nil {
				t.Fatal("a key is left")
			}
		}
		if err != nil {
			if got.SPIFFEIDs != nil || len(got.Leaf.Chain) != 0 {
				t.Fatalf("error %v and %+v", err, got)
			}
			return
		}
		switch {
		case len(got.SPIFFEIDs) != len(m.Svids),
			got.Leaf.SPIFFEID != got.SPIFFEIDs[0],
			len(got.Leaf.Chain) == 0, got.Leaf.SHA256.IsZero(),
			len(got.Bundle.Authorities) == 0,
			got.Bundle.TrustDomain == "":
			t.Fatalf("accepted: %+v", got)
		}
	})
}
