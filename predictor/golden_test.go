package predictor

import "testing"

// The chains were computed by this package on linux/amd64. They change with anything that changes a bit of any
// forecast: then stored runs no longer compare, so say so in the changelog and raise stateVersion.
var golden = []struct{ name, chain string }{
	{"sunspots", "abea217c7cdf6a3b0921cdcb2a7b97f79c2bfb6af093cbad19c676e8d98b5703"},
	{"nile", "f1097f45c37b97ccbdd364209403291f07b026540750b1282fea38161ae0d9b3"},
	{"co2", "618a5e1b956edee88b9ce23e5cc62908118b0ad75029f74cb5de156df3bc6e53"},
	{"disturbed", "c63001ee9b44c8badeeda9816ef5e90ee4e43430f1c858b9d10c804e62839ee4"}, // through quarantine, shift, freeze, alarm and the search for a season
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
