package predictor

import "testing"

// The chains were computed by this package on linux/amd64. They change with anything that changes a bit of any
// forecast: then stored runs no longer compare, so say so in the changelog and raise stateVersion.
var golden = []struct{ name, chain string }{
	{"sunspots", "008972ba0ea7ab0e5909dd6a33a3a92bde4e3d559e7750ee98b759dcd2ddba76"},
	{"nile", "b3c0b902a105a153f1f8a9cb4b791f33143480971d1ca9272d768c41e553739e"},
	{"co2", "537ffcc2a11ab1ac25f7e2f12d97fec6f1e27a318764a7a5bdbd56b06e2f2f18"},
	{"disturbed", "4552f83d635a9e1a78591344818889a807a4ab0ef5eb1e8aa891ce5933c667fb"}, // through quarantine, shift, freeze, alarm and the search for a season
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
