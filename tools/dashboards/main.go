// Command dashboards writes the dashboards for Grafana in deploy/grafana from
// their sources: fleet.go and pod.go say what is on them, grafana.go how
// Grafana wants it said.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

func main() {
	directory := filepath.Join("deploy", "grafana")
	if len(os.Args) > 1 {
		directory = os.Args[1]
	}
	for name, content := range files() {
		path := filepath.Join(directory, name)
		if err := os.WriteFile(path, content, 0o644); err != nil { //nolint:gosec // a document for everybody
			fmt.Fprintf(os.Stderr, "dashboards: cannot write %s: %v\n", path, err)
			os.Exit(1)
		}
	}
}

// files are the dashboards by the names of their files.
func files() map[string][]byte {
	return map[string][]byte{
		"fleet.json": encode(fleet()),
		"pod.json":   encode(pod()),
	}
}

func encode(d dashboard) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false) // queries are full of <, > and &
	e.SetIndent("", "  ")
	if err := e.Encode(d); err != nil {
		panic(err) // nothing in it can fail to be encoded
	}
	return b.Bytes()
}
