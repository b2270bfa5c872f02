package predictor

const (
	mlPolyPrior     = 4    // squared gains assumed before any were seen: how slowly the first evidence is believed
	mlPolyAgreement = 1e-9 // those who are ahead by no more are not ahead
)

// mlPoly weighs forecasters by polynomially weighted averages with one learning rate each (Gaillard, Stoltz and van
// Erven, COLT 2014): wₖ ∝ Rₖ⁺/(c + Σr²), Rₖ the cumulated gain of forecaster k over the mixture.
type mlPoly struct {
	regret  []float64 // R
	inverse []float64 // 1/η: c + Σr²
	share   []float64 // w
}

func newMLPoly(n int) mlPoly {
	a := mlPoly{regret: make([]float64, n), inverse: make([]float64, n), share: make([]float64, n)}
	for k := range n {
		a.inverse[k] = mlPolyPrior
	}
	uniform(a.share)
	return a
}

// gain takes in by how much forecaster k did better than the mixture.
func (a *mlPoly) gain(k int, r float64) {
	a.regret[k] += r
	a.inverse[k] += float64(r * r)
}

// mix sets the shares; uniform if nobody is ahead of the mixture.
func (a *mlPoly) mix() {
	sum := 0.0
	for k, r := range a.regret {
		a.share[k] = 0
		if r > mlPolyAgreement {
			a.share[k] = r / a.inverse[k]
			sum += a.share[k]
		}
	}
	if sum == 0 {
		uniform(a.share)
		return
	}
	for k := range a.share {
		a.share[k] /= sum
	}
}

func (a *mlPoly) visit(c *codec) {
	c.floats(a.regret)
	c.floats(a.inverse)
	c.floats(a.share)
}
