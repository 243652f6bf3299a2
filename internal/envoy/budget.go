package envoy

import "time"

// budgetWindow is how far ahead unspent time may be saved: enough for a first
// full look at an Envoy with ten thousand clusters (0.5 % of 5 min is 1.5 s).
const budgetWindow = 5 * time.Minute

// maxDebt is how far ahead time may be spent, when an answer was dearer than it
// ever was: on a busy node all answers are. What can wait then waits, but Envoy
// is not left alone for longer than this.
const maxDebt = time.Minute

// budget holds the time that Envoy may still spend on our questions, as a
// token bucket of Envoy's time.
type budget struct {
	share  float64 // of Envoy's time, 0.005 is half a percent
	burst  time.Duration
	tokens time.Duration
	at     time.Time
}

func newBudget(percent float64, now time.Time) *budget {
	share := percent / 100
	burst := time.Duration(share * float64(budgetWindow))
	return &budget{share: share, burst: burst, tokens: burst, at: now}
}

// earn adds the share of the time that has passed.
func (b *budget) earn(now time.Time) {
	if passed := now.Sub(b.at); passed > 0 {
		b.tokens = min(b.burst, b.tokens+time.Duration(float64(passed)*b.share))
		b.at = now
	}
}

// spend takes what an answer has cost; the balance may become negative, which
// stretches the polls that follow.
func (b *budget) spend(cost time.Duration) {
	b.tokens = max(b.tokens-cost, -time.Duration(b.share*float64(maxDebt)))
}

// affords tells whether a question of that cost may be asked now. A question
// that can wait leaves half of the bucket to those that cannot.
func (b *budget) affords(cost time.Duration, urgent bool) bool {
	if urgent {
		return b.tokens >= cost
	}
	return b.tokens-b.burst/2 >= cost
}
