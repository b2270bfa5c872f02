package score

import (
	"encoding/binary"
	"errors"
	"math"
	"slices"
)

// counts and numbers are everything that a board learned, apart from its alarms, in the order of the state.
func (b *Board) counts() []*uint64 { return []*uint64{&b.N, &b.AlarmsN, &b.Laws} }

func (b *Board) numbers() (list []*float64) {
	list = append(list, &b.Unit, &b.Uniform, &b.BOASq, &b.PolySq, &b.Turnover, &b.CRPS)
	boa, poly := b.BOA.State(), b.Poly.State()
	for _, s := range slices.Concat([][]float64{b.Abs, b.Rho}, boa[:], poly[:], b.Gram) {
		for i := range s {
			list = append(list, &s[i])
		}
	}
	return list
}

const alarmSize = 17 // bytes

// AppendBinary appends the state: three counts, the numbers, then the alarms; little-endian. It returns no error.
func (b *Board) AppendBinary(to []byte) ([]byte, error) {
	for _, n := range b.counts() {
		to = binary.LittleEndian.AppendUint64(to, *n)
	}
	for _, x := range b.numbers() {
		to = binary.LittleEndian.AppendUint64(to, math.Float64bits(*x))
	}
	for _, a := range b.Alarms {
		to = binary.LittleEndian.AppendUint64(to, a.Step)
		to = binary.LittleEndian.AppendUint64(to, uint64(a.Time))
		up := byte(0)
		if a.Up {
			up = 1
		}
		to = append(to, up)
	}
	return to, nil
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
	if uint64(len(at)) != uint64(8*len(numbers))+alarmSize*min(b.AlarmsN, MaxAlarms) {
		return errors.New("scores of experts: wrong size")
	}
	for _, x := range numbers {
		if *x = math.Float64frombits(next()); math.IsNaN(*x) || math.IsInf(*x, 0) {
			return errors.New("scores of experts: a number is not finite")
		}
	}
	b.Alarms = b.Alarms[:0]
	for len(at) > 0 {
		a := Alarm{Step: next(), Time: int64(next())}
		a.Up, at = at[0] == 1, at[1:]
		b.Alarms = append(b.Alarms, a)
	}
	return nil
}
