// Package tensorboard holds the event files of usp against TensorBoard's own readers. It has tests only. They need a Python with
// the packages in requirements.txt, named by TENSORBOARD_PYTHON or found as python3, and skip without.
package tensorboard

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/usp-project/usp/record"
	"github.com/usp-project/usp/sink"
	"github.com/usp-project/usp/sink/tensorboard"
)

const runID = "20261122T201833-9f3kq"

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// reader is a Python process with TensorBoard's readers in it.
type reader struct {
	in  io.Writer
	out *bufio.Reader
}

// series are the points of a tag: step, wall time, and a float32's bits or a text.
type series map[string][][3]any

func newReader(t *testing.T, logdir string) *reader {
	python := os.Getenv("TENSORBOARD_PYTHON")
	if python == "" {
		python = "python3"
	}
	if out, err := exec.Command(python, "-c", "import tensorboard, tensorboard_data_server, numpy").CombinedOutput(); err != nil {
		t.Skipf("NOT CHECKED against TensorBoard: %s -c 'import tensorboard': %v: %s\npython3 -m venv V && V/bin/pip install -r itest/tensorboard/requirements.txt, then set TENSORBOARD_PYTHON=V/bin/python",
			python, err, bytes.TrimSpace(out[max(0, len(out)-200):]))
	}
	cmd := exec.Command(python, "read.py", logdir, runID)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() {
		_ = in.Close() // it ends with its input
		if err := cmd.Wait(); err != nil {
			t.Errorf("read.py: %v", err)
		}
	})
	return &reader{in, bufio.NewReaderSize(out, 1<<20)}
}

// read has the named readers read all that is there.
func (r *reader) read(t *testing.T, names string) map[string]series {
	t.Helper()
	_, err := fmt.Fprintln(r.in, names)
	must(t, err)
	line, err := r.out.ReadBytes('\n')
	must(t, err)
	var found map[string]series
	must(t, json.Unmarshal(line, &found))
	return found
}

// story is a run: three generations with vectors, integers, flags, numbers that float32 cannot hold, and losses.
type story struct {
	schema  *record.Schema
	batches []*sink.Batch
	want    series   // the effective timeline as TensorBoard is to show it
	losses  [][3]any // on no timeline
}

func newStory(t *testing.T) *story {
	schema, err := record.NewSchema("itest.v1",
		record.Field{Name: "cusum", Class: record.Metric, Unit: "nats"},
		record.Field{Name: "weights", Class: record.Metric, Len: 3},
		record.Field{Name: "count", Class: record.Metric, Type: record.Int64},
		record.Field{Name: "alarm", Class: record.Flag, Type: record.Uint64})
	must(t, err)
	s := &story{schema: schema, want: series{}}
	s.records(0, 0, 1, 500)
	s.lose(0, 500, 510)
	s.records(0, 510, 511, 90) // to step 600
	s.records(1, 0, 401, 300)  // to step 700
	s.records(2, 0, 701, 50)   // goes on without a gap
	return s
}

// odd are numbers at the edges of float32.
var odd = []float64{0.1, math.NaN(), math.Inf(1), math.Inf(-1), 1e39, -1e39, 1e-60, math.Copysign(0, -1), math.MaxFloat32, 1 << 24, 1<<24 + 1}

// records adds n records, and to the want what they override and are.
func (s *story) records(gen uint32, seq, step uint64, n int) {
	if gen > 0 {
		for tag, list := range s.want {
			s.want[tag] = slices.DeleteFunc(list, func(p [3]any) bool { return p[0].(float64) >= float64(step) })
		}
		s.point("usp/lost", step, number(10))
	}
	b := &sink.Batch{First: s.next(), Generation: gen, Schema: s.schema}
	for i := range uint64(n) {
		x := odd[(int(step)+int(i))%len(odd)]
		count, alarm := int64(step+i)*100_000, (step+i)%5
		b.Seq = append(b.Seq, seq+i)
		b.Words = append(b.Words, step+i, uint64(at(step+i)), math.Float64bits(x))
		s.point("cusum", step+i, number(float32(x)))
		for j := range 3 {
			w := float64(j) + float64(gen)/4
			b.Words = append(b.Words, math.Float64bits(w))
			s.point(fmt.Sprintf("weights/%d", j), step+i, number(float32(w)))
		}
		b.Words = append(b.Words, uint64(count), alarm)
		s.point("count", step+i, number(float32(count)))
		s.point("alarm", step+i, number(float32(alarm)))
	}
	b.Next = b.First + uint64(n)
	s.batches = append(s.batches, b)
}

func (s *story) lose(gen uint32, from, to uint64) {
	first := s.next()
	text := fmt.Sprintf("generation %d, records %d to %d: overrun", gen, from, to-1)
	s.batches = append(s.batches, &sink.Batch{First: first, Next: first + 1, Generation: gen, Schema: s.schema, Losses: []sink.Loss{{From: from, To: to, Reason: record.LostOverrun}}})
	s.point("usp/lost", from, number(float32(to-from)))
	s.losses = append(s.losses, [3]any{float64(from), float64(at(from)) / 1e9, text})
	s.point("usp/losses", from, text)
}

