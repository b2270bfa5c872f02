package cli

import (
	"math/bits"
	"time"
)

// latencies is a histogram of durations with 32 buckets to the octave: percentiles are exact to about 2 %, the
// largest value exactly. Adding to it allocates nothing.
type latencies struct {
	counts [64 * subBuckets]uint64
	n      uint64
	max    time.Duration
}

const (
	subBits    = 5
	subBuckets = 1 << subBits
)

func bucket(d time.Duration) int {
	v := uint64(max(d, 0))
	if v < subBuckets {
		return int(v)
	}
	shift := bits.Len64(v) - subBits - 1
	return (shift+1)*subBuckets + int(v>>shift) - subBuckets
}

// bound is the largest duration in a bucket.
func bound(i int) time.Duration {
	if i < subBuckets {
		return time.Duration(i)
	}
	shift := i/subBuckets - 1
	return time.Duration((uint64(i%subBuckets)+subBuckets+1)<<shift - 1)
}

func (l *latencies) add(d time.Duration) {
	l.counts[bucket(d)]++
	l.n++
	l.max = max(l.max, d)
}

// quantile returns the duration that a share p of all did not exceed; 0 if there were none.
func (l *latencies) quantile(p float64) time.Duration {
	if l.n == 0 {
		return 0
	}
	rank := uint64(p * float64(l.n))
	seen := uint64(0)
	for i, c := range l.counts {
		if seen += c; c > 0 && seen > min(rank, l.n-1) {
			return min(bound(i), l.max)
		}
	}
	return l.max
}
