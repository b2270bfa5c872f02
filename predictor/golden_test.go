package predictor

import "testing"

// The chains were computed by this package on linux/amd64. They change with anything that changes a bit of any
// forecast: then stored runs no longer compare, so say so in the changelog and raise stateVersion.
var golden = []struct{ name, chain string }{
	{"sunspots", "f27bf1c49035269cc9ce68f66528c64364530185a4c5fbcf497d3b300e234e6a"},
	{"nile", "460f042be44ce462097a68e340d71af58eb692a1a39049c0b846d1d06627badc"},
	{"co2", "d702e0b960e952274fc38be0a387aa68a99dffea9a08f6da18b453879e3f2041"},
	{"disturbed", "9430e008ab74355c801fe69cd36fec7e4e7ba4703a46f05b1ef904c3cb80bf12"}, // through quarantine, shift, freeze, alarm and the search for a season
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
