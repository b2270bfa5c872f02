package fleet

import (
	"fmt"
	"testing"

	"github.com/usp-project/usp/record"
)

// listener takes messages as Refresh does, of a run whose records are step, time and one number.
type listener struct {
	t testing.TB
	*Records
	sequence uint64
}

func listen(t testing.TB, most int) *listener {
	f := newFleet(t)
	f.o.Records = most
	l := &listener{t: t, Records: &Records{fleet: f, id: "r", begun: true}}
	l.describe(0)
	return l
}

func (l *listener) message(kind string, generation uint32, payload []byte) {
	l.t.Helper()
	l.sequence++
	x := sent(l.t, l.sequence, "usp.telemetry.r", kind, map[string]string{"Generation": fmt.Sprint(generation), "Next": "99"}, payload)
	if kind == "schema" {
		x = sent(l.t, l.sequence, "usp.telemetry.r", kind, map[string]string{"Generation": fmt.Sprint(generation)}, payload)
	}
	if x.err != nil {
		l.t.Fatal(x.err)
	}
	if err := l.take(l.t.Context(), nil, x.m); err != nil {
		l.t.Fatal(err)
	}
}

func (l *listener) describe(generation uint32) {
	l.t.Helper()
	s, err := record.NewSchema("x", record.Field{Name: "a", Class: record.Metric, Type: record.Uint64, Len: 1})
	if err != nil {
		l.t.Fatal(err)
	}
	l.message("schema", generation, s.Text())
}

// records sends steps; a negative number is that many lost ones.
func (l *listener) records(generation uint32, steps ...int) {
	l.t.Helper()
	var frames [][]byte
	for i, s := range steps {
		if s < 0 {
			frames = append(frames, record.AppendLost(nil, generation, uint64(i), uint64(i-s), record.LostOverrun))
			continue
		}
		frames = append(frames, record.AppendRecord(nil, generation, uint64(i), []uint64{uint64(s), 0, uint64(generation)*1000 + uint64(s)}))
	}
	l.message("frames", generation, framed(frames...))
}

// want wants the steps, with lost ones as negative numbers.
func (l *listener) want(what string, steps ...int) {
	l.t.Helper()
	var got []int
	n := 0
	l.Each(func(p Part) {
		losses := p.Losses
		for i := 0; i <= len(p.Words)/p.Width; i++ {
			for len(losses) > 0 && losses[0].Before == i {
				got, losses = append(got, -int(losses[0].N)), losses[1:]
			}
			if i < len(p.Words)/p.Width {
				got = append(got, int(p.Words[i*p.Width]))
				n++
			}
		}
	})
	if fmt.Sprint(got) != fmt.Sprint(steps) {
		l.t.Errorf("%s: steps %v, want %v", what, got, steps)
	}
	if e := l.Extent(); e.Records != n || l.words != 3*n {
		l.t.Errorf("%s: %d records and %d words are counted, there are %d", what, e.Records, l.words, n)
	}
}

func TestRecords(t *testing.T) {
	l := listen(t, 100)
	l.records(0, 1, 2, 3, -2, 6)
	l.records(0, 7)
	l.want("one generation", 1, 2, 3, -2, 6, 7)
	l.records(0, 5, 7, 8)
	l.want("steps that do not grow", 1, 2, 3, -2, 6, 7, 8)

	l.describe(1)
	l.records(1, 4, 5)
	l.want("a resume", 1, 2, 3, -2, 4, 5)
	l.records(1, -1)
	l.records(1, 7)
	l.want("and on", 1, 2, 3, -2, 4, 5, -1, 7)
	l.describe(2)
	l.records(2, -3)
	l.records(2, 1)
	l.want("from the beginning", -3, 1)
	if l.fault != "" {
		t.Errorf("a fault: %s", l.fault)
	}

	// What cannot be: none of it is taken, and why is said.
	l.message("frames", 2, framed(record.AppendRecord(nil, 1, 0, []uint64{9, 0, 0})))
	if l.fault == "" {
		t.Error("frames of another generation were taken")
	}
	l.records(2, 2)
	if l.fault != "" {
		t.Errorf("the fault stays: %s", l.fault)
	}
	l.message("frames", 2, framed(record.AppendRecord(nil, 2, 0, []uint64{9, 0})))
	if l.fault == "" {
		t.Error("records of another length were taken")
	}
	l.message("schema", 2, []byte("hello"))
	if l.fault == "" {
		t.Error("a schema that is none was taken")
	}
	l.records(2, 3)
	l.want("without a schema", -3, 1, 2)
}

// TestWideRecords has records of very many numbers be kept as far as memory goes, and not in a list.
func TestWideRecords(t *testing.T) {
	const elements = record.MaxElements
	s, err := record.NewSchema("x", record.Field{Name: "a", Class: record.Metric, Type: record.Uint64, Len: elements})
	if err != nil {
		t.Fatal(err)
	}
	l := listen(t, MostRecords)
	l.message("schema", 1, s.Text())
	frame := func(step uint64) []byte {
		words := make([]uint64, elements+2)
		words[0] = step
		return framed(record.AppendRecord(nil, 1, step, words))
	}
	for step := range uint64(100) {
		l.message("frames", 1, frame(step+1))
	}
	if e := l.Extent(); l.words > mostAll+elements+2 || e.Last != 100 || e.Records < 10 || l.fault != "" {
		t.Errorf("%d words are kept: %+v", l.words, e)
	}
	f := newFleet(t)
	f.take("r", sent(t, 1, "usp.telemetry.r", "frames", map[string]string{"Next": "1"}, frame(1)))
	if row := f.runs["r"].row; len(row) > mostWords {
		t.Errorf("a record of %d words is kept of each run", len(row))
	}
}

// TestRecordsBounded has memory be that of the newest records, whatever comes.
func TestRecordsBounded(t *testing.T) {
	l := listen(t, 10)
	for i := range 100 {
		l.records(0, 3*i+1, 3*i+2, 3*i+3)
	}
	l.want("many", 289, 290, 291, 292, 293, 294, 295, 296, 297, 298, 299, 300)
	// A run that is resumed at its beginning again and again.
	for g := range 1000 {
		l.describe(uint32(g + 1))
		l.records(uint32(g+1), 1, 2)
	}
	if len(l.chunks) != 1 {
		t.Errorf("%d chunks", len(l.chunks))
	}
	l.want("resumed", 1, 2)
	// Losses alone.
	for range 3 * mostLosses / 100 {
		var list []int
		for range 100 {
			list = append(list, -1)
		}
		l.records(1000, list...)
	}
	if l.losses > mostLosses+100 {
		t.Errorf("%d losses are kept", l.losses)
	}
}
