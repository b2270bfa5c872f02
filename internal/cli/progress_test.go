package cli

import (
	"strings"
	"testing"
	"time"

	"github.com/usp-project/usp/predictor"
)

// TestProgress wants a line when it is time, which names the series where there are several, and nothing from what is no
// terminal.
func TestProgress(t *testing.T) {
	for mode, want := range map[string]string{
		"plain": "a.csv: step 100 of 200 (50 %), 1 steps/s, cusum +1.50 -0.00 of 4.00 stale,emergency\n",
		"json":  `{"cusum_neg":0,"cusum_pos":1.5,"flags":["stale","emergency"],"rate":1,"rows":200,"series":"a.csv","step":100,"type":"status"}` + "\n",
		"auto":  "",
		"none":  "",
	} {
		var text strings.Builder
		at := time.Unix(0, 0)
		bar := newProgress(&text, mode, 200, func() time.Time { return at })
		bar.what = "a.csv"
		for _, step := range []uint64{1, 100, 101} { // the first begins the clock, the last comes too soon
			bar.step(&predictor.Output{Step: step, CusumPos: 1.5, Threshold: 4, Flags: predictor.FlagStale | predictor.FlagEmergency})
			at = time.Unix(100, 0)
		}
		bar.end()
		if text.String() != want {
			t.Errorf("%s: %q, want %q", mode, text.String(), want)
		}
	}
}
