package predictor

import (
	"math"

	"github.com/usp-project/usp/detmath"
)

// kernelRidge forecasts by kernel ridge regression on the newest delay vectors (Gaussian kernel, the same as the mean of
// a Gaussian process). A delay vector holds the preceding values relative to the last one; its target is the increment
// that followed, so that far from all that was seen the forecast is the naive one. The system is factored afresh at
// every step, so nothing drifts.
type kernelRidge struct {
	window, lags int

	season  int       // the vectors are for
	vectors []float64 // window×lags, a ring of slots
	targets []float64 // window
	next    []float64 // lags: the delay vector that waits for its target
	n       uint64    // vectors with a target so far
	ready   bool      // next is filled
	mean    float64   // of the law: the forecast
	sd      float64   // of the law, unit of the value

	scale    float64   // squared bandwidth; 0 while the vectors do not differ
	distance []float64 // window×window, squared; follows from vectors
	kernel   []float64 // window×window; follows from distance and scale
	matrix   []float64 // scratch, window×(window+2): K + λI, targets and k(x), then its factor U, U⁻ᵀt and U⁻ᵀk
}

const (
	krrLags      = 8
	krrRidge     = 0.3 // λ: variance of the noise in units of that of the signal
	krrBandwidth = 1.0 // squared bandwidth, in mean squared distances
	krrEvery     = 8   // vectors between two choices of the bandwidth
	krrLeast     = 8   // vectors before the forecast leaves the last value

	krrNarrowest = 0x1p-1000 // squared bandwidth: the reciprocal of one below 2⁻¹⁰²³ is infinite, and infinity times no distance no number
)

func newKernelRidge(window int) *kernelRidge {
	return &kernelRidge{window: window, lags: krrLags, vectors: make([]float64, window*krrLags), targets: make([]float64, window),
		next: make([]float64, krrLags), distance: make([]float64, window*window), kernel: make([]float64, window*window), matrix: make([]float64, window*(window+2))}
}

func (*kernelRidge) name() string    { return "kernel" }
func (*kernelRidge) family() Family  { return FamilyLinear }
func (*kernelRidge) belief() float64 { return 6 }

func (e *kernelRidge) step(h *history) float64 {
	y := h.back(0)
	if e.season != h.season { // vectors of another make do not compare
		e.season, e.n, e.scale, e.ready = h.season, 0, 0, false
	}
	if e.ready {
		e.keep(y - h.back(1))
	}
	e.mean, e.sd = y, 0
	if e.ready = h.has(e.lag(e.lags - 1)); !e.ready {
		return y
	}
	for k := range e.next {
		e.next[k] = h.back(e.lag(k)) - y
	}
	if e.n >= krrLeast {
		e.regress(y, h)
	}
	return e.mean
}

// lag returns how far back element k of a delay vector lies: the last values or, where a season is longer than that, in
// place of the oldest three, those one season before the target and the two values after it.
func (e *kernelRidge) lag(k int) int {
	if e.season > e.lags && k >= e.lags-3 {
		return e.season - (e.lags - k)
	}
	return k + 1
}

// keep puts the waiting vector and its target into the window.
func (e *kernelRidge) keep(target float64) {
	slot := int(e.n % uint64(e.window))
	copy(e.vectors[slot*e.lags:], e.next)
	e.targets[slot] = target
	e.n++
	e.measure(slot)
}

// measure computes the distances of the vector in a slot from all others, and the kernel between them. The bandwidth is
// set anew whenever the number of vectors is a multiple of krrEvery, so that in between one row suffices.
func (e *kernelRidge) measure(slot int) {
	m := int(min(e.n, uint64(e.window)))
	e.place(slot, m)
	if e.n%krrEvery != 0 {
		e.link(slot, m)
		return
	}
	total := 0.0
	for i := range m {
		for _, d := range e.distance[i*e.window : i*e.window+i] {
			total += d
		}
	}
	e.scale = float64(krrBandwidth*total) / float64(m*(m-1)/2)
	if math.IsInf(e.scale, 0) || e.scale < krrNarrowest {
		e.scale = 0
	}
	for i := range m {
		e.link(i, i)
	}
}

// place computes the distances between the vector in a slot and the first m.
func (e *kernelRidge) place(slot, m int) {
	x := e.vectors[slot*e.lags : (slot+1)*e.lags]
	for i := range m {
		d := squaredDistance(x, e.vectors[i*e.lags:(i+1)*e.lags])
		e.distance[slot*e.window+i], e.distance[i*e.window+slot] = d, d
	}
}

// link computes the kernel between the vector in a slot and the first m.
func (e *kernelRidge) link(slot, m int) {
	if !(e.scale > 0) {
		return
	}
	inverse := -0.5 / e.scale
	for i := range m {
		k := detmath.Exp(float64(e.distance[slot*e.window+i] * inverse))
		e.kernel[slot*e.window+i], e.kernel[i*e.window+slot] = k, k
	}
}

func squaredDistance(a, b []float64) float64 {
	s := 0.0
	for k, x := range a {
		d := x - b[k]
		s += float64(d * d)
	}
	return s
}

// regress sets mean kᵀ(K + λI)⁻¹t and standard deviation of the law, for kernel values k and targets t. Both stand beside
// the matrix when it is factored, so that no system is left to be solved.
func (e *kernelRidge) regress(y float64, h *history) {
	m := int(min(e.n, uint64(e.window)))
	if !(e.scale > 0) {
		return
	}
	inverse := -0.5 / e.scale
	power := 0.0 // mean squared target
	width := m + 2
	for i := range m {
		row := e.matrix[i*width+i : (i+1)*width]
		copy(row, e.kernel[i*e.window+i:i*e.window+m])
		row[0] = 1 + krrRidge
		t := e.targets[i] / h.spread
		row[m-i] = t
		row[m-i+1] = detmath.Exp(float64(squaredDistance(e.next, e.vectors[i*e.lags:(i+1)*e.lags]) * inverse))
		power += float64(t * t)
	}
	if !detmath.CholeskyBeside(e.matrix[:m*width], m, width) {
		return
	}
	mean, explained := 0.0, 0.0
	for i := range m {
		target, kernel := e.matrix[i*width+m], e.matrix[i*width+m+1]
		mean += float64(kernel * target)
		explained += float64(kernel * kernel)
	}
	if math.IsNaN(mean) || math.IsInf(mean, 0) {
		return
	}
	e.mean = y + float64(h.spread*clip(mean, arOutermost))
	// The targets' mean square is that of signal and noise together, 1 + λ.
	variance := float64(power / float64(m) / (1 + krrRidge) * max(0, 1-explained+krrRidge))
	e.sd = float64(h.spread * math.Sqrt(variance))
}

// spread gives the law of the Gaussian process.
func (e *kernelRidge) spread(g *lawGrid, weight float64) {
	g.addNormal(weight, e.mean, e.sd)
}

func (e *kernelRidge) visit(c *codec) {
	c.int(&e.season, 0, MaxSeason)
	c.floats(e.vectors)
	c.floats(e.targets)
	c.floats(e.next)
	c.uint(&e.n)
	c.bool(&e.ready)
	c.float(&e.mean)
	c.float(&e.sd)
	c.float(&e.scale)
	if c.load && c.err == nil {
		for i := range int(min(e.n, uint64(e.window))) {
			e.place(i, i)
			e.link(i, i)
		}
	}
}
