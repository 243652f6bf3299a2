package envoy

import (
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// serverInfo is the part of /server_info that matters here.
type serverInfo struct {
	version string
	state   string
	uptime  time.Duration
}

// maxServerInfo bounds /server_info. It takes 100 to 125 KB, nearly all of it
// the list of extensions.
const maxServerInfo = 4 << 20

// maxUptime bounds what can be an uptime, in seconds. It may be longer than
// any Envoy has lived, or negative: Envoy subtracts two readings of the wall
// clock (envoy: source/server/admin/server_info_handler.cc), which may have
// been set in between.
const maxUptime = 5e9

// readServerInfo reads /server_info. Envoy prints its fields in the order of
// their numbers (admin/v3/server_info.proto), the ones wanted first, so the
// long rest is not even parsed.
func readServerInfo(body *boundedReader) (serverInfo, error) {
	var info serverInfo
	var uptime string
	dec := json.NewDecoder(body)
	err := eachField(dec, func(name string) error {
		body.allow(maxElement)
		var err error
		switch name {
		case "version":
			err = dec.Decode(&info.version)
		case "state":
			err = dec.Decode(&info.state)
		case "uptime_current_epoch":
			err = dec.Decode(&uptime)
		default:
			err = skipValue(dec, body)
		}
		if err == nil && uptime != "" && info.version != "" && info.state != "" {
			return errStop
		}
		return err
	})
	if err != nil {
		return info, err
	}
	if info.state == "" {
		info.state = "LIVE" // the zero value of ServerInfo.State, not printed
	}
	info.version, info.state = brief(shortVersion(info.version), 64), brief(info.state, 32)
	if uptime == "" {
		return info, nil // zero is not printed: Envoy started this second
	}
	// A protobuf Duration in JSON is decimal seconds with an s (protobuf's
	// JSON mapping), which may have more digits than a float holds well.
	seconds, err := strconv.ParseFloat(strings.TrimSuffix(uptime, "s"), 64)
	if err != nil || !strings.HasSuffix(uptime, "s") || !(math.Abs(seconds) <= maxUptime) {
		return info, fmt.Errorf("uptime %.40q is not a duration", uptime)
	}
	info.uptime = time.Duration(seconds * float64(time.Second))
	return info, nil
}

// shortVersion is the version out of "<commit>/1.40.0/Clean/RELEASE/BoringSSL".
func shortVersion(version string) string {
	if parts := strings.Split(version, "/"); len(parts) >= 2 {
		return parts[1]
	}
	return version
}
