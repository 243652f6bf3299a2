package envoy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"svid-watchdog/internal/rotation"
)

// Config says whom to ask, for what, and how often.
type Config struct {
	// Address is Envoy's admin interface: http://HOST:PORT or unix:///PATH.
	Address string
	// AllowRemote admits an Address that is neither on loopback nor a unix
	// socket.
	AllowRemote bool
	// SDSCluster is the name of the cluster that SDS uses; IdentitySecret and
	// BundleSecret name the secrets of the identity and the trust bundle.
	SDSCluster, IdentitySecret, BundleSecret string
	// PollInterval is the distance of two looks at rest.
	PollInterval time.Duration
	// BudgetPercent is the share of Envoy's time, in percent, that our
	// questions may take.
	BudgetPercent float64
	// Timeout bounds one question, 5 s if zero.
	Timeout time.Duration
	Log     *slog.Logger
	// Observe is called with each look, by one goroutine.
	Observe func(rotation.Envoy)
}

// Client asks Envoy's admin interface. Its methods other than Nudge are not
// for concurrent use.
type Client struct {
	cfg    Config
	admin  *admin
	nudges chan struct{}
	budget *budget

	cost  map[question]time.Duration
	asked map[question]time.Time

	started  rotation.Start // of Envoy's present life
	identity map[rotation.Fingerprint]bool
	// unsettled counts the looks for which /certs may still be asked at once
	// because the delivered leaves have changed and the contexts do not hold
	// them yet.
	unsettled int
	// changed is when the delivered leaves were last seen to have changed, and
	// deliveredAt when Envoy says that they did, zero if it does not.
	changed, deliveredAt time.Time

	warming   bool // a provider waited for its first secret when last asked
	hideStats bool // Envoy showed no sds. statistics when last asked
	lastErr   string
}

// question is one thing that Envoy can be asked.
type question string

const (
	askServerInfo question = "server_info"
	askStats      question = "sds_stats"
	askSecrets    question = "active_secrets"
	askWarming    question = "warming_secrets"
	askContexts   question = "certs"
	askClusters   question = "clusters"
)

const (
	// statsRecheck is how often an Envoy that hides the sds. statistics is
	// asked again. The stats matcher is part of the bootstrap, so only a
	// restart changes the answer; this is for an Envoy whose subscription had
	// not begun when first asked.
	statsRecheck = 5 * time.Minute
	// warmingRecheck is how often the warming secrets are asked for while
	// both secrets are active: a second provider of the same name may warm
	// (envoyproxy/envoy#47309).
	warmingRecheck = 2 * time.Minute
	// urgentLooks bounds how many looks after a change ask /certs at once. A
	// rejected update never settles and must not eat the budget.
	urgentLooks = 6
)

// New returns a client, or an error that says what is wrong with the address.
func New(cfg Config) (*Client, error) {
	if cfg.Timeout == 0 {
		cfg.Timeout = 5 * time.Second
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	a, err := newAdmin(cfg.Address, cfg.AllowRemote, cfg.Timeout)
	if err != nil {
		return nil, err
	}
	return &Client{
		cfg:    cfg,
		admin:  a,
		nudges: make(chan struct{}, 1),
		budget: newBudget(cfg.BudgetPercent, time.Now()),
		cost:   make(map[question]time.Duration),
		asked:  make(map[question]time.Time),
	}, nil
}

// Nudge makes the client look sooner than at its next poll, and again in
// growing distances until something changed: the identity provider has issued
// a new SVID, so Envoy may be delivered one too. It never blocks.
func (c *Client) Nudge() {
	select {
	case c.nudges <- struct{}{}:
	default: // one is waiting already
	}
}

// maxError bounds what is told of an error, which may quote an answer.
const maxError = 500

// Close ends idle connections; it is for a client that is not run.
func (c *Client) Close() { c.admin.close() }

// Run looks at Envoy until ctx ends, and then returns nil: an Envoy that does
// not answer is evidence, not a failure of ours.
func (c *Client) Run(ctx context.Context) error {
	defer c.admin.close()
	timer := time.NewTimer(0)
	defer timer.Stop()
	pace := newPace(c.cfg.PollInterval)
	var due time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-c.nudges:
			// Sooner, never later: nudges without end would put the look off for ever.
			now := time.Now()
			wait := min(pace.nudged(now), due.Sub(now))
			due = now.Add(wait)
			timer.Reset(wait)
			continue
		case <-timer.C:
		}
		before := c.changed
		if observation, ok := c.poll(ctx); ok && ctx.Err() == nil {
			c.cfg.Observe(observation)
		}
		if c.changed != before {
			pace.delivered(c.changed, c.deliveredAt)
		}
		now := time.Now()
		wait := pace.next(now, c.unsettled == 0)
		due = now.Add(wait)
		timer.Reset(wait)
	}
}

