package rotation

// Socket is what stands at the path of the workload socket, seen as Istio's
// agent looks at it when it starts
// (istio: pkg/istio-agent/agent.go, Agent.Run and checkSocket).
type Socket struct {
	// File is what has the socket's name. A regular file is no socket to the
	// agent, anything else is, answering or not.
	File SocketFile
	// DirReadOnly: the directory is mounted read-only here, as the SPIFFE CSI
	// driver mounts it in every container of a pod. The agent can then neither
	// remove a dead socket nor put its own there.
	DirReadOnly bool
	// Renamed: the socket stands in the agent's directory under another name
	// than the agent's own, as WORKLOAD_IDENTITY_SOCKET_FILE wants it. The agent
	// never serves there itself.
	Renamed bool
}

// SocketFile is what has the socket's name.
type SocketFile string

// What has the socket's name.
const (
	SocketFileAbsent  SocketFile = "absent"
	SocketFileSocket  SocketFile = "socket"
	SocketFileRegular SocketFile = "regular"
)

// NextStart is how the next start of Istio's agent will go: the identity mode
// says where Envoy's identity then comes from, and this whether it comes at
// all.
type NextStart string

// The ways in which the next start will go.
const (
	// StartLeavesSocket: the agent finds the socket served, and leaves it so.
	StartLeavesSocket NextStart = "leaves_socket"
	// StartWaits: the agent starts and can serve nothing, since the socket's
	// directory is read-only; Envoy waits for the identity provider.
	StartWaits NextStart = "waits_for_socket"
	// StartTakesSocket: the agent takes the socket's place.
	StartTakesSocket NextStart = "takes_socket"
	// StartNeedsSocket: the agent exits at each start, until somebody answers
	// on the socket.
	StartNeedsSocket NextStart = "needs_socket"
	// StartNeedsClientCertificates: the agent exits at each start, unless the
	// mesh's proxy metadata name client certificates for istiod.
	StartNeedsClientCertificates NextStart = "needs_client_certificates"
	// StartNeedsBoth: both of the former.
	StartNeedsBoth NextStart = "needs_socket_and_client_certificates"
	// StartUnknown: the socket or the files were not seen yet.
	StartUnknown NextStart = "unknown"
)

// NextStarts returns all ways in which the next start may go.
func NextStarts() []NextStart {
	return []NextStart{
		StartLeavesSocket, StartWaits, StartTakesSocket, StartNeedsSocket,
		StartNeedsClientCertificates, StartNeedsBoth, StartUnknown,
	}
}

// Sentence says it to people.
func (n NextStart) Sentence() string {
	const next = "At its next start Istio's agent will "
	switch n {
	case StartLeavesSocket:
		return next + "leave the socket to the identity provider."
	case StartWaits:
		return next + "serve nothing, as the socket's directory is read-only: Envoy will wait for the identity provider."
	case StartTakesSocket:
		return next + "take the socket's place with certificates of istiod's CA."
	case StartNeedsSocket:
		return next + "refuse to run, again and again, until the identity provider answers on the socket."
	case StartNeedsClientCertificates:
		return next + "refuse to run, unless the mesh gives it client certificates."
	case StartNeedsBoth:
		return next + "refuse to run, unless by then the identity provider answers on the socket and the mesh gives it client certificates."
	default:
		return "What Istio's agent will do at its next start is not known."
	}
}

// NextStart is what the mode alone tells of the next start.
func (m IdentityMode) NextStart() NextStart {
	switch m {
	case ModeExternalSDS:
		return StartLeavesSocket
	case ModeExternalSDSWithFiles, ModeFileMounted:
		return StartNeedsClientCertificates
	case ModeIstiodCA:
		return StartTakesSocket
	default:
		return StartUnknown
	}
}

// foretell says what Istio's agent will do at its next start, when the files
// are complete or not, and the socket answers or not. Each line was measured
// on the real agent (internal/e2e/agent).
func foretell(complete, answers bool, s Socket) (IdentityMode, NextStart) {
	if answers {
		if complete {
			return ModeExternalSDSWithFiles, StartNeedsClientCertificates
		}
		return ModeExternalSDS, StartLeavesSocket
	}
	// A dead socket that the agent cannot remove ends it, and so does a socket
	// of another name that is not there.
	refuses := s.Renamed || s.DirReadOnly && s.File == SocketFileSocket
	switch external := s.Renamed || s.DirReadOnly; {
	case refuses && complete:
		return ModeExternalSDSWithFiles, StartNeedsBoth
	case refuses:
		return ModeExternalSDS, StartNeedsSocket
	case external && complete:
		return ModeExternalSDSWithFiles, StartNeedsClientCertificates
	case external:
		return ModeExternalSDS, StartWaits
	case complete:
		return ModeFileMounted, StartNeedsClientCertificates
	default:
		return ModeIstiodCA, StartTakesSocket
	}
}
