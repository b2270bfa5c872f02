package ot

import (
	"math"
	"slices"

	"github.com/usp-project/usp/detmath"
)

// JKOOptions bound the iteration. The zero value is ready to use.
type JKOOptions struct {
	MaxIterations int     // Newton steps, and as many scaling steps should they fail; default 200
	Tol           float64 // on the largest element of the dual gradient; default 1e-14
	GapTol        float64 // on Gap relative to max(1, |primal value|), for Converged; default 1e-10
}

// JKOResult says what a JKO step cost and certifies how near it is to the minimum.
type JKOResult struct {
	OTCost     float64 // ⟨C,π⟩ of the plan executed
	FreeEnergy float64 // F(ρ⁺) = ⟨ℓ,ρ⁺⟩ + λ·KL(ρ⁺‖u)
	Primal     float64 // ⟨C,π⟩ + ε·Σπ(ln π − 1) + 2τ·F(ρ⁺)
	Gap        float64 // Primal minus a lower bound of the minimum: at least the true excess, to rounding
	Residual   float64 // largest element of the dual gradient: by how much the plan's second marginal misses its target
	Iterations int
	Converged  bool // Gap within GapTol
}

// jko is one minimisation; its slices belong to the caller and the workspace.
type jko struct {
	rho, loss, prior, cost []float64
	tau, eps, lambda       float64
	n                      int
	ws                     *Workspace
}

// JKO performs one entropic Jordan–Kinderlehrer–Otto step: dst becomes the second marginal of the plan π ≥ 0 with
// first marginal ρ that minimises
//
//	⟨C,π⟩ + ε·Σ π(ln π − 1) + 2τ·F(πᵀ1),   F(q) = ⟨ℓ,q⟩ + λ·Σ q·ln(q/u)
//
// (Peyré, SIAM J. Imaging Sci. 8, 2015). For λ = 0 the minimiser is in closed form and Iterations is 1; otherwise
// Newton's method climbs the concave semi-dual, and where it makes no way the scaling iteration of Chizat, Peyré,
// Schmitzer and Vialard (Math. Comp. 87, 2018) goes on. τ > 0, ε > 0, λ ≥ 0 and prior > 0 everywhere. dst may be rho.
func JKO(dst, rho, loss, prior, cost []float64, tau, eps, lambda float64, opt JKOOptions, ws *Workspace) JKOResult {
	if opt.MaxIterations <= 0 {
		opt.MaxIterations = 200
	}
	if opt.Tol <= 0 {
		opt.Tol = 1e-14
	}
	if opt.GapTol <= 0 {
		opt.GapTol = 1e-10
	}
	n := len(rho)
	s := jko{rho: rho, loss: loss[:n], prior: prior, cost: cost[:n*n], tau: tau, eps: eps, lambda: lambda, n: n, ws: ws}
	var r JKOResult
	psi := ws.psi[:n]
	if lambda == 0 {
		for j := range psi {
			psi[j] = float64(-2 * tau * loss[j])
		}
		r.Iterations = 1
	} else {
		clear(psi)
		r.Iterations = s.newton(psi, opt)
		s.polish(psi, opt)
	}
	s.finish(&r, psi, opt)
	copy(dst[:n], ws.p[:n])
	Normalize(dst[:n])
	return r
}

// dual evaluates the semi-dual at psi, less the constant ε(Σρ ln ρ − 1); it leaves the conditional plan P in
// ws.kernel, its log normalisers in ws.g, Pᵀρ in ws.p and the target q in ws.q.
func (s *jko) dual(psi []float64) float64 {
	n, ws := s.n, s.ws
	p, q, row := ws.p[:n], ws.q[:n], ws.row[:n]
	clear(p)
	d := 0.0
	for i := range n {
		for j := range n {
			row[j] = (psi[j] - s.cost[i*n+j]) / s.eps
		}
		lse, sum := logSumExp(row)
		ws.g[i] = lse
		d -= float64(s.eps * s.rho[i] * lse)
		for j, e := range row {
			x := e / sum
			ws.kernel[i*n+j] = x
			p[j] += float64(s.rho[i] * x)
		}
	}
	if s.lambda == 0 { // ψ is fixed at −2τℓ and the plan may end wherever it likes
		copy(q, p)
		return d
	}
	for j := range n {
		row[j] = detmath.Log(s.prior[j]) - (psi[j]/(2*s.tau)+s.loss[j])/s.lambda
	}
	lse := detmath.LogSumExp(row)
	for j := range n {
		q[j] = detmath.Exp(row[j] - lse)
	}
	return d - float64(2*s.tau*s.lambda*lse)
}

