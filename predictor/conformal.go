package predictor

import (
	"slices"

	"github.com/usp-project/usp/detmath"
)

const (
	conformalWindow = 256 // scores that quantiles are taken from
	conformalLeast  = 20  // of them before the quantile of normal scores is left
)

// conformal gives the half width of prediction intervals by adaptive conformal inference (Gibbs and Candès, NeurIPS
// 2021): the level alpha falls after a miss and rises after a hit, α ← α + γ(α* − miss), so that the long-run rate of
// misses is α* for any series whatever, to within (max(α,1−α)+γ)/(γT).
type conformal struct {
	alpha, target, rate float64
	scores              []float64 // ring of |scores|
	sorted              []float64 // the same in order
	n                   uint64
}

func newConformal(cfg *Config) conformal {
	return conformal{alpha: 1 - cfg.Coverage, target: 1 - cfg.Coverage, rate: cfg.ConformalRate,
		scores: make([]float64, conformalWindow), sorted: make([]float64, 0, conformalWindow)}
}

// missed takes in whether the value fell outside the interval given for it.
func (c *conformal) missed(miss bool) {
	c.alpha += float64(c.rate * c.target)
	if miss {
		c.alpha -= c.rate
	}
}

// observe takes in an absolute score.
func (c *conformal) observe(score float64) {
	at := c.n % conformalWindow
	if c.n >= conformalWindow {
		i, _ := slices.BinarySearch(c.sorted, c.scores[at])
		c.sorted = slices.Delete(c.sorted, i, i+1)
	}
	i, _ := slices.BinarySearch(c.sorted, score)
	c.sorted = slices.Insert(c.sorted, i, score)
	c.scores[at] = score
	c.n++
}

// width returns the half width for the next value in units of the scale.
func (c *conformal) width() float64 {
	alpha := max(1e-4, min(0.9, c.alpha))
	if len(c.sorted) < conformalLeast {
		few := 1 + 4/float64(len(c.sorted)+1)
		return float64(few * -detmath.NormalQuantile(float64(0.5*alpha)))
	}
	n := len(c.sorted)
	rank := float64((1 - alpha) * float64(n+1)) // of the conformal quantile, counted from 1
	switch i := int(rank); {
	case i < 1:
		return c.sorted[0]
	case i >= n: // beyond the greatest score seen: further the less may be missed
		return float64(c.sorted[n-1] * (1 + (rank - float64(n)) + max(0, c.target-c.alpha)))
	default:
		return c.sorted[i-1] + float64((rank-float64(i))*(c.sorted[i]-c.sorted[i-1]))
	}
}

func (c *conformal) visit(d *codec) {
	d.float(&c.alpha)
	d.floats(c.scores)
	d.uint(&c.n)
	if d.load && d.err == nil {
		c.sorted = append(c.sorted[:0], c.scores[:min(c.n, conformalWindow)]...)
		slices.Sort(c.sorted)
	}
}