// Look asks Envoy everything at once, whatever it costs.
func (c *Client) Look(ctx context.Context) rotation.Envoy {
	return c.look(ctx, true)
}

// poll looks once if the budget affords the questions that every look asks.
func (c *Client) poll(ctx context.Context) (rotation.Envoy, bool) {
	c.budget.earn(time.Now())
	if !c.budget.affords(c.cost[askServerInfo]+c.cost[askSecrets], true) {
		return rotation.Envoy{}, false
	}
	return c.look(ctx, false), true
}

// look asks the cheap questions, and of the others those that are worth their
// price now.
func (c *Client) look(ctx context.Context, everything bool) rotation.Envoy {
	now := time.Now()
	o := rotation.Envoy{At: now}
	info, err := c.askServerInfo(ctx, &o)
	if err != nil {
		return c.failed(o, err)
	}
	o.Version, o.State = info.version, info.state
	o.Started = rotation.StartOf(info.uptime, now, time.Now())
	if c.restarted(o.Started) {
		c.cfg.Log.Info("Envoy started", "version", o.Version, "uptime", info.uptime)
	}

	moving := c.unsettled > 0
	err = c.askTheRest(ctx, &o, now, everything)
	if err == nil && (moving || c.unsettled > 0 || c.changed.Equal(now)) {
		// What looks like a rotation may be a new life of Envoy that began
		// since the first question.
		var again serverInfo
		if again, err = c.askServerInfo(ctx, &o); err == nil && again.uptime < info.uptime {
			return c.failed(o, fmt.Errorf("Envoy at %s was restarted during the look", c.cfg.Address))
		}
	}
	if err != nil {
		if o.Secrets == nil {
			return c.failed(o, err)
		}
		o.Incomplete = brief(err.Error(), maxError)
		c.complain(o.Incomplete)
		return o
	}
	c.complain("")
	return o
}

func (c *Client) askServerInfo(ctx context.Context, o *rotation.Envoy) (info serverInfo, err error) {
	err = c.ask(ctx, o, askServerInfo, "/server_info", maxServerInfo, func(body *boundedReader) (err error) {
		info, err = readServerInfo(body)
		return err
	})
	return info, err
}

// askTheRest asks what depends on the budget. It stops at the first question
// that fails; what was answered until then holds.
func (c *Client) askTheRest(ctx context.Context, o *rotation.Envoy, now time.Time, everything bool) error {
	// The statistics before the dump: an update that arrives between the two
	// then shows as a changed leaf without its count, never as a count
	// without its leaf, which would look like a hollow update.
	if everything || c.worth(askStats, !c.hideStats || now.Sub(c.asked[askStats]) >= statsRecheck, false) {
		err := c.ask(ctx, o, askStats, statsQuery(c.cfg.IdentitySecret), maxStats, func(body *boundedReader) (err error) {
			o.Stats, err = readSDSStats(body, c.cfg.IdentitySecret)
			return err
		})
		if err != nil {
			return err
		}
		if o.Stats != nil {
			o.Stats.At = now
		}
		// Envoy has none of a secret that it has not asked for yet.
		c.hideStats = o.Stats == nil && len(c.identity) > 0
	}

	if err := c.lookAtSecrets(ctx, o, now, everything); err != nil {
		return err
	}
	c.noteDelivered(o)

	if everything || c.worth(askContexts, true, c.unsettled > 0) {
		at := time.Now()
		err := c.ask(ctx, o, askContexts, "/certs", maxContexts, func(body *boundedReader) (err error) {
			o.Contexts, err = readContexts(body)
			return err
		})
		if err != nil {
			return err
		}
		o.Contexts.At = at
	}
	c.settle(o)

	if everything || c.worth(askClusters, true, c.asked[askClusters].IsZero()) {
		at := time.Now()
		err := c.ask(ctx, o, askClusters, clustersQuery(c.cfg.SDSCluster), maxClusters, func(body *boundedReader) (err error) {
			o.SDSCluster, err = readSDSCluster(body, c.cfg.SDSCluster)
			return err
		})
		if err != nil {
			return err
		}
		o.SDSCluster.At = at
	}
	return nil
}

