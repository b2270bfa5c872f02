package predictor

import "testing"

// The chains were computed by this package on linux/amd64. They change with anything that changes a bit of any
// forecast: then stored runs no longer compare, so say so in the changelog and raise stateVersion.
var golden = []struct{ name, chain string }{
	{"sunspots", "f22f892bcaf6b2d304c66ea9af3d14db8dd7bb740fcad519638a709c08174db2"},
	{"nile", "a689ab0357c038085234262dc941360837845b8205587fa15c83e68e03e25e02"},
	{"co2", "f139f7de02c2ca98aae6467f7e7dd3d869e816ee85572c89cbeea4009ae4356d"},
	{"disturbed", "a7b25bbe74b15bcbe6e730a30e3f13d5afe7a03b15e8d09b602889944a4438ab"}, // through quarantine, shift, freeze, alarm and the search for a season
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
