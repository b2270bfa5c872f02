package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/usp-project/usp"
	"github.com/usp-project/usp/internal/config"
	"github.com/usp-project/usp/internal/input"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/recorder"
)

// A quantile lies within one bucket, about 3 %, of the exact one, and never beyond the largest value.
func TestLatencies(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ds := rapid.SliceOfN(rapid.Int64Range(0, int64(10*time.Second)), 1, 200).Draw(t, "ds")
		p := rapid.SampledFrom([]float64{0, .5, .9, .99, .999, 1}).Draw(t, "p")
		var l latencies
		for _, d := range ds {
			l.add(time.Duration(d))
		}
		slices.Sort(ds)
		exact := ds[min(int(p*float64(len(ds))), len(ds)-1)]
		got := int64(l.quantile(p))
		if got < exact || float64(got) > float64(exact)*(1+1.0/subBuckets)+1 || got > ds[len(ds)-1] {
			t.Fatalf("quantile %v is %d, exact %d of %v", p, got, exact, ds)
		}
	})
	var none latencies
	if none.quantile(.5) != 0 {
		t.Error("the median of nothing is not 0")
	}
}

// Whatever their number, samples keep the least and the greatest value, in order and within their limit.
func TestSamples(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 5*maxSamples).Draw(t, "n")
		at := rapid.IntRange(0, n-1).Draw(t, "spike")
		var s samples
		for i := range n {
			x := float64(i)
			if i == at {
				x = -1e6
			}
			s.add(x)
		}
		series := s.series()
		if len(s.pairs) > maxSamples || slices.Min(series) != -1e6 || at != n-1 && slices.Max(series) != float64(n-1) {
			t.Fatalf("%d pairs, least %v, greatest %v", len(s.pairs), slices.Min(series), slices.Max(series))
		}
		if s.stretch == 1 && len(series) != n {
			t.Fatalf("%d values of %d, though all fit", len(series), n)
		}
	})
}

func TestScores(t *testing.T) {
	var s scores
	s.add(10, 0, 0, 0, false)
	s.add(12, 11, 10, 13, true) // error 1, naive 2, covered
	s.add(9, 12, 10, 13, true)  // error −3, naive −3, not covered
	if got := s.rmse(); math.Abs(got-math.Sqrt(5)) > 1e-15 {
		t.Errorf("rmse %v", got)
	}
	if got := s.rmseNaive(); math.Abs(got-math.Sqrt(6.5)) > 1e-15 {
		t.Errorf("naive %v", got)
	}
	if s.mae() != 2 || s.mase() != 4.0/5 || s.coverage() != .5 {
		t.Errorf("mae %v mase %v coverage %v", s.mae(), s.mase(), s.coverage())
	}
	var back scores
	if err := back.restore(s.state()); err != nil || back != s {
		t.Errorf("restored %+v, %v, want %+v", back, err, s)
	}
	if back.restore([]byte("short")) == nil {
		t.Error("a short section was accepted")
	}
	s.add(math.MaxFloat64, -math.MaxFloat64, 0, 0, true)
	for _, x := range []float64{s.rmse(), s.mae()} {
		if math.IsInf(x, 0) || math.IsNaN(x) {
			t.Errorf("%v cannot be printed as JSON", x)
		}
	}
	for x, want := range map[undefined]string{1.5: "1.5", undefined(math.Inf(1)): "null"} {
		if b, err := x.MarshalJSON(); err != nil || string(b) != want {
			t.Errorf("%v as JSON is %s, %v, want %s", float64(x), b, err, want)
		}
	}
}

func TestExitCodes(t *testing.T) {
	for _, c := range []struct {
		err  error
		want int
	}{
		{nil, 0},
		{errors.New("x"), 1},
		{fs.ErrPermission, 1},
		{usageError(errors.New("x")), 2},
		{config.Errors{{What: "x"}}, 2},
		{fmt.Errorf("a: %w", &input.DataError{What: "x"}), 2},
		{fmt.Errorf("%w: more", usp.ErrIncomplete), 3},
		{&rundir.NotFoundError{}, 10},
		{fmt.Errorf("a: %w", vfs.ErrLocked), 11},
		{fmt.Errorf("a: %w", recorder.ErrRunning), 11},
		{&usp.RecorderError{ExitCode: 11}, 11},
		{&usp.RecorderError{ExitCode: 1}, 1},
		{&usp.RecorderError{ExitCode: -1}, 1},
		{withCode(21, nil), 21},
		{signalError{syscall.SIGINT}, 130},
		{signalError{syscall.SIGTERM}, 143},
	} {
		if got := exitCode(c.err); got != c.want {
			t.Errorf("exit code of %v is %d, want %d", c.err, got, c.want)
		}
	}
}

// What went wrong is one line; as JSON it is one object on standard error; nothing is said twice.
func TestExitMessages(t *testing.T) {
	for _, c := range []struct {
		json bool
		err  error
		want string
	}{
		{false, errors.New("no luck"), "usp: no luck\n"},
		{false, errors.New("the server says \x1b]0;gone\x07 \u009b2J\r, and\n\tmore: é"), "usp: the server says  ]0;gone   2J , and\n\tmore: é\n"},
		{false, usp.ErrNoRecorder, "usp: no recorder: call usp.ServeRecorder at the start of main, put usp in PATH, or set USP_BIN\n"},
		{false, withCode(20, nil), ""},
		{true, withCode(11, errors.New("locked")), `{"code":11,"message":"locked","type":"exit_error"}` + "\n"},
	} {
		var errw bytes.Buffer
		a := &app{err: &errw, json: c.json}
		a.exit(context.Background(), c.err)
		if errw.String() != c.want {
			t.Errorf("%v: %q, want %q", c.err, errw.String(), c.want)
		}
	}
}

// Every command has help that begins with a sentence, and every flag says what it does.
func TestHelp(t *testing.T) {
	a := &app{out: io.Discard, err: io.Discard}
	for _, cmd := range a.root().Commands() {
		if cmd.Short == "" || strings.HasSuffix(cmd.Short, ".") {
			t.Errorf("%s: short help %q", cmd.Name(), cmd.Short)
		}
	}
}
