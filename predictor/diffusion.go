package predictor

import (
	"math"

	"github.com/usp-project/usp/detmath"
	"github.com/usp-project/usp/internal/fokkerplanck"
)

const (
	diffusionMemory = .999               // of the moments, per step
	diffusionEnough = 24                 // weight of increments before which nothing is said
	diffusionPrior  = 4                  // increments that the mean over all levels is worth at each
	diffusionClip   = 6                  // |increment| that counts, in spreads of the history
	diffusionReach  = 6.0                // half of the law's grid, in standard deviations of a step
	diffusionCells  = 48                 // of the law's grid
	gaussianEntropy = 1.4189385332046727 // ½ln 2πe
	diffusionSteps  = 3                  // implicit ones, each a quarter of the time; the first quarter is Gaussian
)

// diffusionExperts returns the expert of family B.
func diffusionExperts(Config) []expert {
	return []expert{&diffusion{solver: fokkerplanck.New(diffusionCells)}}
}

// diffusion is the process dx = b(x) dt + √v(x) dW seen at unit steps. Drift and squared diffusion are the first two
// Kramers–Moyal coefficients by level (Siegert, Friedrich and Peinke, Phys. Lett. A 243, 1998), with what a step of finite
// length does to them taken back as it is exactly undone for an Ornstein–Uhlenbeck process (Ragwitz and Kantz, Phys. Rev. Lett.
// 87, 2001). The law of the next value is the Fokker–Planck equation's after unit time from the present one: the first
// third Gaussian, since a grid cannot hold a point, the rest by the scheme of Chang and Cooper. The forecast is its mean.
type diffusion struct {
	levels levelMoments

	centre, width float64                 // of the law's grid and cells; width 0: the law is N(centre, sd²), for want of data
	sd            float64                 // of a step from the present value
	law           [diffusionCells]float64 // probability of each cell

	drift, squared [diffusionCells]float64 // scratch
	solver         *fokkerplanck.Solver
}

func (*diffusion) name() string   { return "diffusion" }
func (*diffusion) family() Family { return FamilyDiffusion }

func (e *diffusion) step(h *history) float64 {
	x := h.back(0)
	if h.n > 8 {
		bound := float64(diffusionClip * h.spread)
		e.levels.learn(h.back(1), clip(x-h.back(1), bound), h.spread)
	}
	e.centre, e.width, e.sd = x, 0, h.spread
	if e.levels.total < diffusionEnough {
		return x
	}
	e.levels.follow()
	return e.evolve(x, h.floor())
}

// evolve computes the law one step after x and returns its mean.
func (e *diffusion) evolve(x, floor float64) float64 {
	stretch, widen := e.levels.correction()
	mean, variance := e.levels.at(e.levels.place(x))
	sd := max(math.Sqrt(variance), floor)
	e.sd = sd
	mean = clip(mean, float64(diffusionReach*sd))
	e.centre = x + float64(0.5*mean)
	e.width = (float64(2*diffusionReach*sd) + math.Abs(mean)) / diffusionCells
	from, apart := e.levels.place(e.cell(0)), e.width/e.levels.width
	farthest, least := float64(diffusionReach*sd), float64(floor*floor)
	for j := range e.law {
		m, v := e.levels.at(from + float64(float64(j)*apart))
		// No drift leads further than half the grid: one step takes nobody beyond.
		e.drift[j] = float64(stretch * clip(m, farthest))
		e.squared[j] = float64(widen * max(v, least))
	}
	const first = 1.0 / (diffusionSteps + 1)
	e.start(x+float64(first*stretch*mean), float64(sd*math.Sqrt(float64(first*widen))))
	e.solver.Prepare(e.drift[:], e.squared[:], e.width, first)
	for range diffusionSteps {
		e.solver.Advance(e.law[:])
	}
	at := 0.0
	for j, p := range e.law {
		at += float64(p * (float64(j) - 0.5*(diffusionCells-1)))
	}
	return e.centre + float64(at*e.width)
}

// cell returns the centre of cell j of the law's grid.
func (e *diffusion) cell(j int) float64 {
	return e.centre + float64((float64(j)-0.5*(diffusionCells-1))*e.width)
}

// start lays the normal law of that mean and deviation on the grid.
func (e *diffusion) start(mean, sd float64) {
	sd = max(sd, float64(0.5*e.width))
	inverse := 1 / sd
	for j := range e.law {
		z := float64((e.cell(j) - mean) * inverse)
		e.law[j] = float64(-0.5 * z * z)
	}
	detmath.ExpEach(e.law[:])
	mass := 0.0
	for _, p := range e.law {
		mass += p
	}
	if !(mass > 0) {
		e.law[diffusionCells/2], mass = 1, 1
	}
	share := 1 / mass
	for j, p := range e.law {
		e.law[j] = float64(p * share)
	}
}

// entropy returns the differential entropy of the law, nats, in units of unit > 0.
func (e *diffusion) entropy(unit float64) float64 {
	if e.width == 0 {
		return gaussianEntropy + detmath.Log(e.sd/unit)
	}
	s := 0.0
	for _, p := range e.law {
		if p > 1e-12 { // less adds nothing that is seen
			s -= float64(p * detmath.Log(p))
		}
	}
	return s + detmath.Log(e.width/unit)
}

// spread shares the mass of each cell between the two nodes beside it, which keeps mass and mean.
func (e *diffusion) spread(g *lawGrid, weight float64) {
	if e.width == 0 {
		g.addNormal(weight, e.centre, e.sd)
		return
	}
	for j, p := range e.law {
		g.addMass(float64(weight*p), e.cell(j))
	}
}

func (e *diffusion) visit(c *codec) {
	e.levels.visit(c)
	c.float(&e.centre)
	c.float(&e.width)
	c.float(&e.sd)
	c.floats(e.law[:])
}
