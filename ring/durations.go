package ring

import (
	"math/bits"
	"time"
)

// Durations is how long handing over records took the loop, counted by length. Its producer counts a part of them only;
// see [Producer.Took].
type Durations struct {
	// Counts has four lengths to each doubling: below 4 ns each for itself, and the last is all from 2^24 ns (17 ms).
	// [DurationBound] tells what they stand for.
	Counts  [durationCounts]uint64
	Longest time.Duration // of those counted
	Sum     time.Duration // of those counted
}

const (
	durationBits   = 2                                                 // binary digits of a duration, behind the first, that count
	durationOctave = 1 << durationBits                                 // counts to a doubling
	durationLimit  = 24                                                // 2^24 ns and more are one
	durationCounts = durationOctave*(durationLimit-durationBits+1) + 1 // 93
)

func durationIndex(d time.Duration) int {
	v := uint64(max(d, 0))
	if v >= 1<<durationLimit {
		return durationCounts - 1
	}
	if v < durationOctave {
		return int(v)
	}
	shift := bits.Len64(v) - durationBits - 1
	return shift*durationOctave + int(v>>shift)
}

// DurationBound is the longest duration that Counts[i] stands for; of the last one there is none, and it is the longest
// of all durations.
func DurationBound(i int) time.Duration {
	switch {
	case i >= durationCounts-1:
		return 1<<63 - 1
	case i < durationOctave:
		return time.Duration(max(i, 0))
	}
	shift := i/durationOctave - 1
	return time.Duration((i%durationOctave+durationOctave+1)<<shift - 1)
}

// Counted is how many durations were counted.
func (d *Durations) Counted() (n uint64) {
	for _, c := range d.Counts {
		n += c
	}
	return n
}

// Quantile is a duration that a share p of those counted did not exceed, at most a quarter too long; 0 if none were counted.
func (d *Durations) Quantile(p float64) time.Duration {
	n := d.Counted()
	if n == 0 {
		return 0
	}
	rank, seen := min(uint64(max(p, 0)*float64(n)), n-1), uint64(0)
	for i, c := range d.Counts {
		if seen += c; seen > rank {
			return min(DurationBound(i), d.Longest)
		}
	}
	return d.Longest
}
