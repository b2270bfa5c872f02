package score

import "github.com/usp-project/usp/internal/aggregate"

// Simplex returns the weights w ≥ 0 with Σw = 1 that minimise wᵀGw, and the minimum, for a symmetric positive
// semidefinite G (n×n). It is pairwise Frank–Wolfe with exact steps (Lacoste-Julien and Jaggi, NIPS 2015): weight moves
// from the worst supported vertex to the best one until the duality gap wᵀg − min g, g = 2Gw, which bounds how far the
// value is from the optimum, is below 1e−10 of it.
func Simplex(g [][]float64) (w []float64, value float64) {
	n := len(g)
	w = make([]float64, n)
	aggregate.Uniform(w)
	grad := make([]float64, n) // Gw
	for range 200000 {
		value = 0
		best, worst := 0, -1
		for i := range n {
			grad[i] = 0
			for j := range n {
				grad[i] += float64(g[i][j] * w[j])
			}
			value += float64(w[i] * grad[i])
		}
		for i := range n {
			if grad[i] < grad[best] {
				best = i
			}
			if w[i] > 0 && (worst < 0 || grad[i] > grad[worst]) {
				worst = i
			}
		}
		if n == 0 || 2*(value-grad[best]) <= 1e-10*value {
			break
		}
		curvature := g[best][best] + g[worst][worst] - 2*g[best][worst]
		step := w[worst]
		if curvature > 0 {
			step = min(step, (grad[worst]-grad[best])/curvature)
		}
		w[best] += step
		w[worst] -= step
	}
	return w, value
}
