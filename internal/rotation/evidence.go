package rotation

import "time"

// CredentialFile is one of the three files whose joint presence switches
// Istio's agent to file-mounted certificates
// (istio: pkg/security/security.go, CheckWorkloadCertificate).
type CredentialFile string

// The files that Istio's agent looks for.
const (
	CertChainFile CredentialFile = "cert-chain.pem"
	KeyFile       CredentialFile = "key.pem"
	RootCertFile  CredentialFile = "root-cert.pem"
)

// CredentialFileNames returns the three file names.
func CredentialFileNames() []CredentialFile {
	return []CredentialFile{CertChainFile, KeyFile, RootCertFile}
}

// CredentialFiles is one look at the credentials directory.
type CredentialFiles struct {
	// At is when the directory was looked at.
	At time.Time
	// Err says in one sentence why the directory could not be read, and is
	// empty when it could. A directory that does not exist is an answer (no
	// file is present), not an error.
	Err string
	// DirExists tells whether the directory exists.
	DirExists bool
	// Present holds the files that exist. Like Istio's agent it follows
	// symbolic links, and counts a directory of that name too.
	Present map[CredentialFile]bool
	// Leaf is the leaf in cert-chain.pem, nil when the file is absent or not
	// readable as a certificate. It names who wrote the files.
	Leaf *Certificate
	// LeafErr says why cert-chain.pem, though present, could not be read.
	LeafErr string
	// Polling is true while inotify is not to be had, PollingReason says why.
	Polling       bool
	PollingReason string
}

// Count is the number of files present.
func (f CredentialFiles) Count() int {
	n := 0
	for _, name := range CredentialFileNames() {
		if f.Present[name] {
			n++
		}
	}
	return n
}

// WorkloadAPIState is how the Workload API answers.
type WorkloadAPIState string

// The states of the Workload API stream.
const (
	// WorkloadAPIConnecting: nothing is known yet.
	WorkloadAPIConnecting WorkloadAPIState = "connecting"
	// WorkloadAPIServing: the stream is open and has brought an SVID.
	WorkloadAPIServing WorkloadAPIState = "serving"
	// WorkloadAPIUnreachable: no SVID can be had; the reason says why.
	WorkloadAPIUnreachable WorkloadAPIState = "unreachable"
	// WorkloadAPIDenied: the server answers PermissionDenied, that is, the
	// workload has no identity (SPIFFE Workload API, section 4.3).
	WorkloadAPIDenied WorkloadAPIState = "denied"
	// WorkloadAPINotAsked: only whether the socket answers was looked at.
	WorkloadAPINotAsked WorkloadAPIState = "not_asked"
)

// WorkloadAPI is the state of the Workload API stream at a time.
type WorkloadAPI struct {
	// At is when the state was seen. A state that persists is reported again
	// at each new attempt.
	At    time.Time
	State WorkloadAPIState
	// Reason is set with WorkloadAPIUnreachable: ReasonNoSocket,
	// ReasonRefused, ReasonSilent, ReasonDirectoryOrphaned or
	// ReasonServerError.
	Reason Reason
	// Detail is the error as it was received, for people.
	Detail string
	// SocketAnswers tells whether something accepts connections on the socket
	// and speaks HTTP/2, which is what Istio's agent asks before it leaves the
	// socket to its owner; nil when not known.
	SocketAnswers *bool
	// Socket is what stands at the socket's path, nil when not known.
	Socket *Socket
}

// Issuance is one message of the Workload API stream.
type Issuance struct {
	// At is when the message arrived.
	At time.Time
	// Stream numbers the streams that this process opened. A new stream makes
	// tbot issue anew, so the distance between two leaves says something about
	// the renewal interval only within one stream.
	Stream int
	// Leaf is the default identity: the first SVID of the message
	// (SPIFFE Workload API, section 5.2.1).
	Leaf Certificate
	// SPIFFEIDs are the identities of all SVIDs of the message.
	SPIFFEIDs []string
	// Bundle is the trust bundle of the leaf's trust domain.
	Bundle TrustBundle
}

// Envoy is one look at Envoy's admin interface. A part that was not asked
// this time is nil; a part that was asked earlier is not repeated.
type Envoy struct {
	// At is when the look began.
	At time.Time
	// Err says in one sentence why Envoy did not answer, and is empty when it
	// did. The other fields are meaningful only then.
	Err string
	// Incomplete says which question failed although Envoy answered the ones
	// before it; the parts that did answer hold.
	Incomplete string
	// Started is when Envoy's present life began. It wobbles by the precision of
	// the uptime: one second.
	Started Start
	// Version is Envoy's version, for example 1.40.0; empty when unknown.
	Version string
	// State is Envoy's server state, for example LIVE.
	State string
	// Secrets is what the filtered configuration dump told.
	Secrets *Secrets
	// Contexts is what /certs told.
	Contexts *Contexts
	// SDSCluster is what /clusters told of the cluster that SDS uses.
	SDSCluster *SDSCluster
	// Stats is what the sds. statistics told.
	Stats *SDSStats
	// Spent is the time that Envoy took to answer all requests of this look.
	Spent time.Duration
}

