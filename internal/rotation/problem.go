package rotation

// ProblemName names a problem of the catalogue. The names are part of the
// contract: they are metric labels, and users alert on them.
type ProblemName string

// The problem catalogue.
const (
	CredentialFilesPartial  ProblemName = "credential_files_partial"
	CredentialFilesComplete ProblemName = "credential_files_complete"
	WorkloadUnreachable     ProblemName = "workload_api_unreachable"
	WorkloadDenied          ProblemName = "workload_api_denied"
	IssuanceOverdue         ProblemName = "issuance_overdue"
	CertificateExpiring     ProblemName = "certificate_expiring"
	CertificateExpired      ProblemName = "certificate_expired"
	EnvoyUnreachable        ProblemName = "envoy_unreachable"
	SecretMissing           ProblemName = "secret_missing"
	DeliveryOverdue         ProblemName = "delivery_overdue"
	HollowUpdate            ProblemName = "hollow_update"
	UpdateRejected          ProblemName = "update_rejected"
	ContextStale            ProblemName = "context_stale"
	ContextMixed            ProblemName = "context_mixed"
	SDSStreamDown           ProblemName = "sds_stream_down"
	SDSStreamFlapping       ProblemName = "sds_stream_flapping"
	IdentityMismatch        ProblemName = "identity_mismatch"
	UntrustedIssuer         ProblemName = "untrusted_issuer"
	TrustBundleStale        ProblemName = "trust_bundle_stale"
	ServedStale             ProblemName = "served_stale"
	ServedUnreachable       ProblemName = "served_unreachable"
)

// Severity is how bad a problem is.
type Severity string

// The severities.
const (
	// Warning: rotation is impaired, traffic is not in danger yet.
	Warning Severity = "warning"
	// Critical: traffic fails, or will without help.
	Critical Severity = "critical"
)

// Reason tells apart the causes that one problem can have. Each problem has a
// closed set of them, see [Definition.Reasons].
type Reason string

// The reasons.
const (
	// ReasonNone is the reason of a problem that has only one cause.
	ReasonNone Reason = ""
	// ReasonUndetermined: the evidence at hand cannot tell the cause.
	ReasonUndetermined Reason = "undetermined"

	// Of workload_api_unreachable.

	ReasonNoSocket          Reason = "no_socket"
	ReasonRefused           Reason = "refused"
	ReasonSilent            Reason = "silent"
	ReasonDirectoryOrphaned Reason = "directory_orphaned"
	ReasonServerError       Reason = "server_error"

	// Of the SDS stream: delivery_overdue, sds_stream_down, secret_missing,
	// trust_bundle_stale.

	ReasonStreamDown            Reason = "stream_down"
	ReasonClosedByServer        Reason = "closed_by_server"
	ReasonCannotConnect         Reason = "cannot_connect"
	ReasonServerSilent          Reason = "server_silent"
	ReasonServerResends         Reason = "server_resends"
	ReasonServerSilentOrResends Reason = "server_silent_or_resends"

	// Of secret_missing.

	ReasonAbsent         Reason = "absent"
	ReasonWarming        Reason = "warming"
	ReasonSecondProvider Reason = "second_provider"

	// Of update_rejected: how it was seen.

	ReasonLeafChangedAlone Reason = "leaf_changed_alone"
	ReasonVersionAhead     Reason = "version_ahead"
	ReasonCounted          Reason = "counted"

	// Of sds_stream_flapping.

	ReasonReconnecting  Reason = "reconnecting"
	ReasonPartlyRefused Reason = "partly_refused"

	// Of served_unreachable, besides refused and silent.

	ReasonClosed Reason = "closed"
	ReasonNotTLS Reason = "not_tls"
)

