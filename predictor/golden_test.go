package predictor

import "testing"

// The chains were computed by this package on linux/amd64. They change with anything that changes a bit of any
// forecast: then stored runs no longer compare, so say so in the changelog and raise stateVersion.
var golden = []struct{ name, chain string }{
	{"sunspots", "3b720b417678dbdd98d5327795fd0a942f195e43fbb0a75a1ce1cb53dad3e119"},
	{"nile", "e506a7cf7cbc100175279807a00b3e11f9f161258b96e8f50df40a84adbf1ec6"},
	{"co2", "9d105189e4d7d11cbaedb910771247f03fd0644b8abd4d45a2058f8c1bec5407"},
	{"disturbed", "57e1fcc07f97a08f740250ef7eeb628c8f64b095195ab97dbb43b7c6b158e4e4"}, // through quarantine, shift, freeze, alarm and the search for a season
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
