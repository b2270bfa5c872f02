package record

import (
	"bytes"
	"testing"

	"pgregory.net/rapid"

	"github.com/usp-project/usp/internal/siplanes"
)

// What a processor does for all grids at once is what is done grid by grid, to the byte, again and again with the same maker.
func TestLanes(t *testing.T) {
	ways := siplanes.Ways()
	if len(ways) == 0 {
		t.Skip("NOT CHECKED: this processor climbs grid by grid")
	}
	for i, way := range ways {
		rapid.Check(t, func(t *rapid.T) {
			levels := drawLevels(t)
			floor := rapid.SampledFrom([]int{DefaultFloor, MinFloor, -40, 0}).Draw(t, "floor")
			n := rapid.IntRange(1, 70).Draw(t, "n")
			key := NewAuditKey([]byte(rapid.String().Draw(t, "secret")))
			one, all := newLadderMaker(levels, floor, key, n), newLadderMaker(levels, floor, key, n)
			one.laned = nil
			all.useLanes(way)
			for range 3 {
				x := make([]float64, n)
				for i := range x {
					x[i] = anyFloat(t, "x")
				}
				before := rapid.SliceOfN(rapid.Byte(), 0, 9).Draw(t, "before")
				want, got := one.append(bytes.Clone(before), bitsOf(x)), all.append(bytes.Clone(before), bitsOf(x))
				if !bytes.Equal(want, got) {
					t.Fatalf("way %d of %d elements, levels %v: %x, one by one %x", i, n, levels, got, want)
				}
			}
		})
	}
}
