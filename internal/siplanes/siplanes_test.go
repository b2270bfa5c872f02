package siplanes_test

import (
	"encoding/binary"
	"testing"

	"github.com/dchest/siphash"

	"github.com/usp-project/usp/internal/siplanes"
)

// Every way gives the hash of every beginning of eight messages that the library gives of each, and the digits of each element.
func TestWays(t *testing.T) {
	ways := siplanes.Ways()
	if len(ways) == 0 {
		t.Skip("NOT CHECKED: this processor has no way")
	}
	const k0, k1, words = 0x0706050403020100, 0x0f0e0d0c0b0a0908, 40
	message := func(i int) (w siplanes.Words) {
		for lane := range w {
			w[lane] = uint64(i+1) * 0x9e3779b97f4a7c15 * uint64(lane+1)
		}
		return w
	}
	for n, way := range ways {
		var s siplanes.State
		for lane := range siplanes.N {
			s.V0[lane], s.V1[lane], s.V2[lane], s.V3[lane] = k0^0x736f6d6570736575, k1^0x646f72616e646f6d, k0^0x6c7967656e657261, k1^0x7465646279746573
		}
		var raw [siplanes.N][]byte
		for i := range words {
			w := message(i)
			for lane := range w {
				raw[lane] = binary.LittleEndian.AppendUint64(raw[lane], w[lane])
			}
			if i%3 == 0 {
				way.Absorb(&s, &w)
				continue
			}
			var sums siplanes.Words
			way.Sum(&s, &w, uint64(8*(i+1))<<56, &sums)
			for lane := range sums {
				if want := siphash.Hash(k0, k1, raw[lane]); sums[lane] != want {
					t.Fatalf("way %d, message %d of %d words: %x, the library says %x", n, lane, i+1, sums[lane], want)
				}
			}
		}
		for elements := 1; elements <= 16; elements++ {
			var all [16]siplanes.Words
			var got siplanes.Words
			for i := range all {
				all[i] = message(i)
			}
			way.Digits(&got, &all[0], elements, 22)
			for lane := range got {
				var want uint64
				for i := range elements {
					want |= all[i][lane] >> 22 & 15 << (4 * i)
				}
				if got[lane] != want {
					t.Fatalf("way %d, %d elements: %x, not %x", n, elements, got[lane], want)
				}
			}
		}
	}
}
