// Command hostile answers in the place of Envoy's admin interface and of the
// Workload API what no Envoy and no agent would, or only one in a very large
// mesh, in one mode after the other. In each it waits until the watchdog has
// taken some answers, looks at the watchdog's metrics, and says so. It is for a
// test that gives the watchdog little memory.
//
//	hostile ADMIN_ADDRESS SOCKET METRICS_URL
package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"regexp"
	"strings"
	"time"
)

// looks is how many looks of the watchdog a mode lasts at least, unless it says
// otherwise.
const looks = 12

func main() {
	if len(os.Args) != 4 {
		log.Fatal("want ADMIN_ADDRESS SOCKET METRICS_URL")
	}
	leaf, ca, key := chain(big.NewInt(0xabc))
	e := newEnvoy(leaf, ca)
	listener, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	server := &http.Server{Handler: e, ReadHeaderTimeout: 5 * time.Second}
	go func() { log.Fatal(server.Serve(listener)) }()
	i := newIssuer(leaf, ca, key)
	go func() { log.Fatal(i.serve(os.Args[2])) }()

	for _, m := range modes(leaf, ca) {
		e.set(m.answers)
		i.set(m.issue)
		until(func() bool { return e.looks() >= cmp.Or(m.looks, looks) && i.times() >= m.times })
		var page string
		until(func() bool {
			page, err = get(os.Args[3])
			if err != nil {
				log.Fatalf("%s: %v", m.name, err)
			}
			return !m.healthy || strings.Contains(page, `svid_watchdog_rotation_state{state="healthy"} 1`)
		})
		resident := regexp.MustCompile(`(?m)^process_resident_memory_bytes (\S+)`).FindStringSubmatch(page)
		if resident == nil {
			log.Fatalf("%s: no process metrics:\n%s", m.name, page)
		}
		fmt.Printf("%s: survived, resident %s\n", m.name, resident[1])
	}
	fmt.Println("all survived")
	select {}
}

func until(satisfied func() bool) {
	for !satisfied() {
		time.Sleep(20 * time.Millisecond)
	}
}

func get(url string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	return string(text), err
}

// mode is a way to be hostile. What it leaves out is as in a small and healthy
// pod.
type mode struct {
	name    string
	answers answers
	issue   manner
	looks   int
	// times is how often the Workload API must have sent what it sends.
	times int
	// healthy says that the watchdog must find nothing wrong.
	healthy bool
}

func modes(leaf, ca []byte) []mode {
	id := identity(pemOf(leaf, ca))
	return []mode{
		{name: "healthy", times: 1, healthy: true},
		{name: "ten thousand clusters", answers: answers{
			"certs":    repeat(`{"certificates":[`, tlsContext+",", 10_000, tlsContext+"]}"),
			"clusters": repeat(`{"cluster_statuses":[`, cluster("outbound|8080||service.namespace.svc.cluster.local")+",", 10_000, cluster("sds-grpc")+"]}"),
		}},
		{name: "a trust bundle of a thousand authorities", answers: answers{
			"secrets": says(`{"configs":[` + id + `,` + bundle(strings.Repeat(pemOf(ca), 1000)) + `]}`),
		}},
		{name: "as many secrets as fit", answers: answers{
			"secrets": says(`{"configs":[` + strings.Repeat(id+",", (4<<20-100_000)/(len(id)+1)) + id + `]}`),
		}},
		{name: "a trust bundle as long as an element may be", answers: answers{
			"secrets": says(`{"configs":[` + id + `,` + bundle(strings.Repeat(pemOf(ca), (3<<18)/len(pemOf(ca))-10)) + `]}`),
		}},
		{name: "secrets without end", answers: answers{"secrets": endless(`{"configs":[`, id+",")}},
		{name: "certificates without end", answers: answers{"certs": endless(`{"certificates":[`, tlsContext+",")}},
		{name: "one certificate without end", answers: answers{"certs": endless(`{"certificates":[{"cert_chain":[{"path":"`, "aaaaaaaaaaaaaaaa")}},
		{name: "one array in another without end", answers: answers{"secrets": endless(`{"configs":[`, "[[[[[[[["), "certs": endless(`{"certificates":[`, "[[[[[[[[")}},
		{name: "clusters with large elements", answers: answers{
			"clusters": repeat(`{"cluster_statuses":[`, `{"name":"sds-grpc","x":"`+strings.Repeat("a", 900<<10)+`"},`, 60, cluster("sds-grpc")+"]}"),
		}},
		{name: "a hundred thousand certificates", answers: answers{"certs": repeat(`{"certificates":[`, tlsContext+",", 100_000, tlsContext+"]}")}},
		{name: "names of half a megabyte, and times that cannot be", answers: answers{
			"certs": repeat(`{"certificates":[`, contextOf(strings.Repeat("f", 512<<10), workloadID, "2026-02-30T25:61:61Z", "292277026596-12-04T15:30:08Z")+","+
				contextOf("0abc", "spiffe://"+strings.Repeat("a", 512<<10), "0000-00-00T00:00:00Z", "")+",", 20, tlsContext+"]}"),
		}},
		{name: "a gigabyte of certificates, compressed", answers: answers{"certs": bomb(`{"certificates":[`, tlsContext+",")}},
		{name: "a byte now and then, without end", answers: answers{"certs": slow(`{"certificates":[`), "secrets": slow(`{"configs":[`)}, looks: 2},
		{name: "sent elsewhere", answers: answers{"certs": elsewhere, "secrets": elsewhere}},
		{name: "statistics and server info without end", answers: answers{"stats": endless("sds.default.x: ", "1"), "server_info": endless(`{"version":"`, "aaaaaaaa")}},

		{name: "SVIDs one after the other", issue: sending(nothing, 0), times: 150},
		{name: "an SVID with as many authorities as fit", issue: sending(authorities, mostOfAMessage), times: 20},
		{name: "as many SVIDs as fit", issue: sending(identities, mostOfAMessage), times: 20},
		{name: "a chain as long as fits", issue: sending(certificates, mostOfAMessage), times: 20},
		{name: "as much of what nobody reads as fits", issue: sending(revocations, mostOfAMessage), times: 20},
		{name: "a message larger than it may be", issue: sending(revocations, 2*mostOfAMessage), times: 1},
		{name: "an error of twelve megabytes", issue: longError, times: 1},
		{name: "headers without end", issue: headersWithoutEnd, times: 1},
		{name: "a message that is as long as a number can say, and never comes", issue: longestMessage, times: 1},
		{name: "all at once", answers: answers{
			"secrets": endless(`{"configs":[`, id+","), "certs": endless(`{"certificates":[`, tlsContext+","),
		}, issue: sending(authorities, mostOfAMessage), times: 20},
		{name: "healthy again", times: 1, healthy: true},
	}
}
