package predictor

import "math"

const (
	holderSpread  = 0.71  // SD of the exponent of white scores, times the root of the window
	roughMemory   = 0.998 // of the mean exponent
	roughEvidence = 3     // standard errors below its mean that raise the emergency
	roughShare    = 0.5   // of the weights that rough-path experts have at least in it
	roughHuber    = 1.0   // scales up to which the loss is quadratic in it
	roughLeast    = 64    // scores before the exponent is judged, and in the mean
)

// holderError returns the standard error of the Hölder exponent from that many scores: by simulation of the estimator
// 0.061 at 128, 0.045 at 256, 0.031 at 512, 0.016 at 2048.
func holderError(scores uint64) float64 { return holderSpread / math.Sqrt(float64(max(1, scores))) }

// emergency notices that the errors have become rougher than they were: forecasts overreact, each error takes back the one
// before. A low exponent alone is no reason; it must be improbable by its own mean, too.
type emergency struct {
	on         bool
	mean       float64 // exponent
	n          uint64  // exponents in it
	least      float64 // Config.HolderMin
	hysteresis float64
	window     uint64
}

func newEmergency(cfg *Config) emergency {
	return emergency{mean: 0.5, least: cfg.HolderMin, hysteresis: cfg.HolderHysteresis, window: uint64(cfg.HolderWindow)}
}

// observe takes in the exponent after so many scores. It ends when the exponent is well above the limit or, because it has
// been low for long, no longer far from its mean.
func (e *emergency) observe(holder float64, scores uint64) {
	if scores < min(roughLeast, e.window) {
		return
	}
	se := holderError(min(scores, e.window))
	if e.on {
		e.on = holder <= e.least+e.hysteresis && holder < e.mean-se
	} else {
		e.on = e.n > 0 && holder < e.least && holder < e.mean-float64(roughEvidence*se)
	}
	e.n++
	e.mean += float64(max(1-roughMemory, 1/float64(e.n)) * (holder - e.mean))
}

func (e *emergency) visit(c *codec) {
	c.bool(&e.on)
	c.float(&e.mean)
	c.uint(&e.n)
}
