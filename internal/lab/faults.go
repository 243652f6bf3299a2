package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"svid-watchdog/internal/rotation"
)

// Fault is a way in which rotation breaks.
type Fault struct {
	Name string
	// Summary says in one sentence what it does.
	Summary string
	// Shows is the problem that it is about, Reason the reason, where the
	// evidence always tells the same.
	Shows  rotation.ProblemName
	Reason rotation.Reason
	// BlindReason is the reason where Envoy does not show updates that change
	// nothing: from 1.37 on without the sds. statistics; the same if empty.
	BlindReason rotation.Reason
	// Follows are the problems that may follow from it, in time.
	Follows []rotation.ProblemName
	// Overdue is true for a fault that shows when a renewal is overdue,
	// instead of within the grace.
	Overdue bool
	// StandInOnly is true for what a real Envoy cannot be made to do, TbotOnly
	// for what is no fault with SPIRE.
	StandInOnly, TbotOnly bool
	// TwoProviders is true for what takes Config.SecondProvider.
	TwoProviders bool

	inject, heal func(context.Context, *Pod) error
}

// FindFault returns the fault of that name.
func FindFault(name string) (Fault, bool) {
	for _, f := range Faults() {
		if f.Name == name {
			return f, true
		}
	}
	return Fault{}, false
}

// Within says how soon the fault is named.
func (f Fault) Within() string {
	switch f.Shows {
	case rotation.CredentialFilesPartial, rotation.CredentialFilesComplete:
		return "1 s"
	case rotation.CertificateExpiring:
		return "one poll inside the margin"
	case rotation.SDSStreamFlapping:
		return "grace + two polls"
	case rotation.EnvoyUnreachable:
		return "grace + one poll + 5 s"
	}
	if f.Overdue {
		return "interval + grace + one poll"
	}
	return "grace + one poll"
}

// effect is what a change of conduct does to streams that are open.
type effect int

const (
	// cut ends the streams of the service, as a restart of the server does.
	cut effect = 1 << iota
	// push sends something on the streams of the service at once.
	push
	// restart ends the server and starts it again, as a restart of tbot on
	// the node does.
	restart
)

var errFlap = status.Error(codes.Unavailable, "the stream has been open for long enough")

var errRestart = status.Error(codes.Unavailable, "the server is shutting down")

// conductFault is a fault of the identity provider's conduct.
func conductFault(alter func(c *conduct, on bool), inject, heal effect, services ...Service) (on, off func(context.Context, *Pod) error) {
	turn := func(to bool, e effect) func(context.Context, *Pod) error {
		return func(_ context.Context, p *Pod) error {
			for _, service := range services {
				p.behave(service, func(c *conduct) { alter(c, to) })
			}
			if e&push != 0 {
				if err := p.server.renewShared(); err != nil {
					return err
				}
			}
			if e&restart != 0 {
				if err := p.server.stop(); err != nil {
					return err
				}
				if err := p.server.listen(p.socket); err != nil {
					return err
				}
			}
			for _, service := range services {
				if e&cut != 0 {
					p.server.cut(service, errRestart)
				}
				if e&push != 0 {
					p.server.push(service)
				}
			}
			return nil
		}
	}
	return turn(true, inject), turn(false, heal)
}

// aged are the problems into which each interruption of renewal grows.
var aged = []rotation.ProblemName{rotation.DeliveryOverdue, rotation.CertificateExpiring, rotation.CertificateExpired}

// issuedAges are the problems into which an interruption of the Workload API
// alone grows: the SVID that was seen last expires.
var issuedAges = []rotation.ProblemName{rotation.CertificateExpiring, rotation.CertificateExpired}

func and(names []rotation.ProblemName, more ...rotation.ProblemName) []rotation.ProblemName {
	return append(append([]rotation.ProblemName(nil), names...), more...)
}