// Definition is what the catalogue says about a problem.
type Definition struct {
	Name ProblemName
	// Severity is the usual severity; a problem may be raised with another,
	// see [Problem.Severity].
	Severity Severity
	// Summary says in one sentence what is wrong.
	Summary string
	// Cause says in one sentence why, unless a reason says it better.
	Cause string
	// Advice says in one sentence what to do, unless a reason says it better.
	Advice string
	// Reasons is the closed set of reasons, nil for a problem with one cause.
	Reasons []ReasonText
}

// ReasonText is one reason of a problem, with the cause and advice that apply
// when it is the one.
type ReasonText struct {
	Reason        Reason
	Cause, Advice string
}

const adviceTbot = "Check tbot's version: 18.6.4 and 17.7.14 fixed a bug by which it re-sends an old SVID; " +
	"restarting tbot on this node heals all of its pods within half a minute, restarting pods does not last."

const adviceServe = "Make sure that the identity provider runs on this node and serves the socket; Envoy reconnects by itself within half a minute."

// adviceNoRestart says what Istio's agent does when it starts and nobody
// answers on the socket; which of the two, [NextStart] knows.
const adviceNoRestart = " Let no istio-proxy restart before it answers: Istio's agent would refuse to run, or take the socket's place with certificates of istiod's CA."

const adviceEntitle = "Read the identity provider's log for this pod: it refuses or fails the stream, for example because the workload is not entitled to its identity."

