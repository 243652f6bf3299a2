package rotation_test

import (
	"math/rand/v2"
	"testing"
	"time"

	"svid-watchdog/internal/podsim"
	"svid-watchdog/internal/rotation"
)

// TestFlappingByChance: where both streams are closed again and again, looks
// may find one of them open for a while, whichever it is. That is hardly ever
// taken for a server that refuses the one and serves the other.
func TestFlappingByChance(t *testing.T) {
	const lives = 300
	for _, open := range []float64{0.2, 0.4, 0.6, 0.8} {
		said := 0
		for seed := range uint64(lives) {
			dice := rand.New(rand.NewPCG(seed, 0))
			l := begin(t, podsim.Config{Issuer: podsim.Tbot, Stats: true, TTL: ttl})
			l.run(10 * time.Minute)
			var requests uint64
			for range 20 {
				l.pod.Advance(l.now)
				o := l.pod.Envoy(l.now)
				o.SDSCluster.ActiveRequests = 0
				for range 2 {
					requests++
					if dice.Float64() < open {
						o.SDSCluster.ActiveRequests++
					}
				}
				o.SDSCluster.Requests += requests
				l.ledger.RecordEnvoy(o)
				if p, ok := l.ledger.Judge(l.now).Find(rotation.SDSStreamFlapping); ok && p.Reason == rotation.ReasonPartlyRefused {
					said++
					break
				}
				l.now = l.now.Add(poll)
			}
		}
		t.Logf("each open at %.0f %% of the looks: %d of %d taken for partly refused", 100*open, said, lives)
		if said > lives/50 {
			t.Errorf("each open at %.0f %% of the looks: %d of %d taken for partly refused", 100*open, said, lives)
		}
	}
}
