package score

import (
	"encoding/binary"
	"errors"
	"math"
	"slices"
)

// counts and numbers are everything that a board learned, apart from its events, in the order of the state.
func (b *Board) counts() []*uint64 {
	list := []*uint64{&b.N, &b.Laws, &b.Flags}
	for i := range b.Happened {
		list = append(list, &b.Happened[i])
	}
	return list
}

func (b *Board) numbers() (list []*float64) {
	list = append(list, &b.Unit, &b.Uniform, &b.BOASq, &b.PolySq, &b.Turnover, &b.CRPS)
	boa, poly := b.BOA.State(), b.Poly.State()
	for _, s := range slices.Concat([][]float64{b.Abs, b.Rho, b.Gram}, boa[:], poly[:]) {
		for i := range s {
			list = append(list, &s[i])
		}
	}
	return list
}

// AppendBinary appends the state: the counts, the numbers, then the events; little-endian. It returns no error.
func (b *Board) AppendBinary(to []byte) ([]byte, error) {
	for _, n := range b.counts() {
		to = binary.LittleEndian.AppendUint64(to, *n)
	}
	for _, x := range b.numbers() {
		to = binary.LittleEndian.AppendUint64(to, math.Float64bits(*x))
	}
	return b.appendEvents(to), nil
}

// UnmarshalBinary restores what AppendBinary wrote for a board of as many experts.
func (b *Board) UnmarshalBinary(from []byte) error {
	counts, numbers := b.counts(), b.numbers()
	size := 8 * (len(counts) + len(numbers))
	if len(from) < size {
		return errors.New("scores of experts: wrong size")
	}
	at := from
	next := func() uint64 {
		u := binary.LittleEndian.Uint64(at)
		at = at[8:]
		return u
	}
	for _, n := range counts {
		*n = next()
	}
	if uint64(len(at)) != uint64(8*len(numbers))+eventSize*b.kept() {
		return errors.New("scores of experts: wrong size")
	}
	for _, x := range numbers {
		if *x = math.Float64frombits(next()); math.IsNaN(*x) || math.IsInf(*x, 0) {
			return errors.New("scores of experts: a number is not finite")
		}
	}
	return b.restoreEvents(at)
}