// logSumExp returns ln Σ eˣ of a row that has a finite element, with the row's exponentials relative to the greatest of
// them in its place, and their sum.
func logSumExp(row []float64) (log, sum float64) {
	top := slices.Max(row)
	for j := range row {
		row[j] -= top
	}
	detmath.ExpEach(row)
	for _, e := range row {
		sum += e
	}
	return top + detmath.Log(sum), sum
}

// gradient returns the largest element of q − Pᵀρ after dual, which is the semi-dual's gradient.
func (s *jko) gradient() float64 {
	worst := 0.0
	for j := range s.n {
		worst = max(worst, math.Abs(s.ws.q[j]-s.ws.p[j]))
	}
	return worst
}

// newton climbs the semi-dual from psi and returns the number of steps, those of the fallback included.
func (s *jko) newton(psi []float64, opt JKOOptions) int {
	n, ws := s.n, s.ws
	d, try := ws.d[:n], ws.try[:n]
	value := s.dual(psi)
	grad := s.gradient()
	for it := range opt.MaxIterations {
		if grad <= opt.Tol {
			return it
		}
		if !s.direction(d) {
			return it + s.scale(psi, opt)
		}
		step, moved := 1.0, false
		for range 40 {
			for j := range n {
				try[j] = psi[j] + float64(step*d[j])
			}
			v := s.dual(try)
			g := s.gradient()
			// Near the top the value is flat to rounding; there the gradient decides.
			if v > value || (v >= value-float64(1e-14*(1+math.Abs(value))) && g < grad) {
				value, grad, moved = v, g, true
				copy(psi, try)
				break
			}
			step = float64(0.5 * step)
		}
		if !moved {
			s.dual(psi)
			if grad <= rightMarginal {
				return it + 1
			}
			return it + 1 + s.scale(psi, opt)
		}
	}
	if grad > opt.Tol {
		return opt.MaxIterations + s.scale(psi, opt)
	}
	return opt.MaxIterations
}

// direction solves for the Newton direction at the point dual was last called for. The semi-dual is constant along
// (1,…,1), so the outer product of that vector is added to make the matrix definite; the direction is orthogonal to it.
func (s *jko) direction(d []float64) bool {
	n, ws := s.n, s.ws
	h := ws.hess[:n*n]
	clear(h)
	for i := range n {
		p := ws.kernel[i*n : (i+1)*n]
		a := s.rho[i] / s.eps
		for j := range n {
			ap := float64(a * p[j])
			h[j*n+j] += ap
			for k := range n {
				h[j*n+k] -= float64(ap * p[k])
			}
		}
	}
	b := 1 / (2 * s.tau * s.lambda)
	trace := 0.0
	for j := range n {
		bq := float64(b * ws.q[j])
		h[j*n+j] += bq
		for k := range n {
			h[j*n+k] -= float64(bq * ws.q[k])
		}
		trace += h[j*n+j]
	}
	mean := trace / float64(n)
	for j := range n {
		for k := range n {
			h[j*n+k] += mean
		}
		h[j*n+j] += float64(1e-13 * mean)
		d[j] = ws.q[j] - ws.p[j]
	}
	return detmath.Cholesky(h, n) && detmath.CholeskySolve(h, d, n)
}

