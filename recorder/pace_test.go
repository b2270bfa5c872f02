package recorder

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// settle gives a pace a producer of so many records a second, and returns the wait that it comes to, and the most that
// the ring held meanwhile.
func settle(p *pace, perSecond float64, slots int) (wait time.Duration, most int) {
	left := 0.0
	for range 200 {
		left += perSecond * p.d.Seconds()
		n := min(int(left), slots)
		most = max(most, n)
		left -= float64(n)
		wait = p.next(n)
	}
	return wait, most
}

func TestPace(t *testing.T) {
	tests := []struct {
		name      string
		slots     int
		perSecond float64
		low, high time.Duration
	}{
		{"idle", 65536, 0, longestPause, longestPause},
		{"a step each 100 µs is not woken for", 65536, 1e4, longestPause, longestPause},
		{"a million a second", 65536, 1e6, time.Millisecond, 4 * time.Millisecond},
		{"ten million", 65536, 1e7, shortestPause, 800 * time.Microsecond},
		{"small ring, idle", 256, 0, time.Millisecond, time.Millisecond},
		{"small ring", 256, 1e5, shortestPause, 160 * time.Microsecond},
		{"one slot", 1, 10, 0, time.Millisecond},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got, most := settle(newPace(test.slots, 50*time.Millisecond), test.perSecond, test.slots); got < test.low || got > test.high {
				t.Errorf("waits %v, want %v to %v; the ring held %d", got, test.low, test.high, most)
			}
		})
	}
}

func TestBehind(t *testing.T) {
	for _, c := range []struct {
		slots int
		age   time.Duration
		want  int
	}{
		{65536, 0, 16384}, {65536, begins - 1, 16384}, {65536, begins, 2048}, {65536, time.Hour, 2048}, {1, 0, 1}, {16, 0, 4}, {1, begins, 1}, {64, begins, 2},
	} {
		if got := Behind(c.slots, c.age); got != c.want {
			t.Errorf("%d slots, at work for %v: %d, want %d", c.slots, c.age, got, c.want)
		}
	}
}

// TestPaceHoldsTheRing draws rates that a ring can hold, and lets them begin at any moment: no wait is so long that the
// ring runs over.
func TestPaceHoldsTheRing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		slots := 1 << rapid.IntRange(6, 20).Draw(t, "bits")
		rate := rapid.Float64Range(0, 0.9*float64(slots)/newPace(slots, 50*time.Millisecond).longest.Seconds()).Draw(t, "rate")
		p := newPace(slots, 50*time.Millisecond)
		settle(p, rapid.Float64Range(0, rate).Draw(t, "before"), slots)
		if _, most := settle(p, rate, slots); most >= slots {
			t.Fatalf("%d records in a ring of %d", most, slots)
		}
	})
}