// catalogue is in the order in which problems are shown.
var catalogue = []Definition{
	{
		Name: CertificateExpired, Severity: Critical,
		Summary: "A certificate has expired.",
		Cause:   "The leaf seen at this stage is past its not-after; peers refuse it in every new TLS handshake.",
		Advice:  "Look at the other problems for the stage that did not move, and heal that one; a restart of tbot on the node is the quickest cure when Envoy's stream is at fault; if the certificate issued now has expired too, compare the node's clock with the right time, and then read the identity provider's log.",
	},
	{
		Name: CertificateExpiring, Severity: Critical,
		Summary: "A certificate is about to expire.",
		Cause:   "The leaf seen at this stage has less than the expiry margin left and was not replaced in time.",
		Advice:  "Heal the stage that did not move before the certificate expires; the time left is shown with the stage.",
	},
	{
		Name: HollowUpdate, Severity: Critical,
		Summary: "The SDS server keeps sending the same old certificate.",
		Cause:   "Envoy's identity is overdue while updates that change nothing keep arriving: the server re-sends an SVID that it should have renewed (tbot before 18.6.4 and 17.7.14).",
		Advice:  "Upgrade tbot to 18.6.4, 17.7.14 or newer; until then restart tbot on this node, which heals all of its pods within half a minute; restarting pods only starts the same clock again.",
	},
	{
		Name: UpdateRejected, Severity: Critical,
		Summary: "Envoy refused a new certificate and goes on with the old one.",
		Cause:   "The SDS server sent a secret that Envoy could not use, for example a private key that does not match the certificate; the dump shows the refused leaf as if it were in use.",
		Advice:  "Read Envoy's log for 'Secret rejected' and mend the issuer; Envoy takes the next good secret by itself, but never an identical one.",
		Reasons: []ReasonText{
			{Reason: ReasonLeafChangedAlone, Cause: "The leaf in Envoy's dump changed while last_updated did not, which happens only when Envoy refused the secret."},
			{Reason: ReasonVersionAhead, Cause: "The secret in Envoy's dump was sent later than Envoy last accepted one, so Envoy refused it."},
			{Reason: ReasonCounted, Cause: "Envoy's own statistics (sds.*.update_rejected) count a refused secret."},
		},
	},
	{
		Name: ContextStale, Severity: Critical,
		Summary: "Envoy holds a new certificate that none of its TLS contexts uses.",
		Cause:   "Envoy accepted the delivered secret, but no live TLS context was rebuilt with it.",
		Advice:  "Restart the istio-proxy container of this pod; if the credential files exist, remove them first.",
	},
	{
		Name: UntrustedIssuer, Severity: Critical,
		Summary: "Envoy's certificate does not chain to the issued trust bundle.",
		Cause:   "Somebody else than the identity provider issued it: istiod's CA after Istio's agent took the socket's place, or a stale file.",
		Advice:  "Compare the issuer of the delivered certificate with the issued one, make sure that the socket is served by the identity provider, then restart the pod.",
	},
	{
		Name: IdentityMismatch, Severity: Critical,
		Summary: "Envoy's SPIFFE ID is not the one that this workload is issued.",
		Cause:   "Envoy gets its secrets from another server, or the workload matches several identities and the server picks another one for Envoy.",
		Advice:  "Compare the two SPIFFE IDs in the status, and the identities that this workload is entitled to.",
	},
	{
		Name: SecretMissing, Severity: Critical,
		Summary: "Envoy lacks its identity or its trust bundle.",
		Cause:   "A secret that the mesh needs is not active in Envoy.",
		Advice:  "Check the SDS stream and whether the identity provider entitles this workload; without the secret Envoy's listeners have no certificate.",
		Reasons: []ReasonText{
			{Reason: ReasonAbsent, Cause: "Envoy neither holds the secret nor waits for it, so nothing in its configuration asks for it.", Advice: "Check the names given by --envoy.identity-secret and --envoy.bundle-secret, and whether istiod has configured this Envoy."},
			{Reason: ReasonStreamDown, Cause: "Envoy waits for the secret and has no open SDS stream: it cannot connect to the socket.", Advice: adviceServe},
			{Reason: ReasonClosedByServer, Cause: "The server closes the SDS stream on which Envoy asks for the secret.", Advice: adviceEntitle},
			{Reason: ReasonServerSilent, Cause: "Envoy's SDS stream is open, and the server never answered for the secret.", Advice: "Read the identity provider's log on this node for this pod; it holds the stream open and sends nothing."},
			{Reason: ReasonSecondProvider, Cause: "The secret is active, and a second provider of the same name waits for its first answer: a listener or cluster that uses that one has no certificate (envoyproxy/envoy#47309).", Advice: "Restart the istio-proxy container of this pod; if the credential files exist, remove them first."},
			{Reason: ReasonWarming, Cause: "Envoy asked for the secret and still waits for the first answer; the state of its SDS stream is not known."},
			{Reason: ReasonUndetermined, Cause: "The secret is not active, and whether Envoy waits for it is not known."},
		},
	},
	{
		Name: WorkloadDenied, Severity: Critical,
		Summary: "The identity provider refuses this workload.",
		Cause:   "The Workload API answers PermissionDenied: no registration or workload identity matches this pod.",
		Advice:  "Check the pod's service account, namespace and labels against the workload identity (tbot) or the registration entry (SPIRE).",
	},
	{
		Name: CredentialFilesComplete, Severity: Critical,
		Summary: "All three credential files exist: Istio's agent will leave the socket at its next start.",
		Cause:   "With cert-chain.pem, key.pem and root-cert.pem present Istio's agent goes into file-mounted mode when istio-proxy next starts, and then refuses to run unless the mesh sets client certificates for it.",
		Advice:  "Remove the files before istio-proxy restarts, and find who writes them (the certificate's issuer is in the status); Istio's OUTPUT_CERTS writes exactly these names.",
	},
	{
		Name: DeliveryOverdue, Severity: Warning,
		Summary: "Envoy did not get a new certificate in time.",
		Cause:   "The leaf that Envoy holds is older than the renewal interval and the grace.",
		Advice:  adviceTbot,
		Reasons: []ReasonText{
			{Reason: ReasonStreamDown, Cause: "Envoy has no open SDS stream: it cannot connect to the socket.", Advice: adviceServe},
			{Reason: ReasonClosedByServer, Cause: "Envoy's SDS stream is opened again and again and closed by the server each time.", Advice: adviceEntitle},
			{Reason: ReasonServerSilent, Cause: "Envoy's SDS stream is open and the server sends nothing on it.", Advice: "Check whether the identity provider on this node hangs, and its version; restarting it heals all of its pods."},
			{Reason: ReasonServerResends, Cause: "Envoy's SDS stream is open and the server re-sends the same old certificate."},
			{Reason: ReasonServerSilentOrResends, Cause: "Envoy's SDS stream is open, and the server either sends nothing or re-sends the same old certificate; this Envoy does not show which."},
			{Reason: ReasonUndetermined, Cause: "The state of Envoy's SDS stream is not known."},
		},
	},
	{
		Name: IssuanceOverdue, Severity: Warning,
		Summary: "The identity provider issued no new certificate in time.",
		Cause:   "The Workload API stream is open, yet it brought no new SVID for the renewal interval and the grace.",
		Advice:  "Read the identity provider's log on this node; with tbot check its version (the Workload API side was mended in July 2025) and its connection to the Teleport cluster.",
	},
	{
		Name: SDSStreamDown, Severity: Warning,
		Summary: "Envoy has no SDS stream.",
		Cause:   "There is no open request on Envoy's SDS cluster, so that no renewal can reach it.",
		Advice:  "Make sure that the identity provider runs on this node and serves the socket.",
		Reasons: []ReasonText{
			{Reason: ReasonCannotConnect, Cause: "Envoy's connects to the socket fail.", Advice: adviceServe},
			{Reason: ReasonClosedByServer, Cause: "The server closes each SDS stream that Envoy opens.", Advice: adviceEntitle},
			{Reason: ReasonUndetermined, Cause: "Neither failed connects nor new requests were counted yet."},
		},
	},
	{
		Name: WorkloadUnreachable, Severity: Warning,
		Summary: "The Workload API cannot be reached.",
		Cause:   "No SVID can be had from the socket.",
		Advice:  "Make sure that the identity provider runs on this node and serves the socket." + adviceNoRestart,
		Reasons: []ReasonText{
			{Reason: ReasonNoSocket, Cause: "There is no socket at the configured address."},
			{Reason: ReasonRefused, Cause: "The socket exists and nobody accepts connections on it.", Advice: "Start the identity provider on this node again: it left its socket behind." + adviceNoRestart},
			{Reason: ReasonSilent, Cause: "The server accepts connections and does not answer.", Advice: "The identity provider on this node hangs; restart it." + adviceNoRestart},
			{Reason: ReasonDirectoryOrphaned, Cause: "The mounted socket directory was deleted on the node: this pod will never see the new one.", Advice: "Only a new pod heals this: delete the pod, and find out why the directory on the node was replaced."},
			{Reason: ReasonUndetermined, Cause: "The stream has ended or was never answered, and the next attempt has not told why yet."},
			{Reason: ReasonServerError, Cause: "The server answers with an error.", Advice: "Read the error in the status and the identity provider's log on this node."},
		},
	},
	{
		Name: EnvoyUnreachable, Severity: Warning,
		Summary: "Envoy's admin interface does not answer.",
		Cause:   "Envoy is not running, hangs, or its admin interface is elsewhere.",
		Advice:  "Check that istio-proxy runs, and --envoy.admin-address; what Envoy uses is not known until it answers.",
	},
	{
		Name: CredentialFilesPartial, Severity: Warning,
		Summary: "Some of the credential files exist.",
		Cause:   "Somebody writes to the directory that switches Istio's agent to files; with the third file the switch is armed.",
		Advice:  "Find who writes the files and stop it; Istio's OUTPUT_CERTS writes exactly these names.",
	},
	{
		Name: ContextMixed, Severity: Warning,
		Summary: "Some of Envoy's TLS contexts use an old certificate.",
		Cause:   "Envoy updated only some of its TLS contexts with the delivered secret.",
		Advice:  "Restart the istio-proxy container of this pod; if the credential files exist, remove them first.",
	},
	{
		Name: SDSStreamFlapping, Severity: Warning,
		Summary: "Envoy's SDS stream is opened again and again.",
		Cause:   "Streams deliver, but do not last.",
		Advice:  "Read the identity provider's log on this node for restarts or closed streams.",
		Reasons: []ReasonText{
			{Reason: ReasonReconnecting, Cause: "All streams come back and none lasts: the identity provider restarts again and again, or closes streams after a while."},
			{Reason: ReasonPartlyRefused, Cause: "Some streams stay open while the server closes another each time: it serves the trust bundle and refuses the identity, or the other way round.", Advice: adviceEntitle},
		},
	},
	{
		Name: TrustBundleStale, Severity: Warning,
		Summary: "Envoy's trust bundle lacks an authority.",
		Cause:   "The issued trust bundle has an authority that Envoy was not delivered.",
		Advice:  "Check the SDS stream of the bundle secret; peers with certificates of the new authority will be refused.",
		Reasons: []ReasonText{
			{Reason: ReasonStreamDown, Cause: "Envoy has no open SDS stream on which the new trust bundle could come.", Advice: adviceServe},
			{Reason: ReasonClosedByServer, Cause: "The server closes the SDS stream on which the new trust bundle should come.", Advice: adviceEntitle},
			{Reason: ReasonServerSilentOrResends, Cause: "Envoy's SDS stream is open, and the server sent the new trust bundle on the Workload API and not to Envoy."},
			{Reason: ReasonUndetermined, Cause: "The issued trust bundle has an authority that Envoy was not delivered, and the state of Envoy's SDS stream is not known."},
		},
	},
	{
		Name: ServedStale, Severity: Critical,
		Summary: "Peers are shown an older certificate than Envoy's TLS contexts hold.",
		Cause:   "The listener that answered does not use the loaded certificate.",
		Advice:  "Restart the istio-proxy container of this pod.",
	},
	{
		Name: ServedUnreachable, Severity: Warning,
		Summary: "The TLS handshake with Envoy fails.",
		Cause:   "Envoy's inbound listener does not answer the handshake.",
		Advice:  "Check --handshake.address, and the user id that the watchdog runs as.",
		Reasons: []ReasonText{
			{Reason: ReasonRefused, Cause: "Nobody accepts connections at the address: the listener is gone or drained, or the address is not Envoy's.", Advice: "Check that istio-proxy runs and is not draining, and --handshake.address."},
			{Reason: ReasonSilent, Cause: "The connection is accepted and the handshake is not answered in time.", Advice: "Check whether istio-proxy hangs or is starved of CPU."},
			{Reason: ReasonClosed, Cause: "The connection is closed before a certificate is shown, as Envoy does while it has none.", Advice: "Look at secret_missing; without it, check that the address reaches Envoy and not the application (user id 1337)."},
			{Reason: ReasonNotTLS, Cause: "What answers does not speak TLS.", Advice: "Check that the address reaches Envoy and not the application: that takes the user id 1337, and a port with mutual TLS."},
			{Reason: ReasonUndetermined, Cause: "The handshake fails for another reason, see the detail."},
		},
	},
}

var definitions = func() map[ProblemName]Definition {
	m := make(map[ProblemName]Definition, len(catalogue))
	for _, d := range catalogue {
		m[d.Name] = d
	}
	return m
}()

// Catalogue returns the definition of every problem, most urgent first.
func Catalogue() []Definition { return append([]Definition(nil), catalogue...) }

// Lookup returns the definition of a problem of the catalogue.
func Lookup(name ProblemName) (Definition, bool) {
	d, ok := definitions[name]
	return d, ok
}

// Explain returns cause and advice for a reason.
func (d Definition) Explain(r Reason) (cause, advice string) {
	cause, advice = d.Cause, d.Advice
	for _, t := range d.Reasons {
		if t.Reason != r {
			continue
		}
		if t.Cause != "" {
			cause = t.Cause
		}
		if t.Advice != "" {
			advice = t.Advice
		}
	}
	return cause, advice
}
