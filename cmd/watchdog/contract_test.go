package main

import (
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"svid-watchdog/internal/check"
	"svid-watchdog/internal/contract"
	"svid-watchdog/internal/rotation"
	"svid-watchdog/internal/web"
)

// hold compares a part of the contract with its file. The metrics are held by
// package metrics in the same way.
func hold(t *testing.T, part, now string) {
	t.Helper()
	contract.Hold(t, "../../docs/contract/"+part+".txt", now)
}

// TestContractFlags: each flag with its kind, its default and its twin in the
// environment.
func TestContractFlags(t *testing.T) {
	var b strings.Builder
	for _, command := range []struct {
		name  string
		flags *flag.FlagSet
	}{{"run", flagSet(&options{})}, {"check", checkFlagSet(&checkOptions{})}} {
		command.flags.VisitAll(func(f *flag.Flag) {
			kind := "text"
			if g, ok := f.Value.(flag.Getter); ok && g.Get() != nil {
				kind = strings.TrimPrefix(reflect.TypeOf(g.Get()).String(), "*")
			}
			fmt.Fprintf(&b, "%s --%s %s %s default %q\n", command.name, f.Name, envName(f.Name), kind, f.DefValue)
		})
	}
	hold(t, "flags", b.String())

	for command, flags := range map[string]*flag.FlagSet{"run": flagSet(&options{}), "check": checkFlagSet(&checkOptions{})} {
		var stdout strings.Builder
		if code := run(t.Context(), []string{command, "--help"}, nil, &stdout, io.Discard); code != exitOK {
			t.Errorf("%s --help exits with %d", command, code)
		}
		flags.VisitAll(func(f *flag.Flag) {
			if !strings.Contains(stdout.String(), "--"+f.Name) || !strings.Contains(stdout.String(), envName(f.Name)) {
				t.Errorf("%s --help does not show --%s and %s", command, f.Name, envName(f.Name))
			}
		})
	}
}

// TestContractProblems: names, severities and reasons.
func TestContractProblems(t *testing.T) {
	var lines []string
	for _, d := range rotation.Catalogue() {
		lines = append(lines, fmt.Sprintf("%s %s", d.Name, d.Severity))
		for _, r := range d.Reasons {
			lines = append(lines, fmt.Sprintf("%s reason %q", d.Name, r.Reason))
		}
	}
	slices.Sort(lines)
	hold(t, "problems", strings.Join(lines, "\n")+"\n")
}

// TestContractJSON: the fields of the two documents. Their schemas in docs/
// say more, and tests hold real documents to them.
func TestContractJSON(t *testing.T) {
	t.Run("status", func(t *testing.T) { hold(t, "status", contract.Shape(web.Status{})) })
	t.Run("check", func(t *testing.T) { hold(t, "check", contract.Shape(check.Report{})) })
}

// TestContractHTTP: what the paths answer, and to which methods.
func TestContractHTTP(t *testing.T) {
	ready := false
	handler := web.Handler(web.Config{
		Verdict:  func() rotation.Verdict { return rotation.Verdict{} },
		Ready:    func() bool { return ready },
		Registry: prometheus.NewRegistry(),
		Log:      slog.New(slog.DiscardHandler),
	})
	var b strings.Builder
	ask := func(method, path, accept, remark string) {
		request := httptest.NewRequestWithContext(t.Context(), method, path, http.NoBody)
		request.Header.Set("Accept", accept)
		recorder := httptest.NewRecorder()
		handler.ServeHTTP(recorder, request)
		answer := recorder.Result()
		answer.Body.Close()
		kind, _, _ := strings.Cut(answer.Header.Get("Content-Type"), ";")
		fmt.Fprintf(&b, "%s %s%s: %d %s\n", method, path, remark, answer.StatusCode, kind)
	}
	for _, path := range []string{"/", "/problems", "/api/v1/status", "/metrics", "/healthz"} {
		for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodOptions, http.MethodTrace} {
			ask(method, path, "*/*", "")
		}
	}
	ask(http.MethodGet, "/", "text/html", " for a browser")
	ask(http.MethodGet, "/readyz", "*/*", " before the first judgement")
	ready = true
	ask(http.MethodGet, "/readyz", "*/*", "")
	for _, path := range []string{"/debug/pprof/", "/debug/vars", "/quitquitquit", "/-/reload", "/none"} {
		ask(http.MethodGet, path, "*/*", "")
	}
	hold(t, "http", b.String())
}

// TestContractExitCodes: what scripts branch upon.
func TestContractExitCodes(t *testing.T) {
	hold(t, "exit-codes", fmt.Sprintf(`run: ended when told %d
run: failed %d
run: bad usage %d
check: healthy %d
check: a problem %d
check: cannot tell %d
check: bad usage %d
`, exitOK, exitFailure, exitBadUsage, check.ExitHealthy, check.ExitProblem, check.ExitCannotTell, exitBadUsage))
}
