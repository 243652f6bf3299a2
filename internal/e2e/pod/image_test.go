package pod

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"

	"svid-watchdog/internal/e2e/neighbour"
	"svid-watchdog/internal/e2e/podman"
)

const (
	proxyImage    = "localhost/proxyv2"
	webImage      = "localhost/web"
	watchdogImage = "localhost/svid-watchdog:pod"
)

// images builds the three images of the pod: Istio's, out of its real agent, a
// real Envoy, Istio's own bootstrap template and Debian's iptables; the
// application's; and ours, as it is shipped.
func images(t *testing.T, p *podman.Podman) {
	t.Helper()
	dir := t.TempDir()
	agent, envoy := neighbour.Need(t, "bin", "pilot-agent"), neighbour.Need(t, "envoy", "1.40.0", "envoy")
	xtables := neighbour.Installed(t, "xtables-legacy-multi", "iptables")
	install(t, agent, filepath.Join(dir, "usr/local/bin/pilot-agent"))
	install(t, envoy, filepath.Join(dir, "usr/local/bin/envoy"))
	install(t, neighbour.Need(t, "istio", "envoy_bootstrap.json"), filepath.Join(dir, "var/lib/istio/envoy/envoy_bootstrap_tmpl.json"))
	install(t, xtables, filepath.Join(dir, "usr/sbin/xtables-legacy-multi"))
	for _, family := range []string{"iptables", "ip6tables"} {
		for _, kind := range []string{"", "-legacy"} {
			for _, verb := range []string{"", "-save", "-restore"} {
				if err := os.Symlink("xtables-legacy-multi", filepath.Join(dir, "usr/sbin", family+kind+verb)); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	for _, program := range []string{envoy, xtables} {
		for _, library := range libraries(t, program) {
			install(t, library, filepath.Join(dir, library))
		}
	}
	extensions, err := filepath.Glob("/usr/lib/*/xtables/*.so")
	if err != nil || len(extensions) == 0 {
		t.Fatalf("iptables has no extensions: %v", err)
	}
	for _, extension := range extensions {
		install(t, extension, filepath.Join(dir, extension))
	}
	dockerfile(t, dir, "FROM scratch\nCOPY . /\nENV PATH=/usr/local/bin:/usr/sbin\nENTRYPOINT [\"/usr/local/bin/pilot-agent\"]\n")
	p.Image(proxyImage, dir)

	dir = t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-o", filepath.Join(dir, "web"), "svid-watchdog/internal/e2e/pod/web") //nolint:gosec // our own
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the application: %v\n%s", err, out)
	}
	dockerfile(t, dir, "FROM scratch\nCOPY web /\nENTRYPOINT [\"/web\"]\n")
	p.Image(webImage, dir)

	image := exec.CommandContext(t.Context(), "make", "image", "PLATFORMS=amd64", "IMAGE="+watchdogImage, "VERSION=pod")
	image.Dir, image.Env = neighbour.Root(t), p.Env()
	if out, err := image.CombinedOutput(); err != nil {
		t.Fatalf("make image: %v\n%s", err, out)
	}
}

func dockerfile(t *testing.T, dir, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// install copies a file with its permissions, through symbolic links.
func install(t *testing.T, from, to string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil { //nolint:gosec // others read it
		t.Fatal(err)
	}
	source, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	info, err := source.Stat()
	if err != nil {
		t.Fatal(err)
	}
	target, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, info.Mode().Perm())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(target, source); err != nil {
		t.Fatal(err)
	}
	if err := target.Close(); err != nil {
		t.Fatal(err)
	}
}

var library = regexp.MustCompile(`(/\S+) \(0x`)

// libraries are the shared libraries of a program.
func libraries(t *testing.T, program string) []string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "ldd", program).Output() //nolint:gosec // a neighbour
	if err != nil {
		t.Fatal(err)
	}
	var paths []string
	for _, m := range library.FindAllStringSubmatch(string(out), -1) {
		paths = append(paths, m[1])
	}
	return paths
}
