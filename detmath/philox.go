package detmath

import "math/bits"

// Philox4x32 returns the four words that Philox4x32-10 makes of a key and a counter (Salmon, Moraes, Dror, Shaw,
// "Parallel random numbers: as easy as 1, 2, 3", SC11). There is no other state: whoever keeps the counter can
// continue, skip or repeat, in any order and on any device.
func Philox4x32(key [2]uint32, counter [4]uint32) [4]uint32 {
	const (
		m0, m1 = 0xd2511f53, 0xcd9e8d57
		w0, w1 = 0x9e3779b9, 0xbb67ae85
	)
	for range 10 {
		hi0, lo0 := bits.Mul32(m0, counter[0])
		hi1, lo1 := bits.Mul32(m1, counter[2])
		counter = [4]uint32{hi1 ^ counter[1] ^ key[0], lo1, hi0 ^ counter[3] ^ key[1], lo0}
		key[0] += w0
		key[1] += w1
	}
	return counter
}

// Uniform is a stream of random numbers whose whole state is its exported fields. The zero value is ready to use;
// streams with different Seed or Stream are independent.
type Uniform struct {
	Seed    uint64 // key
	Stream  uint64 // upper half of the counter
	Counter uint64 // lower half of the counter; draws so far
}

// Float64 returns the next number, uniform on (0, 1): never 0 and never 1.
func (u *Uniform) Float64() float64 {
	x := u.Uint64()
	return float64((float64(x>>12) + 0.5) / (1 << 52))
}

// Uint64 returns the next 64 random bits.
func (u *Uniform) Uint64() uint64 {
	w := Philox4x32(
		[2]uint32{uint32(u.Seed), uint32(u.Seed >> 32)},
		[4]uint32{uint32(u.Counter), uint32(u.Counter >> 32), uint32(u.Stream), uint32(u.Stream >> 32)})
	u.Counter++
	return uint64(w[0]) | uint64(w[1])<<32
}

// Normal returns the next standard normal number, by inversion: one draw each.
func (u *Uniform) Normal() float64 { return NormalQuantile(u.Float64()) }
