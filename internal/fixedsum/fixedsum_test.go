package fixedsum

import (
	"crypto/sha256"
	"fmt"
	"testing"

	"pgregory.net/rapid"
)

// Every length around the ends of blocks, and one that is beyond the fast way; with the state and without it.
func TestSum(t *testing.T) {
	for n := range 300 {
		check(t, New(n), n)
	}
	check(t, New(longest+1), longest+1)
	slow := New(65)
	slow.state = nil
	check(t, slow, 65)
}

func check(t *testing.T, h *Hasher, n int) {
	t.Helper()
	if len(h.Message()) != n {
		t.Fatalf("message of %d bytes, want %d", len(h.Message()), n)
	}
	for round := range 3 {
		for i := range h.Message() {
			h.Message()[i] = byte(i + 31*round)
		}
		if got, want := h.Sum(), sha256.Sum256(h.Message()); got != want {
			t.Fatalf("%d bytes: %x, want %x", n, got, want)
		}
	}
}

func TestSumIsSum256(t *testing.T) {
	h := New(99)
	rapid.Check(t, func(t *rapid.T) {
		m := rapid.SliceOfN(rapid.Byte(), 99, 99).Draw(t, "m")
		copy(h.Message(), m)
		if h.Sum() != sha256.Sum256(m) {
			t.Fatalf("not the sum of %x", m)
		}
	})
}

// The fast way is taken: this toolchain's state is as expected.
func TestFast(t *testing.T) {
	if New(65).state == nil {
		t.Error("crypto/sha256 has another state now: sums are right, but no longer fast; look at stateAt")
	}
	h := New(65)
	if n := testing.AllocsPerRun(100, func() { h.Sum() }); n != 0 && !raceEnabled {
		t.Errorf("%v allocations in a sum", n)
	}
}

func BenchmarkSum(b *testing.B) {
	for _, n := range []int{8, 65, 96, 99} {
		b.Run(fmt.Sprintf("n=%d/way=fixed", n), func(b *testing.B) {
			for h := New(n); b.Loop(); {
				h.Sum()
			}
		})
		b.Run(fmt.Sprintf("n=%d/way=sum256", n), func(b *testing.B) {
			for m := make([]byte, n); b.Loop(); {
				sha256.Sum256(m)
			}
		})
	}
}
