package predictor

import "testing"

// The chains were computed by this package on linux/amd64. They change with anything that changes a bit of any
// forecast: then stored runs no longer compare, so say so in the changelog and raise stateVersion.
var golden = []struct{ name, chain string }{
	{"sunspots", "fedfbc6d28e552725a05dad726d2d0579853c34e92d459ceb342565ee8fc20c3"},
	{"nile", "1344643932d807be2e707f98690a3dfbb70bc76e39dac42db684caffca493535"},
	{"co2", "8720d12b99e36deb2557f91d30e74251ccfa3fc067c00afe78b4502205fc9125"},
	{"disturbed", "089b89a991e0169991b33b75a00345684b75a7eb11e3be88002ab8dae3a3f8aa"}, // through quarantine, shift, freeze, alarm and the search for a season
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
