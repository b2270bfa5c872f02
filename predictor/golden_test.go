package predictor

import "testing"

// The chains were computed by this package on linux/amd64. They change with anything that changes a bit of any
// forecast: then stored runs no longer compare, so say so in the changelog and raise stateVersion.
var golden = []struct{ name, chain string }{
	{"sunspots", "53d82eb1a86a4299a9f788ac0f3b09af80e15eb5dc05ab96c39094d3a32fb80d"},
	{"nile", "bd3808b087a5c99adf8a1db6ff57eb2ad429ef7f97f4337c4d021ea173461300"},
	{"co2", "9ea10e964de5354dff2f09d222af9f283ee641c5b5a9c11c19c81a32a18baef8"},
	{"disturbed", "3a42d47c767bc70282e541a8fc8291cd787a88aaf1bdb40578d6f6f3a94549d7"}, // through quarantine, shift, freeze, alarm and the search for a season
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
