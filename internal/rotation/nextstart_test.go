package rotation_test

import (
	"strings"
	"testing"
	"time"

	"svid-watchdog/internal/rotation"
)

// TestNextStart: what Istio's agent will do at its next start follows from
// the files, the socket, and whether the agent can take the socket's place.
func TestNextStart(t *testing.T) {
	socket := func(file rotation.SocketFile, readOnly, renamed bool) *rotation.Socket {
		return &rotation.Socket{File: file, DirReadOnly: readOnly, Renamed: renamed}
	}
	const absent, dead, regular = rotation.SocketFileAbsent, rotation.SocketFileSocket, rotation.SocketFileRegular
	for _, tt := range []struct {
		name          string
		answers       bool
		socket        *rotation.Socket
		mode          rotation.IdentityMode
		next          rotation.NextStart
		modeWithFiles rotation.IdentityMode
		nextWithFiles rotation.NextStart
	}{
		{"answers", true, socket(dead, true, false), rotation.ModeExternalSDS, rotation.StartLeavesSocket, rotation.ModeExternalSDSWithFiles, rotation.StartNeedsClientCertificates},
		{"answers, renamed", true, socket(dead, true, true), rotation.ModeExternalSDS, rotation.StartLeavesSocket, rotation.ModeExternalSDSWithFiles, rotation.StartNeedsClientCertificates},
		{"nothing known of the path", false, nil, rotation.ModeIstiodCA, rotation.StartTakesSocket, rotation.ModeFileMounted, rotation.StartNeedsClientCertificates},
		{"absent", false, socket(absent, false, false), rotation.ModeIstiodCA, rotation.StartTakesSocket, rotation.ModeFileMounted, rotation.StartNeedsClientCertificates},
		{"dead", false, socket(dead, false, false), rotation.ModeIstiodCA, rotation.StartTakesSocket, rotation.ModeFileMounted, rotation.StartNeedsClientCertificates},
		{"regular", false, socket(regular, false, false), rotation.ModeIstiodCA, rotation.StartTakesSocket, rotation.ModeFileMounted, rotation.StartNeedsClientCertificates},
		{"absent, read-only", false, socket(absent, true, false), rotation.ModeExternalSDS, rotation.StartWaits, rotation.ModeExternalSDSWithFiles, rotation.StartNeedsClientCertificates},
		{"dead, read-only", false, socket(dead, true, false), rotation.ModeExternalSDS, rotation.StartNeedsSocket, rotation.ModeExternalSDSWithFiles, rotation.StartNeedsBoth},
		{"regular, read-only", false, socket(regular, true, false), rotation.ModeExternalSDS, rotation.StartWaits, rotation.ModeExternalSDSWithFiles, rotation.StartNeedsClientCertificates},
		{"absent, renamed", false, socket(absent, false, true), rotation.ModeExternalSDS, rotation.StartNeedsSocket, rotation.ModeExternalSDSWithFiles, rotation.StartNeedsBoth},
		{"dead, renamed", false, socket(dead, false, true), rotation.ModeExternalSDS, rotation.StartNeedsSocket, rotation.ModeExternalSDSWithFiles, rotation.StartNeedsBoth},
	} {
		for n, files := range [][]rotation.CredentialFile{nil, {rotation.KeyFile, rotation.RootCertFile}, rotation.CredentialFileNames()} {
			now := time.Now()
			l := rotation.NewLedger(rotation.Config{Grace: time.Minute})
			present := make(map[rotation.CredentialFile]bool)
			for _, name := range files {
				present[name] = true
			}
			l.RecordFiles(rotation.CredentialFiles{At: now, DirExists: true, Present: present})
			l.RecordWorkloadAPI(rotation.WorkloadAPI{At: now, State: rotation.WorkloadAPIUnreachable, SocketAnswers: &tt.answers, Socket: tt.socket})
			v := l.Judge(now)
			mode, next := tt.mode, tt.next
			if n == 2 {
				mode, next = tt.modeWithFiles, tt.nextWithFiles
			}
			if v.IdentityMode != mode || v.NextStart != next {
				t.Errorf("%s, files %v: %s, %s; want %s, %s", tt.name, files, v.IdentityMode, v.NextStart, mode, next)
			}
			told := false
			for _, e := range v.Events {
				told = told || e.Type == rotation.EventModeChanged && e.Message == next.Sentence()
			}
			if !told {
				t.Errorf("%s, files %v: no event tells it: %+v", tt.name, files, v.Events)
			}
		}
	}
}

// TestNextStartChangesInOneMode: where the mode stays and the start will go
// otherwise, that is an event too.
func TestNextStartChangesInOneMode(t *testing.T) {
	now := time.Now()
	l := rotation.NewLedger(rotation.Config{Grace: time.Minute})
	l.RecordFiles(rotation.CredentialFiles{At: now})
	for n, w := range []struct {
		answers bool
		file    rotation.SocketFile
		want    rotation.NextStart
	}{
		{true, rotation.SocketFileSocket, rotation.StartLeavesSocket},
		{false, rotation.SocketFileSocket, rotation.StartNeedsSocket},
		{false, rotation.SocketFileAbsent, rotation.StartWaits},
	} {
		at := now.Add(time.Duration(n) * time.Second)
		l.RecordWorkloadAPI(rotation.WorkloadAPI{
			At: at, State: rotation.WorkloadAPIUnreachable, SocketAnswers: &w.answers,
			Socket: &rotation.Socket{File: w.file, DirReadOnly: true},
		})
		v := l.Judge(at)
		if v.NextStart != w.want || v.IdentityMode != rotation.ModeExternalSDS {
			t.Errorf("%s, %s, want %s", v.NextStart, v.IdentityMode, w.want)
		}
		if e := v.Events[len(v.Events)-1]; n > 0 && (e.Type != rotation.EventModeChanged || e.Message != w.want.Sentence()) {
			t.Errorf("the last event is %+v", e)
		}
	}
}

// TestNextStartSentences: each is a sentence of its own.
func TestNextStartSentences(t *testing.T) {
	seen := make(map[string]rotation.NextStart)
	for _, n := range rotation.NextStarts() {
		s := n.Sentence()
		if other, double := seen[s]; double || !strings.HasSuffix(s, ".") {
			t.Errorf("%s says %q, as %s does", n, s, other)
		}
		seen[s] = n
	}
}