func (c *Client) lookAtSecrets(ctx context.Context, o *rotation.Envoy, now time.Time, everything bool) error {
	at := time.Now()
	path := secretsQuery("dynamic_active_secrets", activeMask, c.cfg.IdentitySecret, c.cfg.BundleSecret)
	err := c.ask(ctx, o, askSecrets, path, maxSecrets, func(body *boundedReader) (err error) {
		o.Secrets, err = readActiveSecrets(body, c.cfg.IdentitySecret, c.cfg.BundleSecret)
		return err
	})
	if err != nil {
		return err
	}
	o.Secrets.At = at
	missing := c.warming || len(o.Secrets.Identity) == 0 || len(o.Secrets.Bundle) == 0
	if !everything && !c.worth(askWarming, missing || now.Sub(c.asked[askWarming]) >= warmingRecheck, missing) {
		return nil
	}
	path = secretsQuery("dynamic_warming_secrets", warmingMask, c.cfg.IdentitySecret, c.cfg.BundleSecret)
	err = c.ask(ctx, o, askWarming, path, maxSecrets, func(body *boundedReader) (err error) {
		s := o.Secrets
		s.IdentityWarming, s.BundleWarming, err = readWarming(body, c.cfg.IdentitySecret, c.cfg.BundleSecret)
		return err
	})
	o.Secrets.WarmingKnown = err == nil
	c.warming = o.Secrets.IdentityWarming+o.Secrets.BundleWarming > 0
	return err
}

// noteDelivered notes whether Envoy was delivered something new.
func (c *Client) noteDelivered(o *rotation.Envoy) {
	delivered := make(map[rotation.Fingerprint]bool)
	changed := false
	var updated time.Time
	for _, s := range o.Secrets.Identity {
		if s.Leaf.SHA256.IsZero() {
			continue
		}
		delivered[s.Leaf.SHA256] = true
		if !c.identity[s.Leaf.SHA256] {
			changed = true
			if s.LastUpdated.After(updated) {
				updated = s.LastUpdated
			}
		}
	}
	if changed {
		c.changed, c.deliveredAt = o.At, updated
		c.unsettled = urgentLooks
	}
	c.identity = delivered
}

// settle notes whether the contexts hold what was delivered.
func (c *Client) settle(o *rotation.Envoy) {
	if o.Contexts == nil {
		return
	}
	if c.unsettled > 0 {
		c.unsettled--
	}
	loaded := 0
	for _, s := range o.Secrets.Identity {
		for _, l := range o.Contexts.Leaves {
			if l.Leaf.Same(s.Leaf) {
				loaded++
				break
			}
		}
	}
	if loaded == len(o.Secrets.Identity) && len(o.Contexts.Leaves) == loaded {
		c.unsettled = 0
	}
}

// restarted notes Envoy's start and tells whether it is another than before.
func (c *Client) restarted(started rotation.Start) bool {
	first := c.started.Earliest.IsZero()
	if !c.started.Another(started) && !first {
		return false
	}
	c.hideStats, c.warming = false, false
	c.identity = nil
	clear(c.asked)
	return true
}

// worth tells whether a question is to be asked in this look: due, and within
// the budget.
func (c *Client) worth(q question, due, urgent bool) bool {
	if c.asked[q].IsZero() {
		due, urgent = true, true // never asked in this life of Envoy
	}
	return due && c.budget.affords(c.cost[q], urgent) && (urgent || !c.mustWait(q))
}

// mustWait tells whether another question has waited longer and cannot be
// afforded yet, because such as this one spend what it saves for. A cheap
// question takes little from it and does not wait.
func (c *Client) mustWait(q question) bool {
	for _, other := range []question{askContexts, askClusters} {
		if c.asked[other].Before(c.asked[q]) && !c.budget.affords(c.cost[other], false) && c.cost[q] > c.cost[other]/4 {
			return true
		}
	}
	return false
}

func (c *Client) ask(ctx context.Context, o *rotation.Envoy, q question, path string, limit int64, read func(*boundedReader) error) error {
	cost, err := c.admin.get(ctx, path, limit, read)
	o.Spent += cost
	c.asked[q] = time.Now()
	if err != nil && q == askServerInfo {
		// Its price is known and small: an Envoy that lets even this one run
		// into the timeout hangs, and spends nothing on us.
		cost = 0
	}
	c.budget.spend(cost)
	if err != nil {
		return fmt.Errorf("read %s from Envoy at %s: %w", q, c.cfg.Address, err)
	}
	// What was dear once may be dear again: forget a high price slowly.
	c.cost[q] = max(cost, c.cost[q]*3/4)
	return nil
}

func (c *Client) failed(o rotation.Envoy, err error) rotation.Envoy {
	text := brief(err.Error(), maxError)
	if !errors.Is(err, context.Canceled) {
		c.complain(text)
	}
	return rotation.Envoy{At: o.At, Err: text, Spent: o.Spent}
}

// complain logs an error once for as long as it stays the same, and its end.
// At debug level: the ledger's transitions are the log for people.
func (c *Client) complain(text string) {
	switch text {
	case c.lastErr:
	case "":
		c.cfg.Log.Debug("Envoy answers again", "address", c.cfg.Address)
	default:
		c.cfg.Log.Debug("Envoy does not answer", "error", text)
	}
	c.lastErr = text
}