// Faults lists the faults in the order of the stages.
func Faults() []Fault {
	faults := []Fault{
		{
			Name: "files-partial", Summary: "Two of the three credential files appear.",
			Shows: rotation.CredentialFilesPartial, inject: writeFiles(2), heal: removeFiles,
		},
		{
			Name: "files-complete", Summary: "All three credential files appear: Outcome B.",
			Shows: rotation.CredentialFilesComplete, inject: writeFiles(3), heal: removeFiles,
			// One after the other, as Istio's agent writes them.
			Follows: []rotation.ProblemName{rotation.CredentialFilesPartial},
		},
		{
			Name: "socket-gone", Summary: "The identity provider ends, its socket with it.",
			Shows: rotation.WorkloadUnreachable, Reason: rotation.ReasonNoSocket, Follows: and(aged, rotation.SDSStreamDown),
			inject: stopServer,
			heal:   func(_ context.Context, p *Pod) error { return p.server.listen(p.socket) },
		},
		{
			Name: "socket-refused", Summary: "The identity provider is killed and leaves a dead socket behind.",
			Shows: rotation.WorkloadUnreachable, Reason: rotation.ReasonRefused, Follows: and(aged, rotation.SDSStreamDown),
			inject: deadSocket,
			heal:   func(_ context.Context, p *Pod) error { return p.server.listen(p.socket) },
		},
		{
			Name: "directory-orphaned", Summary: "The socket's directory on the node is deleted and made anew; this pod keeps the deleted one.",
			Shows: rotation.WorkloadUnreachable, Reason: rotation.ReasonDirectoryOrphaned, Follows: and(aged, rotation.SDSStreamDown),
			inject: orphan,
			heal:   func(_ context.Context, p *Pod) error { return p.mount.remount(filepath.Dir(p.socket)) },
		},
		{
			Name: "workload-api-silent", Summary: "New streams of the Workload API are accepted and never answered.",
			Shows: rotation.WorkloadUnreachable, Reason: rotation.ReasonSilent, Follows: issuedAges,
		},
		{
			Name: "workload-api-error", Summary: "The Workload API answers with an error.",
			Shows: rotation.WorkloadUnreachable, Reason: rotation.ReasonServerError, Follows: issuedAges,
		},
		{
			Name: "denied", Summary: "The Workload API says that the workload has no identity.",
			Shows: rotation.WorkloadDenied, Follows: issuedAges,
		},
		{
			Name: "not-entitled", Summary: "The workload loses its identity: denied on the Workload API, unknown on SDS, where the trust bundle still comes.",
			Shows: rotation.WorkloadDenied, Follows: and(aged, rotation.SDSStreamFlapping),
		},
		{
			Name: "issuance-stalled", Summary: "The stream of the Workload API stays open and brings no renewal.",
			Shows: rotation.IssuanceOverdue, Overdue: true,
			Follows: []rotation.ProblemName{rotation.CertificateExpiring, rotation.CertificateExpired},
		},
		{
			Name: "renewal-stopped", Summary: "Nothing is renewed any more, on no stream.",
			Shows: rotation.CertificateExpiring, Overdue: true, Follows: and(aged, rotation.IssuanceOverdue),
		},
		{
			Name: "expired-svid", Summary: "SVIDs are issued that have expired already.",
			Shows: rotation.CertificateExpired, Follows: []rotation.ProblemName{rotation.CertificateExpiring},
		},
		{
			Name: "envoy-hung", Summary: "Envoy hangs.",
			Shows:   rotation.EnvoyUnreachable,
			Follows: []rotation.ProblemName{rotation.CertificateExpiring, rotation.CertificateExpired, rotation.SDSStreamDown, rotation.ServedUnreachable},
			inject:  func(_ context.Context, p *Pod) error { return p.envoy.Hang() },
			heal:    func(_ context.Context, p *Pod) error { return p.envoy.Resume() },
		},
		{
			Name: "envoy-down", Summary: "Envoy ends.",
			Shows:   rotation.EnvoyUnreachable,
			Follows: []rotation.ProblemName{rotation.CertificateExpiring, rotation.CertificateExpired, rotation.ServedUnreachable},
			inject:  func(_ context.Context, p *Pod) error { return p.envoy.Stop() },
			heal:    func(ctx context.Context, p *Pod) error { return p.envoy.Start(ctx) },
		},
		{
			Name: "secret-withheld", Summary: "Envoy restarts and is never sent its identity.",
			Shows: rotation.SecretMissing, Reason: rotation.ReasonServerSilent,
			Follows: []rotation.ProblemName{rotation.EnvoyUnreachable, rotation.ServedUnreachable},
			inject: func(ctx context.Context, p *Pod) error {
				p.behave(SDS, func(c *conduct) { c.withhold = true })
				return errors.Join(p.envoy.Stop(), p.envoy.Start(ctx))
			},
			heal: func(_ context.Context, p *Pod) error {
				p.behave(SDS, func(c *conduct) { c.withhold = false })
				return nil // what was asked is answered now
			},
		},
		{
			Name: "second-provider", Summary: "Envoy restarts, and of its two providers of the identity one is never answered.",
			Shows: rotation.SecretMissing, Reason: rotation.ReasonSecondProvider, TwoProviders: true,
			Follows: []rotation.ProblemName{rotation.EnvoyUnreachable},
			inject: func(ctx context.Context, p *Pod) error {
				if !p.cfg.SecondProvider {
					return errors.New("this pod's Envoy has one provider of each secret")
				}
				p.behave(SDS, func(c *conduct) { c.withholdSecond = true })
				return errors.Join(p.envoy.Stop(), p.envoy.Start(ctx))
			},
			heal: func(_ context.Context, p *Pod) error {
				p.behave(SDS, func(c *conduct) { c.withholdSecond = false })
				return nil // what was asked is answered now
			},
		},
		{
			Name: "sds-closed", Summary: "Each SDS stream is closed at once with PermissionDenied.",
			Shows: rotation.SDSStreamDown, Reason: rotation.ReasonClosedByServer, Follows: aged,
		},
		{
			Name: "sds-silent", Summary: "The SDS streams stay open and bring nothing.",
			Shows: rotation.DeliveryOverdue, Reason: rotation.ReasonServerSilent, BlindReason: rotation.ReasonServerSilentOrResends, Overdue: true,
			Follows: []rotation.ProblemName{rotation.CertificateExpiring, rotation.CertificateExpired},
		},
		{
			Name: "server-hung", Summary: "The identity provider hangs: connections stay open and nothing is read or written.",
			Shows: rotation.DeliveryOverdue, Reason: rotation.ReasonServerSilent, BlindReason: rotation.ReasonServerSilentOrResends, Overdue: true,
			Follows: and(aged, rotation.IssuanceOverdue),
			inject:  func(_ context.Context, p *Pod) error { p.server.gate.shut(); return nil },
			heal:    func(_ context.Context, p *Pod) error { p.server.gate.unshut(); return nil },
		},
		{
			Name: "sds-flapping", Summary: "Each SDS stream is answered and then closed, again and again.",
			Shows: rotation.SDSStreamFlapping, Reason: rotation.ReasonReconnecting,
			Follows: []rotation.ProblemName{rotation.SDSStreamDown},
		},
		{
			Name: "federated-resend", Summary: "A federated bundle changes more often than SVIDs are renewed: each time tbot re-sends the old SVID and starts its renewal timer anew.",
			Shows: rotation.DeliveryOverdue, Reason: rotation.ReasonServerResends, BlindReason: rotation.ReasonServerSilentOrResends, Overdue: true, TbotOnly: true,
			Follows: []rotation.ProblemName{rotation.HollowUpdate, rotation.CertificateExpiring, rotation.CertificateExpired},
		},
		{
			Name: "tbot-resend", Summary: "Renewals re-send the old SVID under a new version, as tbot before 18.6.4 does: the incident.",
			Shows: rotation.DeliveryOverdue, Reason: rotation.ReasonServerResends, BlindReason: rotation.ReasonServerSilentOrResends, Overdue: true,
			Follows: []rotation.ProblemName{rotation.HollowUpdate, rotation.CertificateExpiring, rotation.CertificateExpired},
		},
		{
			Name: "bad-key", Summary: "A renewal comes with a private key that does not match, and Envoy refuses it.",
			Shows: rotation.UpdateRejected, Reason: rotation.ReasonLeafChangedAlone,
			Follows: []rotation.ProblemName{rotation.CertificateExpiring, rotation.CertificateExpired},
		},
		{
			Name: "other-identity", Summary: "Envoy is sent another SPIFFE ID than the workload's.",
			Shows: rotation.IdentityMismatch,
		},
		{
			Name: "foreign-ca", Summary: "Envoy is sent a certificate of another CA, as when Istio's agent takes the socket's place.",
			Shows: rotation.UntrustedIssuer,
		},
		{
			Name: "contexts-stuck", Summary: "Envoy takes new secrets and its TLS contexts do not.",
			Shows: rotation.ContextStale, StandInOnly: true,
			Follows: []rotation.ProblemName{rotation.CertificateExpiring, rotation.CertificateExpired},
			inject:  stick(ContextSticker.StickContexts, true), heal: stick(ContextSticker.StickContexts, false),
		},
		{
			Name: "contexts-mixed", Summary: "A callback of an update fails, so that one TLS context takes the new certificate and the others do not.",
			Shows: rotation.ContextMixed, StandInOnly: true,
			Follows: []rotation.ProblemName{rotation.UpdateRejected, rotation.CertificateExpiring, rotation.CertificateExpired},
			inject:  stick(ContextSticker.StickAllButOne, true), heal: stick(ContextSticker.StickAllButOne, false),
		},
		{
			Name: "bundle-stuck", Summary: "A new authority is announced on the Workload API and never sent to Envoy.",
			Shows: rotation.TrustBundleStale, Reason: rotation.ReasonServerSilentOrResends,
			inject: func(_ context.Context, p *Pod) error {
				p.behave(SDS, func(c *conduct) { c.bundleStuck = true })
				if err := p.server.announce(); err != nil {
					return err
				}
				p.server.push(WorkloadAPI)
				return nil
			},
			heal: func(_ context.Context, p *Pod) error {
				p.behave(SDS, func(c *conduct) { c.bundleStuck = false })
				return p.pushSDS()
			},
		},
		{
			Name: "listener-drained", Summary: "Envoy's listeners are drained: nobody can connect.",
			Shows: rotation.ServedUnreachable, Reason: rotation.ReasonRefused,
			inject: func(ctx context.Context, p *Pod) error { return p.envoy.DrainListeners(ctx) },
			heal: func(ctx context.Context, p *Pod) error {
				return errors.Join(p.envoy.Stop(), p.envoy.Start(ctx))
			},
		},
		{
			Name: "listener-stuck", Summary: "Envoy's listener goes on showing an old certificate, though all contexts have the new one.",
			Shows: rotation.ServedStale, StandInOnly: true,
			Follows: []rotation.ProblemName{rotation.CertificateExpiring, rotation.CertificateExpired},
			inject:  stick(ContextSticker.StickListener, true), heal: stick(ContextSticker.StickListener, false),
		},
	}
	// What is a matter of the server's conduct. A heal that stands for a
	// restart of the server cuts the streams; Envoy reconnects in its own time.
	refuse := func(err error) func(*conduct, bool) {
		return func(c *conduct, on bool) {
			if c.refuse = nil; on {
				c.refuse = err
			}
		}
	}
	conducts := map[string]struct {
		alter        func(*conduct, bool)
		inject, heal effect
		services     []Service
	}{
		"workload-api-silent": {func(c *conduct, on bool) { c.mute = on }, cut, 0, []Service{WorkloadAPI}},
		"workload-api-error":  {refuse(status.Error(codes.Unknown, "could not issue an SVID: the auth server cannot be reached")), 0, 0, []Service{WorkloadAPI}},
		"denied":              {func(c *conduct, on bool) { c.noIdentity = on }, cut, 0, []Service{WorkloadAPI}},
		"not-entitled":        {func(c *conduct, on bool) { c.noIdentity = on }, 0, 0, []Service{WorkloadAPI, SDS}},
		"issuance-stalled":    {func(c *conduct, on bool) { c.stalled = on }, 0, push, []Service{WorkloadAPI}},
		"renewal-stopped":     {func(c *conduct, on bool) { c.frozen = on }, 0, push, []Service{WorkloadAPI, SDS}},
		"expired-svid":        {func(c *conduct, on bool) { c.expired = on }, push, push, []Service{WorkloadAPI, SDS}},
		"sds-closed":          {refuse(status.Error(codes.PermissionDenied, "workload is not authorized")), 0, 0, []Service{SDS}},
		"sds-silent":          {func(c *conduct, on bool) { c.stalled = on }, 0, push, []Service{SDS}},
		"sds-flapping":        {func(c *conduct, on bool) { c.flap = on }, cut, 0, []Service{SDS}},
		"federated-resend":    {func(c *conduct, on bool) { c.starved = on }, push, cut, []Service{SDS}},
		"tbot-resend":         {func(c *conduct, on bool) { c.resend = on }, 0, restart, []Service{SDS}},
		"bad-key":             {func(c *conduct, on bool) { c.badKey = on }, push, push, []Service{SDS}},
		"other-identity":      {func(c *conduct, on bool) { c.otherID = on }, push, push, []Service{SDS}},
		"foreign-ca":          {func(c *conduct, on bool) { c.foreign = on }, push, push, []Service{SDS}},
	}
	for i := range faults {
		if s, ok := conducts[faults[i].Name]; ok {
			faults[i].inject, faults[i].heal = conductFault(s.alter, s.inject, s.heal, s.services...)
		}
	}
	return faults
}

