package envoy

import (
	"bufio"
	"fmt"
	"io"
	"net/url"
	"regexp"
	"strconv"
	"strings"

	"svid-watchdog/internal/rotation"
)

// maxStats bounds the two filtered lines of /stats.
const maxStats = 64 << 10

func statsQuery(secret string) string {
	return "/stats?filter=" + url.QueryEscape(`^sds\.`+regexp.QuoteMeta(secret)+`\.update_(success|rejected)$`)
}

// readSDSStats reads the subscription's counters. It returns nil when Envoy
// shows none: Istio's default stats matcher hides them, and what is hidden is
// not zero.
func readSDSStats(body io.Reader, secret string) (*rotation.SDSStats, error) {
	var stats rotation.SDSStats
	found := false
	scanner := bufio.NewScanner(body)
	for scanner.Scan() {
		name, value, ok := strings.Cut(scanner.Text(), ": ")
		if !ok {
			continue
		}
		var counter *uint64
		switch name {
		case "sds." + secret + ".update_success":
			counter = &stats.UpdateSuccess
		case "sds." + secret + ".update_rejected":
			counter = &stats.UpdateRejected
		default:
			continue
		}
		n, err := strconv.ParseUint(value, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("%s: %.40q is not a count", name, value)
		}
		*counter = n
		found = true
	}
	if err := scanner.Err(); err != nil {
		return nil, err
	}
	if !found {
		return nil, nil //nolint:nilnil // absent is an answer, not an error
	}
	return &stats, nil
}
