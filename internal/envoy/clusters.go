package envoy

import (
	"bytes"
	"encoding/json"
	"io"
	"net/url"
	"regexp"

	"svid-watchdog/internal/rotation"
)

// maxClusters bounds /clusters: 10,000 clusters take 12.5 MB.
const maxClusters = 256 << 20

// clustersQuery always sends the filter: Envoy 1.38 and newer honour it
// (envoyproxy/envoy#43407), older ones ignore it and send every cluster.
func clustersQuery(cluster string) string {
	return "/clusters?format=json&filter=" + url.QueryEscape("^"+regexp.QuoteMeta(cluster)+"$")
}

// clusterStatus is an element of envoy.admin.v3.Clusters.
type clusterStatus struct {
	Name         string `json:"name"`
	HostStatuses []struct {
		Stats []struct {
			Name  string `json:"name"`
			Value count  `json:"value"` // left out when zero
		} `json:"stats"`
	} `json:"host_statuses"`
}

// readSDSCluster reads /clusters as a stream and sums the counters of the
// hosts of the named cluster. These are counters of the host itself
// (Upstream::Host), which no stats matcher hides.
func readSDSCluster(body io.Reader, cluster string) (*rotation.SDSCluster, error) {
	sds := &rotation.SDSCluster{}
	wanted := []byte(cluster)
	err := eachElement(body, "cluster_statuses", func(element []byte) error {
		if isAnother(element, wanted) {
			return nil
		}
		return addCluster(sds, element, cluster)
	})
	if err != nil {
		return nil, err
	}
	return sds, nil
}

// isAnother tells, without decoding it, that an element is another cluster.
// Where nothing is escaped a name stands as it is, and Envoy prints it first,
// by the order of the fields in admin/v3/clusters.proto.
func isAnother(element, wanted []byte) bool {
	rest := element
	for _, token := range []string{`{`, `"name"`, `:`, `"`} {
		var ok bool
		if rest, ok = bytes.CutPrefix(bytes.TrimLeft(rest, " \n"), []byte(token)); !ok {
			return !bytes.Contains(element, wanted) && bytes.IndexByte(element, '\\') < 0
		}
	}
	end := bytes.IndexAny(rest, `"\`)
	if end < 0 || rest[end] == '\\' {
		return false
	}
	return !bytes.Equal(rest[:end], wanted)
}

// addCluster adds the counters of an element, if it is the named cluster.
func addCluster(sds *rotation.SDSCluster, element []byte, cluster string) error {
	var status clusterStatus
	if err := json.Unmarshal(element, &status); err != nil {
		return err
	}
	if status.Name != cluster {
		return nil
	}
	for _, host := range status.HostStatuses {
		sds.Found = true
		for _, s := range host.Stats {
			switch v := uint64(s.Value); s.Name {
			case "cx_active":
				sds.ActiveConnections += v
			case "rq_active":
				sds.ActiveRequests += v
			case "cx_connect_fail":
				sds.ConnectFailures += v
			case "rq_total":
				sds.Requests += v
			case "rq_error":
				sds.RequestErrors += v
			}
		}
	}
	return nil
}