// stick makes the stand-in keep something from taking new secrets, and sends
// one.
func stick(what func(ContextSticker, bool), stuck bool) func(context.Context, *Pod) error {
	return func(_ context.Context, p *Pod) error {
		sticker, ok := p.envoy.(ContextSticker)
		if !ok {
			return errors.New("only the stand-in can do this")
		}
		what(sticker, stuck)
		return p.pushSDS()
	}
}

func stopServer(_ context.Context, p *Pod) error {
	if err := p.server.stop(); err != nil {
		return err
	}
	if err := os.Remove(p.socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove the socket: %w", err)
	}
	return nil
}

// pushSDS makes Envoy be sent a new SVID at once.
func (p *Pod) pushSDS() error {
	err := p.server.renewShared()
	p.server.push(SDS)
	return err
}

// writeFiles writes credential files as somebody else's CA would, with Istio's
// OUTPUT_CERTS for example.
func writeFiles(n int) func(context.Context, *Pod) error {
	return func(_ context.Context, p *Pod) error {
		id, err := p.server.foreign.issue(SPIFFEID, time.Now().Add(-time.Minute), time.Now().Add(24*time.Hour))
		if err != nil {
			return err
		}
		contents := map[rotation.CredentialFile][]byte{
			rotation.CertChainFile: certificatePEM(id.leaf),
			rotation.KeyFile:       keyPEM(id.key),
			rotation.RootCertFile:  certificatePEM(p.server.foreign.certificate),
		}
		for _, name := range rotation.CredentialFileNames()[:n] {
			if err := os.WriteFile(filepath.Join(p.CredentialsDir(), string(name)), contents[name], 0o600); err != nil {
				return fmt.Errorf("write a credential file: %w", err)
			}
		}
		return nil
	}
}

func removeFiles(_ context.Context, p *Pod) error {
	for _, name := range rotation.CredentialFileNames() {
		if err := os.Remove(filepath.Join(p.CredentialsDir(), string(name))); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove a credential file: %w", err)
		}
	}
	return nil
}

// deadSocket ends the server and leaves its socket file, which nobody serves.
func deadSocket(_ context.Context, p *Pod) error { return p.server.stop() }

// orphan replaces the socket's directory on the node. The pod's containers,
// Envoy among them, still see the deleted one.
func orphan(_ context.Context, p *Pod) error {
	if !canOrphan {
		return errors.New("this platform cannot show a deleted directory")
	}
	if err := p.server.stop(); err != nil {
		return err
	}
	dir := filepath.Dir(p.socket)
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("delete the socket's directory: %w", err)
	}
	if err := os.Mkdir(dir, 0o755); err != nil { //nolint:gosec // as on a node
		return fmt.Errorf("make the socket's directory anew: %w", err)
	}
	return p.server.listen(p.socket)
}
