package main

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"

	"svid-watchdog/internal/lab"
)

// faulty is a pod whose faults can be controlled.
type faulty interface {
	Inject(ctx context.Context, name string) error
	Heal(ctx context.Context, name string) error
	Faults() []string
}

// faultView is a fault as the control shows it.
type faultView struct {
	Name    string `json:"name"`
	Summary string `json:"summary"`
	Shows   string `json:"shows"`
	Active  bool   `json:"active"`
}

// controlHandler injects and heals faults over HTTP. They run in ctx and not
// in the request's context: half a fault, because a client went away, helps
// nobody.
func controlHandler(ctx context.Context, pod faulty) http.Handler {
	mux := http.NewServeMux()
	list := func(w http.ResponseWriter) {
		active := pod.Faults()
		var views []faultView
		for _, f := range lab.Faults() {
			views = append(views, faultView{f.Name, f.Summary, string(f.Shows), slices.Contains(active, f.Name)})
		}
		w.Header().Set("Content-Type", "application/json; charset=utf-8")
		encoder := json.NewEncoder(w)
		encoder.SetIndent("", "  ")
		_ = encoder.Encode(views) // the client is gone
	}
	turn := func(act func(context.Context, string) error) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			switch err := act(ctx, r.PathValue("name")); {
			case errors.Is(err, lab.ErrUnknownFault):
				http.Error(w, err.Error(), http.StatusNotFound)
			case err != nil:
				http.Error(w, err.Error(), http.StatusConflict)
			default:
				list(w)
			}
		}
	}
	mux.HandleFunc("GET /faults", func(w http.ResponseWriter, _ *http.Request) { list(w) })
	mux.HandleFunc("POST /faults/{name}", turn(pod.Inject))
	mux.HandleFunc("DELETE /faults/{name}", turn(pod.Heal))
	return mux
}
