//go:build unix

package ring

import (
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestDurationBounds wants each duration counted where the bounds say, and the bounds close together.
func TestDurationBounds(t *testing.T) {
	for i := range durationCounts - 1 {
		if got := durationIndex(DurationBound(i)); got != i {
			t.Errorf("the longest of %d, %v, counts in %d", i, DurationBound(i), got)
		}
		if got := durationIndex(DurationBound(i) + 1); got != i+1 {
			t.Errorf("a nanosecond more than the longest of %d, %v, counts in %d", i, DurationBound(i), got)
		}
	}
	if DurationBound(durationCounts-2) != 1<<24-1 || DurationBound(durationCounts-1) != math.MaxInt64 {
		t.Errorf("the last bounds are %d and %d", DurationBound(durationCounts-2), DurationBound(durationCounts-1))
	}
	rapid.Check(t, func(t *rapid.T) {
		d := time.Duration(rapid.Int64().Draw(t, "nanoseconds"))
		i := durationIndex(d)
		if d > DurationBound(i) || i > 0 && max(d, 0) <= DurationBound(i-1) {
			t.Fatalf("%d ns counts in %d, up to %d ns", d, i, DurationBound(i))
		}
		if 4 <= i && i < durationCounts-1 && DurationBound(i) >= d+d/4 {
			t.Fatalf("%d ns is taken for %d ns", d, DurationBound(i))
		}
	})
}

// TestTook reads what a producer counts from the consumer's side.
func TestTook(t *testing.T) {
	p := mustCreate(t, Config{})
	c := mustOpen(t, p.Path())
	if d := c.Durations(); d != (Durations{}) || d.Quantile(.5) != 0 {
		t.Errorf("a producer that counts nothing has counted %+v", d)
	}
	for _, ns := range []time.Duration{-1, 50, 50, 50, 50, 50, 50, 50, 50, time.Second} {
		p.Took(ns)
	}
	emitN(p, 1) // the words of both do not touch
	d := c.Durations()
	if d.Counted() != 10 || d.Longest != time.Second || d.Sum != time.Second+400 || c.Produced() != 1 {
		t.Errorf("10 durations are %d, the longest %v, their sum %v; %d records", d.Counted(), d.Longest, d.Sum, c.Produced())
	}
	for p, want := range map[float64]time.Duration{-1: 0, 0: 0, .1: 55, .5: 55, .89: 55, .9: time.Second, 1: time.Second, 2: time.Second} {
		if got := d.Quantile(p); got != want {
			t.Errorf("quantile %v is %v, want %v", p, got, want)
		}
	}
	if err := p.Close(true); err != nil {
		t.Fatal(err)
	}
	p.Took(1) // of a closed producer does nothing
	if again := c.Durations(); again != d {
		t.Errorf("after the producer's end: %+v", again)
	}
}
