package predictor

import (
	"math"

	"github.com/usp-project/usp/detmath"
)

// cusum is Page's two-sided chart on clipped standardised scores ψ = clip(z, ±c)/sd:
//
//	G⁺ ← max(0, G⁺ + ψ − k),  G⁻ ← max(0, G⁻ − ψ − k),  alarm when either exceeds h.
//
// Clipping bounds what one wild score can do, so h needs no correction for heavy tails. sd follows the clipped scores, most
// of the way: by that of a clipped normal variable alone, scores with heavy tails, which are small most of the time, would
// alarm ten times as seldom as they should, by their own alone a fifth too often.
type cusum struct {
	up, down  float64
	shownUp   float64 // the sums as they stood before an alarm or the end of grace cleared them
	shownDown float64
	grace     int // steps left without alarms
	threshold float64
	clip      float64
	normal2   float64 // variance of a clipped standard normal variable
	own2      float64 // mean square of the clipped scores, which begins there
	rate      float64 // and moves so fast
	slack     float64
	wait      int
}

const (
	spreadRate   = 0.002 // of the mean square of clipped scores
	spreadNormal = 0.12  // share of the normal variable's in the variance that is used
)

// newCusum returns a chart whose threshold is still to be set: it takes longer to find than all else to set up, and a
// restored chart has it from its state.
func newCusum(cfg *Config) cusum {
	sd := clippedDeviation(cfg.CusumClip)
	return cusum{clip: cfg.CusumClip, normal2: float64(sd * sd), own2: float64(sd * sd), rate: spreadRate, slack: cfg.CusumSlack, wait: cfg.Grace}
}

// observe takes in a score and returns the alarm flag it raises, or 0. After an alarm both sums start again at zero
// and no alarm is raised for the grace time; during it the sums run, and at its end they start from zero.
func (g *cusum) observe(z float64) uint64 {
	z = clip(z, g.clip)
	psi := z / math.Sqrt(g.own2+float64(spreadNormal*(g.normal2-g.own2)))
	g.own2 += float64(g.rate * (float64(z*z) - g.own2))
	g.up = max(0, g.up+(psi-g.slack))
	g.down = max(0, g.down-(psi+g.slack))
	g.shownUp, g.shownDown = g.up, g.down
	if g.grace > 0 {
		if g.grace--; g.grace == 0 {
			g.up, g.down = 0, 0
		}
		return 0
	}
	switch {
	case g.up > g.threshold:
		g.restart()
		return FlagAlarmUp
	case g.down > g.threshold:
		g.restart()
		return FlagAlarmDown
	}
	return 0
}

// restart clears the sums and begins the grace time.
func (g *cusum) restart() { g.up, g.down, g.grace = 0, 0, g.wait }

func (g *cusum) visit(c *codec) {
	c.float(&g.threshold)
	c.float(&g.up)
	c.float(&g.down)
	c.float(&g.shownUp)
	c.float(&g.shownDown)
	c.float(&g.own2)
	c.int(&g.grace, 0, 1<<20)
}

// clippedDeviation returns the standard deviation of a standard normal variable clipped to ±c.
func clippedDeviation(c float64) float64 {
	inside := 1 - float64(2*detmath.NormalCDF(-c)) - float64(2*c*detmath.NormalPDF(c))
	return math.Sqrt(inside + float64(2*c*c*detmath.NormalCDF(-c)))
}

// cusumThreshold returns the h at which the two-sided chart has the mean run length target between false alarms on
// independent standard normal scores. The log of the run length is nearly linear in h, so secant steps find it; under
// a tight clip it can jump past the target, and then bisection finds the least h beyond.
func cusumThreshold(slack, bound, target float64) float64 {
	return thresholdFor(target, func(h float64) float64 { return cusumRunLength(slack, bound, h, 0) })
}

