package predictor

import (
	"math"
	"slices"
	"testing"
)

// eliminate solves a·x = b by Gauss–Jordan elimination with partial pivoting, for any number of right sides.
func eliminate(a, b [][]float64) [][]float64 {
	n := len(a)
	for c := range n {
		p := c
		for r := c; r < n; r++ {
			if math.Abs(a[r][c]) > math.Abs(a[p][c]) {
				p = r
			}
		}
		a[c], a[p], b[c], b[p] = a[p], a[c], b[p], b[c]
		for r := range n {
			if f := a[r][c] / a[c][c]; r != c {
				for k := range a[r] {
					a[r][k] -= f * a[c][k]
				}
				for k := range b[r] {
					b[r][k] -= f * b[c][k]
				}
			}
		}
	}
	for r := range n {
		for k := range b[r] {
			b[r][k] /= a[r][r]
		}
	}
	return b
}

// The law of the kernel expert is that of ridge regression on the last 16 delay vectors, solved anew by another method
// from the series itself: the ring, the cached distances and the factor lose nothing.
func TestKernelRidgeIsTheDirectSolution(t *testing.T) {
	const window = 16
	e, h, y := newKernelRidge(window), newHistory(1), noise(21, 120)
	for i := 2; i < len(y); i++ {
		y[i] += 1.2*y[i-1] - .6*y[i-2]
	}
	checked := 0
	for i, v := range y {
		h.push(v)
		forecast := e.step(&h)
		if i < window+krrLags+1 {
			continue
		}
		delay := func(at int) (x []float64) {
			for k := 1; k <= krrLags; k++ {
				x = append(x, y[at-k]-y[at])
			}
			return x
		}
		between := func(a, b int) float64 {
			s, x := 0.0, delay(b)
			for k, u := range delay(a) {
				s += (u - x[k]) * (u - x[k])
			}
			return math.Exp(-.5 * s / e.scale)
		}
		var gram, right [][]float64
		power := 0.0
		for a := i - window; a < i; a++ {
			row := []float64{}
			for b := i - window; b < i; b++ {
				row = append(row, between(a, b))
			}
			row[len(gram)] += krrRidge
			target := y[a+1] - y[a]
			power += target * target / window
			gram, right = append(gram, row), append(right, []float64{target, between(a, i)})
		}
		k := make([]float64, window)
		for j := range k {
			k[j] = right[j][1]
		}
		solution := eliminate(gram, right)
		want, variance := y[i], 1+krrRidge
		for j := range k {
			want += k[j] * solution[j][0]
			variance -= k[j] * solution[j][1]
		}
		sd := math.Sqrt(variance * power / (1 + krrRidge))
		if math.Abs(forecast-want) > 1e-9 || math.Abs(e.sd-sd) > 1e-9 {
			t.Fatalf("step %d: law %v ± %v, want %v ± %v", i, forecast, e.sd, want, sd)
		}
		checked++
	}
	if checked < 90 {
		t.Errorf("only %d steps were compared", checked)
	}
}

// Without a kernel window there is no kernel expert, and its window is part of the configuration that a state needs.
func TestKernelWindow(t *testing.T) {
	with, without := create(t, Config{}), create(t, Config{KernelWindow: 1})
	if !slices.Contains(with.Experts(), "kernel") || slices.Contains(without.Experts(), "kernel") {
		t.Errorf("experts: by default %v, with window 1 %v", with.Experts(), without.Experts())
	}
	if (Config{KernelWindow: 32}).WithDefaults().sum() == (Config{}).WithDefaults().sum() {
		t.Error("the window does not change the identity of the configuration")
	}
}

// Signals that once led autoregressions astray: at rest at first, then moving by steps that are great beside the first;
// no autoregression's error exceeds one and a half times that of the naive forecast.
func TestAutoregressionsAreRobust(t *testing.T) {
	e := noise(33, 300)
	signals := map[string][]float64{"late": {}, "growing": {}, "bursts": {}}
	for i, x := range e {
		late, walk := 0.0, 0.0
		if i > 3 {
			late = 80 + x
		}
		if i > 0 {
			walk = signals["growing"][i-1]
		}
		burst := .01 * x
		if i%37 > 33 {
			burst = 30 * x
		}
		signals["late"] = append(signals["late"], late)
		signals["growing"] = append(signals["growing"], walk+x*math.Pow(1.02, float64(i)))
		signals["bursts"] = append(signals["bursts"], burst)
	}
	// Two equal values, a small step, then steps fifteen times as great that persist: the unit is too small at first.
	slow, v := []float64{84, 84, 83.9, 85.4, 86.9}, 1.5
	for _, x := range e[5:150] {
		v = .7*v + .6*x
		slow = append(slow, slow[len(slow)-1]+v)
	}
	signals["slow"] = slow
	for name, y := range signals {
		for _, season := range []int{1, 12} {
			cfg := Config{Season: season, KernelWindow: 1}.WithDefaults()
			for _, x := range newExperts(cfg) {
				ar, ok := x.(*autoregression)
				if !ok {
					continue
				}
				h := newHistory(season)
				sum, naive, forecast := 0.0, 0.0, y[0]
				for i, v := range y {
					if i > 0 {
						sum += (v - forecast) * (v - forecast)
						naive += (v - y[i-1]) * (v - y[i-1])
					}
					h.push(v)
					forecast = ar.step(&h)
				}
				if ratio := math.Sqrt(sum / naive); !(ratio < 1.5) {
					t.Errorf("%s, season %d: error of %s is %.2f of naive", name, season, ar.name(), ratio)
				}
			}
		}
	}
}

// Vectors whose squared distances are subnormal have no bandwidth that can be divided by; the state must stay finite.
func TestKernelOnAlmostEqualVectors(t *testing.T) {
	y := make([]float64, 17)
	y[6] = 1e-160
	p := create(t, Config{})
	feed(t, p, y, nil)
	if _, err := Restore(Config{}, state(p)); err != nil {
		t.Error(err)
	}
}
