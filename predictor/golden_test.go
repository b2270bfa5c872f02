package predictor

import "testing"

// The chains were computed by this package on linux/amd64. They change with anything that changes a bit of any
// forecast: then stored runs no longer compare, so say so in the changelog and raise stateVersion.
var golden = []struct{ name, chain string }{
	{"sunspots", "bc602f2f4d942c93ef1a9e543148b7154180eef30b735083ccbd3bccc12db2b1"},
	{"nile", "a9637e63328bf2d38f634804465271525456d2ddda6f775066707805a60e86e9"},
	{"co2", "3a9a3a9f78c8752e3aba8f5252b7e12db524f5f31c4b6e9077d4fbde6107354a"},
	{"disturbed", "72b4e2685e538bbfa9af1139ddd13e38a2c0209d936cff317598d5fbd2569935"}, // through quarantine, shift, freeze, alarm and the search for a season
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
		var c chain
		feed(t, create(t, Config{Season: season}), y, func(_ int, _ float64, out *Output) { c.add(out) })
		if c.String() != g.chain {
			t.Errorf("%s: chain %s, want %s", g.name, &c, g.chain)
		}
	}
}