func (s *story) next() uint64 {
	if len(s.batches) == 0 {
		return 0
	}
	return s.batches[len(s.batches)-1].Next
}

func (s *story) point(tag string, step uint64, v any) {
	s.want[tag] = append(s.want[tag], [3]any{float64(step), float64(at(step)) / 1e9, v})
}

// at is the time of a step, which float64 seconds can say.
func at(step uint64) int64 { return int64(step)*250_000_000 - 1e12 } // before 1970

func number(x float32) float64 { return float64(math.Float32bits(x)) }

func (s *story) slice(from, to uint64) (list []*sink.Batch) {
	for _, b := range s.batches {
		for i := uint64(0); i < b.Next-b.First; i++ {
			if at := b.First + i; at >= from && at < to {
				c := *b
				c.First, c.Next = at, at+1
				if len(b.Seq) > 0 {
					c.Seq, c.Words = b.Seq[i:i+1], b.Row(int(i))
				}
				list = append(list, &c)
			}
		}
	}
	return list
}

func (s *story) write(t *testing.T, k *tensorboard.Sink, from, to uint64) {
	t.Helper()
	for _, b := range s.slice(from, to) {
		must(t, k.Write(t.Context(), b))
	}
}

func (s *story) compare(t *testing.T, name string, got series) {
	t.Helper()
	for tag, want := range s.want {
		if tag == "usp/losses" {
			switch name {
			case "accumulator":
				continue // it reads scalars
			case "server":
				want = s.losses // it drops what comes again of a tag, and a loss does not
			}
		}
		have := got[tag]
		if len(have) != len(want) {
			t.Errorf("%s: %s has %d points, want %d", name, tag, len(have), len(want))
			continue
		}
		for i := range want {
			if !same(have[i], want[i]) {
				t.Errorf("%s: point %d of %s is %v, want %v", name, i, tag, have[i], want[i])
				break
			}
		}
	}
	for tag := range got {
		if _, ok := s.want[tag]; !ok {
			t.Errorf("%s: there is a tag %q", name, tag)
		}
	}
}

// same compares points; any NaN is as good as another.
func same(a, b [3]any) bool {
	nan := func(v any) bool {
		x, ok := v.(float64)
		return ok && math.IsNaN(float64(math.Float32frombits(uint32(x))))
	}
	if nan(a[2]) && nan(b[2]) {
		a[2], b[2] = nil, nil
	}
	return reflect.DeepEqual(a, b)
}

// TestReaders wants each of TensorBoard's readers to find the effective timeline, number for number, in the file of a sink that began
// again twice, once with records behind its cursor that it was told of a second time.
func TestReaders(t *testing.T) {
	s := newStory(t)
	dir := t.TempDir()
	r := newReader(t, dir)
	run := sink.Run{ID: runID, Schema: s.schema}
	k := tensorboard.New(tensorboard.Options{Dir: dir})
	_, err := k.Begin(t.Context(), run, sink.Cursor{})
	must(t, err)
	s.write(t, k, 0, 450)
	cursor, err := k.Sync(t.Context())
	must(t, err)
	s.write(t, k, 450, 700)
	_, err = k.Sync(t.Context()) // this cursor never came to be kept
	must(t, err)
	if early := r.read(t, "accumulator multiplexer")["accumulator"]; len(early["count"]) < 500 {
		t.Fatalf("of the first 700 frames %d points are shown", len(early["count"]))
	}
	must(t, k.Close())

	k = tensorboard.New(tensorboard.Options{Dir: dir})
	from, err := k.Begin(t.Context(), run, cursor)
	must(t, err)
	if from.Next != 450 {
		t.Fatalf("begins again at %d, want 450", from.Next)
	}
	s.write(t, k, from.Next, s.next())
	_, err = k.Sync(t.Context())
	must(t, err)
	must(t, k.Close())
	for name, got := range r.read(t, "accumulator multiplexer server") {
		s.compare(t, name, got)
	}
}

// TestExport wants the same of an export, which has the superseded steps or not.
func TestExport(t *testing.T) {
	s := newStory(t)
	dir := t.TempDir()
	r := newReader(t, dir)
	x, err := tensorboard.Export(t.Context(), tensorboard.Options{Dir: dir}, sink.Run{ID: runID, Schema: s.schema}, func(yield func(*sink.Batch, error) bool) {
		for _, b := range s.batches {
			if !yield(b, nil) {
				return
			}
		}
	})
	must(t, err)
	if filepath.Base(x.File) != tensorboard.FileName(runID) || !strings.Contains(x.File, "tfevents") {
		t.Errorf("exported: %+v", x)
	}
	for name, got := range r.read(t, "accumulator multiplexer server") {
		s.compare(t, name, got)
	}
}