// thresholdFor returns the threshold at which runLength is target.
func thresholdFor(target float64, runLength func(h float64) float64) float64 {
	goal := detmath.Log(target)
	miss := func(h float64) float64 { return detmath.Log(runLength(h)) - goal }
	h0, h1 := 2.0, 4.0
	f0, f1 := miss(h0), miss(h1)
	for range 12 {
		if math.Abs(f1) < 1e-6 || f1 == f0 {
			break
		}
		h := h1 - float64(f1*(h1-h0))/(f1-f0)
		h0, f0 = h1, f1
		h1 = max(0.1, min(60, h))
		f1 = miss(h1)
	}
	if math.Abs(f1) < 1e-3 {
		return h1
	}
	lo, hi := 0.1, 60.0
	for range 40 {
		if h := float64(0.5 * (lo + hi)); miss(h) < 0 {
			lo = h
		} else {
			hi = h
		}
	}
	return hi
}

// runLengthStates discretises the chart; the error in the run length is below 0.5 %.
const runLengthStates = 96

// cusumRunLength returns the mean run length of the two-sided chart from zero on normal scores of that mean and
// variance 1, from those of its two sides: 1/L = 1/L⁺ + 1/L⁻.
func cusumRunLength(slack, bound, h, mean float64) float64 {
	up := 1 / sideRunLength(slack, bound, h, mean)
	down := up
	if mean != 0 {
		down = 1 / sideRunLength(slack, bound, h, -mean)
	}
	return 1 / (up + down)
}

// sideRunLength returns the mean run length of the upper sum alone.
func sideRunLength(slack, bound, h, mean float64) float64 {
	sd := clippedDeviation(bound)
	lower, upper := detmath.NormalCDF(-bound-mean), detmath.NormalCDF(mean-bound) // masses on the bounds
	inside := func(x float64) float64 {                                           // P(ψ − k ≤ x and ψ is not clipped)
		z := clip(float64((x+slack)*sd), bound)
		return detmath.NormalCDF(z-mean) - lower
	}
	return chainRunLength(h, inside, jump{bound/sd - slack, upper}, jump{-(bound/sd + slack), lower})
}

// jump is a change of a sum that has a probability of its own.
type jump struct{ by, mass float64 }

// chainRunLength returns the mean run length from zero of a sum that is kept from falling below zero, by the Markov chain
// of Brook and Evans (Biometrika 59, 1972): L = (I − Q)⁻¹·1 over the states between alarms. The sum changes by at most x with
// probability inside(x) and the jumps beside; their masses are shared between the states beside where they fall, which
// keeps their mean.
func chainRunLength(h float64, inside func(x float64) float64, jumps ...jump) float64 {
	const m = runLengthStates
	width := 2 * h / (2*m - 1)
	a := make([]float64, m*m)
	b := make([]float64, m)
	for i := range m {
		row := a[i*m : (i+1)*m]
		last := 0.0
		for j := range m {
			p := inside(float64((float64(j-i) + 0.5) * width))
			row[j] -= p - last
			last = p
		}
		for _, u := range jumps {
			land(row, float64(i)+u.by/width, u.mass)
		}
		row[i]++
		b[i] = 1
	}
	return solveFirst(a, b)
}

// land puts the mass of a jump to the place at on the states on either side of it; row is a row of I − Q.
func land(row []float64, at, mass float64) {
	j := max(0, int(math.Floor(at)))
	part := max(0, at-float64(j))
	if j < len(row) {
		row[j] -= float64(mass * (1 - part))
	}
	if j+1 < len(row) {
		row[j+1] -= float64(mass * part)
	}
}

// solveFirst returns the first element of the solution of a·x = b, destroying both. a is an M-matrix, which needs no
// pivoting.
func solveFirst(a, b []float64) float64 {
	m := len(b)
	for k := range m {
		for i := k + 1; i < m; i++ {
			f := a[i*m+k] / a[k*m+k]
			if f == 0 {
				continue
			}
			for j := k + 1; j < m; j++ {
				a[i*m+j] -= float64(f * a[k*m+j])
			}
			b[i] -= float64(f * b[k])
		}
	}
	for i := m - 1; i >= 0; i-- {
		for j := i + 1; j < m; j++ {
			b[i] -= float64(a[i*m+j] * b[j])
		}
		b[i] /= a[i*m+i]
	}
	return b[0]
}
