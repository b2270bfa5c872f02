package ot

import (
	"math"

	"github.com/usp-project/usp/detmath"
)

// SinkhornOptions bound the iteration. The zero value is ready to use.
type SinkhornOptions struct {
	MaxIterations int     // pairs of updates; default 10000
	Tol           float64 // on the largest deviation of the first marginal; default 1e-14
}

// SinkhornResult says what the plan costs and how exactly it meets its marginals.
type SinkhornResult struct {
	Cost        float64 // ⟨C,π⟩
	Regularised float64 // ⟨C,π⟩ + ε·KL(π‖a⊗b)
	Residual    float64 // largest deviation of the plan's first marginal from a, at the plan returned
	Iterations  int
	Converged   bool // Residual ≤ Tol
}

// Sinkhorn writes to plan (n×n) the entropic optimal-transport plan between a and b, in the log domain, so that no
// ε > 0 overflows. The second marginal is exact to rounding; Residual tells about the first. Elements of a and b may
// be zero. (Cuturi, NIPS 2013; Peyré and Cuturi, Computational Optimal Transport, 2019, 4.4.)
func Sinkhorn(plan, a, b, cost []float64, eps float64, opt SinkhornOptions, ws *Workspace) SinkhornResult {
	n := len(a)
	maxIter, tol := opt.MaxIterations, opt.Tol
	if maxIter <= 0 {
		maxIter = 10000
	}
	if tol <= 0 {
		tol = 1e-14
	}
	f, g, row := ws.p[:n], ws.g[:n], ws.row[:n] // potentials in units of ε
	clear(g)
	var r SinkhornResult
	for r.Iterations < maxIter {
		r.Iterations++
		for i := range n {
			for j := range n {
				row[j] = g[j] - cost[i*n+j]/eps
			}
			f[i] = detmath.Log(a[i]) - detmath.LogSumExp(row)
		}
		for j := range n {
			for i := range n {
				row[i] = f[i] - cost[i*n+j]/eps
			}
			g[j] = detmath.Log(b[j]) - detmath.LogSumExp(row)
		}
		if r.Residual = writePlan(plan, a, f, g, cost, eps); r.Residual <= tol {
			r.Converged = true
			break
		}
	}
	for i := range n {
		for j := range n {
			pij := plan[i*n+j]
			if pij > 0 {
				r.Cost += float64(pij * cost[i*n+j])
				r.Regularised += float64(pij * (detmath.Log(pij/a[i]) - detmath.Log(b[j])))
			}
		}
	}
	r.Regularised = r.Cost + float64(eps*r.Regularised)
	return r
}

// writePlan writes exp(f+g−C/ε) and returns the largest deviation of its row sums from a.
func writePlan(plan, a, f, g, cost []float64, eps float64) float64 {
	n, worst := len(a), 0.0
	for i := range n {
		s := 0.0
		for j := range n {
			x := detmath.Exp(f[i] + g[j] - cost[i*n+j]/eps)
			plan[i*n+j] = x
			s += x
		}
		worst = max(worst, math.Abs(s-a[i]))
	}
	return worst
}
