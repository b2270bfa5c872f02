package predictor

import "testing"

// The chains were computed by this package on linux/amd64. They change with anything that changes a bit of any
// forecast: then stored runs no longer compare, so say so in the changelog and raise stateVersion.
var golden = []struct{ name, chain string }{
	{"sunspots", "a6d8a2d0971ff7b7b09baef95e0ccabb96cec38f6c834ba11a18b42bc84a3f6c"},
	{"nile", "020f430e718fce46137633b7fe31014998ae012f9591d17497319796071c344b"},
	{"co2", "c62a5ae288e53103b197c1a16115281fa93b8e0a2034ec964adc1592a4039fb1"},
	{"disturbed", "de69dcf7fb8b19e2c190bc561f69f8a68cd91741a703cb0bc27a336a4184af6d"}, // through quarantine, shift, freeze, alarm and the search for a season
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
