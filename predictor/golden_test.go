package predictor

import "testing"

// The chains were computed by this package on linux/amd64. They change with anything that changes a bit of any
// forecast: then stored runs no longer compare, so say so in the changelog and raise stateVersion.
var golden = []struct{ name, chain string }{
	{"sunspots", "c58f21e6e59bcf49515986293ae8014c08afb8001661ec8f21d88c45b4a4b7f8"},
	{"nile", "460f042be44ce462097a68e340d71af58eb692a1a39049c0b846d1d06627badc"},
	{"co2", "d702e0b960e952274fc38be0a387aa68a99dffea9a08f6da18b453879e3f2041"},
	{"disturbed", "e80f48bb2e626265364101047c8968aa5a8a2eec33ec34ba3d45182616353268"}, // through quarantine, shift, freeze, alarm and the search for a season
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
