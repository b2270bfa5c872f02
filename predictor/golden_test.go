package predictor

import "testing"

// The chains were computed by this package on linux/amd64. They change with anything that changes a bit of any
// forecast: then stored runs no longer compare, so say so in the changelog and raise stateVersion.
var golden = []struct{ name, chain string }{
	{"sunspots", "bc248f350b7d8a695cb2de0212463d4245616f676e7015bd1e825afa11e5105b"},
	{"nile", "709a8832dfee268631191b2edde5afe435a5cd3d1b0d9f908252b2bf5976bb9b"},
	{"co2", "12da20f1459bb0e78b5f64aae646b2354c64c0d801a0715a8d1c75794099cb7d"},
	{"disturbed", "71aa6471b8708a800f96a40dc1dab93d04020d55893fe0e8e66185fd329dba55"}, // through quarantine, shift, freeze, alarm and the search for a season
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