// Secrets is what Envoy's dump holds of the identity and the trust bundle.
type Secrets struct {
	// At is when the dump was asked for.
	At time.Time
	// Identity has one element per provider of the identity secret: Envoy
	// keeps providers apart by their configuration source, so that one name
	// may stand twice, with two leaves that are both current.
	Identity []DeliveredIdentity
	// Bundle has one element per provider of the bundle secret.
	Bundle []DeliveredBundle
	// IdentityWarming and BundleWarming count the providers that wait for
	// their first secret. They are known only when WarmingKnown is true.
	WarmingKnown                   bool
	IdentityWarming, BundleWarming int
}

// SecretMeta is what Envoy says about an active secret besides its content.
type SecretMeta struct {
	// LastUpdated is Envoy's own time stamp. Up to Envoy 1.36 any accepted
	// answer moves it, from 1.37 on only one that changes the secret; a
	// rejected one never does.
	LastUpdated time.Time
	// Version is version_info as received.
	Version string
	// SentAt is the version read as a time. tbot writes the time at which it
	// sent the secret (RFC 3339); SPIRE counts, and the field is then zero.
	SentAt time.Time
	// Content is the digest of the whole secret as shown, so that an update
	// that changes nothing can be told from one that does.
	Content Fingerprint
	// Err says why the content could not be read; the other fields hold.
	Err string
}

// DeliveredIdentity is one active identity secret of Envoy.
type DeliveredIdentity struct {
	SecretMeta
	Leaf Certificate
}

// DeliveredBundle is one active bundle secret of Envoy.
type DeliveredBundle struct {
	SecretMeta
	// Bundles has one element per trust domain.
	Bundles []TrustBundle
}

// Contexts is the set of leaves that Envoy's live TLS contexts use.
type Contexts struct {
	// At is when /certs was asked for.
	At time.Time
	// Leaves are the distinct leaves that carry a SPIFFE ID, each with the
	// number of contexts that use it. /certs shows neither issuer nor digest.
	Leaves []LoadedLeaf
}

// LoadedLeaf is a leaf and the number of TLS contexts that use it.
type LoadedLeaf struct {
	Leaf     Certificate
	Contexts int
}

// SDSCluster is the state of the host behind Envoy's SDS cluster. These are
// primitive counters of the host, which Istio's stats matcher does not hide;
// they start from zero with Envoy.
type SDSCluster struct {
	// At is when /clusters was asked for.
	At time.Time
	// Found is false when Envoy has no such cluster or it has no host.
	Found bool
	// ActiveConnections (cx_active) and ActiveRequests (rq_active) are what
	// is open now: with Istio one connection, and one request per secret.
	ActiveConnections, ActiveRequests uint64
	// ConnectFailures (cx_connect_fail) counts failed connects, Requests
	// (rq_total) requests that reached a connection. RequestErrors is rq_error.
	ConnectFailures, Requests, RequestErrors uint64
}

// SDSStats are the counters of the identity secret's subscription,
// sds.<name>.*, which Istio's default stats matcher hides.
type SDSStats struct {
	// At is when /stats was asked for.
	At time.Time
	// UpdateSuccess counts accepted answers, unchanged ones included;
	// UpdateRejected refused ones.
	UpdateSuccess, UpdateRejected uint64
}

// HandshakeFailure is why a TLS handshake showed no certificate.
type HandshakeFailure string

// The ways in which a TLS handshake fails.
const (
	// HandshakeOK: a certificate was shown.
	HandshakeOK HandshakeFailure = ""
	// HandshakeRefused: nobody accepts connections at the address.
	HandshakeRefused HandshakeFailure = "refused"
	// HandshakeSilent: no answer came in time.
	HandshakeSilent HandshakeFailure = "silent"
	// HandshakeClosed: the connection was closed before a certificate was
	// shown, as Envoy does while it has no secret (envoy: NotReadySslSocket).
	HandshakeClosed HandshakeFailure = "closed"
	// HandshakeNotTLS: something answered that does not speak TLS.
	HandshakeNotTLS HandshakeFailure = "not_tls"
	// HandshakeFailed: anything else.
	HandshakeFailed HandshakeFailure = "failed"
)

// Handshake is one TLS handshake with Envoy's listener.
type Handshake struct {
	// At is when the handshake was over.
	At time.Time
	// Leaf is the certificate that was shown, nil if none was.
	Leaf *Certificate
	// Failure says why none was shown, Err the same in one sentence.
	Failure HandshakeFailure
	Err     string
}
