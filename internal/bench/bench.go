// Package bench measures what storage costs, beside the plain file operations that nobody can do without: recording
// beside writing and syncing the same bytes, a snapshot beside a copy, a write and a read of the same state.
//
// Subject and baseline take turns in one process on one directory, so that what else the machine does hits both alike;
// figures are medians over the rounds, and what is meant to be compared between machines are the ratios. It promises that
// all it makes lies in directories of its own and is removed again, also after an error.
package bench

import (
	"slices"
	"time"
)

// Median returns the middle one of times, the upper of two.
func Median(times []time.Duration) time.Duration {
	sorted := slices.Sorted(slices.Values(times))
	return sorted[len(sorted)/2]
}

// rate is how many of n fit into a second if they all take d.
func rate(n uint64, d time.Duration) float64 { return float64(n) / d.Seconds() }
