package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log"
	"math/big"
	"net/url"
	"strings"
	"time"
)

const workloadID = "spiffe://example.test/ns/shop/sa/front-end"

// now is when all of it was issued, and sent to Envoy.
var now = time.Now().UTC().Truncate(time.Second)

func chain(serial *big.Int) (leaf, ca, key []byte) {
	pair, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		log.Fatal(err)
	}
	if key, err = x509.MarshalPKCS8PrivateKey(pair); err != nil {
		log.Fatal(err)
	}
	authority := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: now.Add(-time.Minute), NotAfter: now.Add(24 * time.Hour),
	}
	uri, err := url.Parse(workloadID)
	if err != nil {
		log.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: serial, NotBefore: now.Add(-time.Minute), NotAfter: now.Add(time.Hour), URIs: []*url.URL{uri}}
	if ca, err = x509.CreateCertificate(rand.Reader, authority, authority, &pair.PublicKey, pair); err != nil {
		log.Fatal(err)
	}
	if leaf, err = x509.CreateCertificate(rand.Reader, template, authority, &pair.PublicKey, pair); err != nil {
		log.Fatal(err)
	}
	return leaf, ca, key
}

func pemOf(ders ...[]byte) string {
	var out strings.Builder
	for _, der := range ders {
		out.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	}
	return out.String()
}
