package predictor

import "testing"

// The chains were computed by this package on linux/amd64. They change with anything that changes a bit of any
// forecast: then stored runs no longer compare, so say so in the changelog and raise stateVersion.
var golden = []struct{ name, chain string }{
	{"sunspots", "917dbae04d8f902686f4d714ef6181ac5165b07c0280746440b188bd51add56f"},
	{"nile", "ebae7d1d00eb7872eee5ecb8c412012eab42980954763d629d66ba81fc43d5cc"},
	{"co2", "314cf5dbd11070e12682e8b4c19eb68c855db49b26b206c2aa683be20688fa68"},
	{"disturbed", "360cdb395eb98600f472aabe247a027ce2eb0a22e4cda18fc96fd33e07a55620"}, // through quarantine, shift, freeze, alarm and the search for a season
}

func disturbed() []float64 {
	y := append(walk(17, 600), accelerating(100, -1)...)
	y[50] += 1e4
	for i := 200; i < 600; i++ {
		y[i] += 500
	}
	for i := 300; i < 320; i++ {
		y[i] = 600
	}
	return y
}

func TestGoldenChains(t *testing.T) {
	for _, g := range golden {
		var y []float64
		season := 0
		if g.name == "disturbed" {
			y = disturbed()
		} else {
			y, season = example(t, g.name)
		}
		t.Run(g.name, func(t *testing.T) {
			var c chain
			feed(t, create(t, Config{Season: season}), y, func(_ int, _ float64, out *Output) { c.add(out) })
			if c.String() != g.chain {
				t.Errorf("chain %s, want %s", &c, g.chain)
			}
		})
	}
}