// scale runs the scaling iteration in the log domain from psi, on g = ψ/ε, leaves the best ψ it saw in psi and returns
// the number of iterations.
func (s *jko) scale(psi []float64, opt JKOOptions) int {
	n, ws := s.n, s.ws
	best := ws.try[:n]
	least := math.Inf(1)
	for it := range opt.MaxIterations {
		s.dual(psi)
		if g := s.gradient(); g < least {
			least = g
			copy(best, psi)
		}
		if least <= opt.Tol {
			copy(psi, best)
			return it
		}
		s.update(psi)
	}
	copy(psi, best)
	return opt.MaxIterations
}

// update takes psi, for which dual was last called, one scaling iteration on.
func (s *jko) update(psi []float64) {
	n, ws := s.n, s.ws
	row, logs := ws.row[:n], ws.w[:n]
	sigma := 2 * s.tau / s.eps
	for i, r := range s.rho {
		logs[i] = detmath.Log(r) - ws.g[i]
	}
	for j := range n { // p is the log of the second marginal without its own factor e^g
		for i := range n {
			row[i] = logs[i] - s.cost[i*n+j]/s.eps
		}
		p, _ := logSumExp(row)
		g := float64(sigma*(float64(s.lambda*(detmath.Log(s.prior[j])-p))-s.loss[j])) / (1 + float64(sigma*s.lambda))
		psi[j] = float64(s.eps * g)
	}
}

const (
	rightMarginal = 1e-12 // largest element of the gradient at which Newton's method may give up, and polish begin
	polishSteps   = 50
)

// polish makes small weights right relative to themselves. Newton's method ends when the marginal is right to Tol, which
// says nothing of a weight below that; a scaling iteration works on logarithms, and a small weight has little part in what
// it is computed from. Where the marginal is right at all, it goes on until no weight moves by more than a part in 10¹³, and only as long as the marginal stays
// as right as it was.
func (s *jko) polish(psi []float64, opt JKOOptions) {
	n, ws := s.n, s.ws
	before := ws.try[:n]
	s.dual(psi)
	allowed := max(s.gradient(), opt.Tol)
	if allowed > rightMarginal {
		return
	}
	for range polishSteps {
		copy(before, psi)
		s.update(psi)
		moved := 0.0
		for j, x := range psi {
			moved = max(moved, math.Abs(x-before[j]))
		}
		s.dual(psi)
		if !(s.gradient() <= allowed) {
			copy(psi, before)
			return
		}
		if moved <= float64(1e-13*s.eps) {
			return
		}
	}
}

// finish evaluates the plan at psi and leaves its second marginal in ws.p.
func (s *jko) finish(r *JKOResult, psi []float64, opt JKOOptions) {
	n, ws := s.n, s.ws
	bound := s.dual(psi)
	r.Residual = s.gradient()
	entropy := 0.0 // Σ ρᵢ Σⱼ Pᵢⱼ ln Pᵢⱼ
	rhoLog := 0.0  // Σ ρ ln ρ
	for i := range n {
		if s.rho[i] == 0 {
			continue
		}
		rhoLog += float64(s.rho[i] * detmath.Log(s.rho[i]))
		for j := range n {
			if p := ws.kernel[i*n+j]; p > 0 {
				pi := float64(s.rho[i] * p)
				r.OTCost += float64(pi * s.cost[i*n+j])
				entropy += float64(pi * detmath.Log(p))
			}
		}
	}
	for j := range n {
		p := ws.p[j]
		r.FreeEnergy += float64(p * s.loss[j])
		if s.lambda > 0 && p > 0 {
			r.FreeEnergy += float64(s.lambda * p * (detmath.Log(p) - detmath.Log(s.prior[j])))
		}
	}
	free := r.OTCost + float64(s.eps*entropy) + float64(2*s.tau*r.FreeEnergy)
	r.Gap = free - bound
	r.Primal = free + float64(s.eps*(rhoLog-1))
	r.Converged = r.Gap <= float64(opt.GapTol*max(1, math.Abs(r.Primal)))
}
