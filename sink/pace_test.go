package sink_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/usp-project/usp/sink"
)

// TestTries has tries come later and later, soon again after all was well, and patience begin anew with what the destination takes.
func TestTries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		recorded := true
		p := sink.Pace{RetryLongest: 3 * time.Second, Patience: 10 * time.Second, Follow: func() bool { return recorded }}.WithDefaults(time.Minute, time.Second)
		var tries sink.Tries
		away := errors.New("away")
		failed := func(want time.Duration) {
			t.Helper()
			began := time.Now()
			if err := tries.Failed(t.Context(), &p, away); err != nil || time.Since(began) != want {
				t.Errorf("waited %v, %v; want %v", time.Since(began), err, want)
			}
		}
		for range 2 {
			for _, want := range []time.Duration{time.Second, 2 * time.Second, 3 * time.Second, 3 * time.Second} {
				failed(want)
			}
			began := time.Now()
			if tries.Well(t.Context(), &p); time.Since(began) != time.Minute {
				t.Errorf("looks for more after %v", time.Since(began))
			}
		}
		recorded = false
		for range 3 { // 6 s each time, of 10
			failed(time.Second)
			failed(2 * time.Second)
			failed(3 * time.Second)
			tries.Progress()
			tries.Well(t.Context(), &p)
		}
		for _, want := range []time.Duration{time.Second, 2 * time.Second, 3 * time.Second, 3 * time.Second, 3 * time.Second} {
			failed(want)
		}
		if err := tries.Failed(t.Context(), &p, away); !errors.Is(err, sink.ErrPatience) || !errors.Is(err, away) {
			t.Errorf("after 12 s: %v", err)
		}
	})
}
