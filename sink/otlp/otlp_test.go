package otlp_test

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/usp-project/usp/record"
	"github.com/usp-project/usp/sink"
	"github.com/usp-project/usp/sink/otlp"
	"github.com/usp-project/usp/sink/sinktest"
)

func open(t testing.TB, o otlp.Options) *otlp.Sink {
	t.Helper()
	s, err := otlp.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func bring(t *testing.T, r *sinktest.Recording, s sink.Sink) {
	t.Helper()
	if err := sink.Bring(t.Context(), sink.Options{Dir: r.Dir, Name: "otlp"}, s); err != nil {
		t.Fatal(err)
	}
}

func TestConformance(t *testing.T) {
	sinktest.Test(t, func(t *testing.T) sinktest.Destination {
		d := newStore(t)
		d.only = []string{"usp.step", "usp.sequence", "usp.records.lost"} // TestSamePoints looks at all
		d.keep = strings.HasSuffix(t.Name(), "/Secretive")
		var broken atomic.Int32
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch sinktest.Fault(broken.Load()) {
			case sinktest.Away:
				w.WriteHeader(http.StatusServiceUnavailable)
			case sinktest.Silent:
				_, _ = io.Copy(io.Discard, r.Body) // so that it is noticed when the sender leaves
				<-r.Context().Done()
			default:
				d.ServeHTTP(w, r)
			}
		}))
		t.Cleanup(server.Close)
		url := server.URL
		return sinktest.Destination{
			Fault: func(_ *testing.T, how sinktest.Fault) { broken.Store(int32(how)) },
			Held:  func(t *testing.T) [][]byte { return d.bodies },
			Open: func() sink.Sink {
				return open(t, otlp.Options{Endpoint: url, Interval: time.Millisecond, Elements: 1, Plain: true})
			},
			Rows: func(t *testing.T) (rows []sinktest.Row) {
				steps, seqs := d.of("usp.step"), d.of("usp.sequence")
				for i, p := range steps {
					generation, err := strconv.Atoi(p.attribute("generation"))
					if err != nil || seqs[i].time != p.time {
						t.Fatalf("%+v, %+v: %v", p, seqs[i], err)
					}
					rows = append(rows, sinktest.Row{Generation: uint32(generation), Seq: uint64(seqs[i].value), Step: uint64(p.value)})
				}
				return rows
			},
			Lost: func(*testing.T) uint64 { return uint64(d.total("usp.records.lost")) },
		}
	})
}

// run makes batches by hand.
type run struct {
	schema *record.Schema
	frames []frame
}

type frame struct {
	generation uint32
	time       int64
	lost       uint64
	end        bool // of the segment, behind it
}

func ms(n int64) int64 { return 1_700_000_000_000_000_000 + n*1e6 }

// batch is the frames from on, at most n, of one segment.
func (r *run) batch(from uint64, n int) *sink.Batch {
	b := &sink.Batch{First: from, Next: from, Generation: r.frames[from].generation, Schema: r.schema}
	for b.Next < uint64(len(r.frames)) && int(b.Next-from) < n && !b.End {
		f := r.frames[b.Next]
		if f.lost > 0 {
			b.Losses = append(b.Losses, sink.Loss{From: 1, To: 1 + f.lost, Reason: record.LostTorn, Before: len(b.Seq)})
		} else {
			row := sinktest.Payload(r.schema, b.Next+1)[:r.schema.StoredWords()]
			row[1] = uint64(f.time)
			b.Seq, b.Words = append(b.Seq, b.Next), append(b.Words, row...)
		}
		b.Next++
		b.End = f.end
	}
	return b
}

// begin opens a sink for it.
func (r *run) begin(t testing.TB, o otlp.Options, at sink.Cursor) (*otlp.Sink, uint64) {
	t.Helper()
	s := open(t, o)
	from, err := s.Begin(t.Context(), sink.Run{ID: "r1", Schema: r.schema}, at)
	if err != nil {
		t.Fatal(err)
	}
	return s, from.Next
}

func write(t testing.TB, s sink.Sink, b *sink.Batch) {
	t.Helper()
	if err := s.Write(t.Context(), b); err != nil {
		t.Fatal(err)
	}
}

func synced(t testing.TB, s sink.Sink) sink.Cursor {
	t.Helper()
	at, err := s.Sync(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// all brings the run in one go to a new store.
func (r *run) all(t testing.TB, o otlp.Options) *store {
	t.Helper()
	d := newStore(t)
	o.Transport, o.Endpoint = d, "http://store"
	s, next := r.begin(t, o, sink.Cursor{})
	for next < uint64(len(r.frames)) {
		b := r.batch(next, len(r.frames))
		write(t, s, b)
		next = b.Next
	}
	if at := synced(t, s); r.frames[len(r.frames)-1].end && at.Next != next {
		t.Errorf("synced to %d, want %d", at.Next, next)
	}
	return d
}

// TestInterval sends the newest record of each interval, and the counters of all.
func TestInterval(t *testing.T) {
	r := &run{schema: sinktest.Schema()}
	for n := int64(0); n < 25_000; n += 100 {
		r.frames = append(r.frames, frame{time: ms(n)})
		if n == 12_000 {
			r.frames = append(r.frames, frame{lost: 4})
		}
	}
	r.frames[len(r.frames)-1].end = true
	d := r.all(t, otlp.Options{})
	var got []string
	for _, p := range d.of("usp.records.stored") {
		got = append(got, fmt.Sprintf("%d %v %v %v %d %s", (int64(p.time)-ms(0))/1e6, p.value, p.sum, p.integer, (int64(p.start)-ms(0))/1e6, p.attributes))
	}
	want := []string{
		"9900 100 true true 0 run=r1,generation=0",
		"19900 200 true true 0 run=r1,generation=0",
		"24900 250 true true 0 run=r1,generation=0",
	}
	if !slices.Equal(got, want) {
		t.Errorf("the points of stored are %q, want %q", got, want)
	}
	if n := len(d.of("usp.field.loss")); n != 3 {
		t.Errorf("%d points of a field, want 3", n)
	}
	for i, want := range []float64{0, 4, 4} {
		p := d.of("usp.records.lost")[i*4+1]
		if p.attribute("reason") != "torn" || p.value != want {
			t.Errorf("at the end of interval %d the loss is %+v, want %v", i, p, want)
		}
	}
}

// TestSamePoints leaves the sink anywhere, with cursors of any age and batches of any size: the points are those of one
// process, and each the same whenever it is sent.
func TestSamePoints(t *testing.T) {
	schema := sinktest.Schema()
	rapid.Check(t, func(rt *rapid.T) {
		r := &run{schema: schema}
		generation := uint32(0)
		at := ms(0)
		for range rapid.IntRange(1, 40).Draw(rt, "frames") {
			f := frame{generation: generation}
			at += rapid.SampledFrom([]int64{0, 1e6, 3e6, 1e7, -2e6}).Draw(rt, "step")
			f.time = at
			f.lost = rapid.SampledFrom([]uint64{0, 0, 0, 2}).Draw(rt, "lost")
			if f.end = rapid.IntRange(0, 5).Draw(rt, "end") == 0; f.end && rapid.Bool().Draw(rt, "rewind") {
				generation, at = generation+1, ms(0)
			}
			r.frames = append(r.frames, f)
		}
		r.frames[len(r.frames)-1].end = true
		o := otlp.Options{Interval: 4 * time.Millisecond}
		want := r.all(t, o).keys()

		d := newStore(t)
		o.Transport, o.Endpoint = d, "http://store"
		cursors := []sink.Cursor{{}}
		for tries := 0; ; tries++ {
			from := cursors[max(0, len(cursors)-rapid.IntRange(1, 3).Draw(rt, "age"))]
			if tries > 10 {
				from = cursors[len(cursors)-1]
			}
			s, next := r.begin(t, o, from)
			patience := rapid.IntRange(1, 10).Draw(rt, "batches")
			for ; next < uint64(len(r.frames)) && (patience > 0 || tries > 10); patience-- {
				b := r.batch(next, rapid.IntRange(1, 12).Draw(rt, "size"))
				write(t, s, b)
				clear(b.Words) // it is valid until Write returns
				next = b.Next
				if rapid.Bool().Draw(rt, "sync") {
					cursors = append(cursors, synced(t, s))
				}
			}
			if next == uint64(len(r.frames)) {
				if at := synced(t, s); at.Next != next {
					rt.Errorf("synced to %d, want %d", at.Next, next)
				}
				break
			}
		}
		if got := d.keys(); !slices.Equal(got, want) {
			rt.Errorf("%d points, want %d:\n%v\n%v", len(got), len(want), got, want)
		}
	})
}

// TestSets counts the bits of flags between the points too.
func TestSets(t *testing.T) {
	r := &run{schema: sinktest.Schema()}
	for n := range int64(100) {
		r.frames = append(r.frames, frame{time: ms(n), end: n == 99})
	}
	d := r.all(t, otlp.Options{Interval: 50 * time.Millisecond})
	flags, _ := r.schema.Index("flags")
	for upTo := int64(50); upTo <= 100; upTo += 50 {
		for bit := range 16 {
			want := 0.0
			for n := range uint64(upTo) {
				want += float64(sinktest.Payload(r.schema, n+1)[r.schema.Offset(flags)] >> bit & 1)
			}
			i := slices.IndexFunc(d.of("usp.field.flags.set"), func(p point) bool {
				return p.attribute("bit") == strconv.Itoa(bit) && p.time == uint64(ms(upTo-1))
			})
			if i < 0 {
				t.Fatalf("no point of bit %d at %d", bit, upTo)
			}
			if p := d.of("usp.field.flags.set")[i]; p.value != want || !p.sum || p.attribute("index") != "0" {
				t.Errorf("bit %d is set in %v of %d records, want %v", bit, p, upTo, want)
			}
		}
	}
}

// TestTimes leaves records out that have no time that a store can take, counts them, and tells of losses behind the last.
func TestTimes(t *testing.T) {
	r := &run{schema: sinktest.Schema(), frames: []frame{
		{time: -5e6}, {time: 0}, {time: ms(10)}, {time: ms(10)}, {time: ms(30)}, {time: ms(20)}, {time: ms(40)}, {lost: 3, end: true},
		{lost: 2, end: true},
		{time: ms(50), end: true}, {time: ms(50) + 999_999}, {time: ms(51) - 1}, {time: ms(51), end: true},
	}}
	d := newStore(t)
	var log bytes.Buffer
	s, _ := r.begin(t, otlp.Options{Endpoint: "http://store", Transport: d, Interval: time.Millisecond, Logger: slog.New(slog.NewTextHandler(&log, nil))}, sink.Cursor{})
	write(t, s, r.batch(0, 99))
	write(t, s, r.batch(8, 99))
	synced(t, s)
	if lost := d.total("usp.records.lost"); lost != 5 {
		t.Errorf("where the segment ended %v were lost, want 5", lost)
	}
	write(t, s, r.batch(9, 99))
	write(t, s, r.batch(10, 99))
	synced(t, s)
	var got []int64
	for _, p := range d.of("usp.step") {
		got = append(got, (int64(p.time)-ms(0))/1e6, int64(p.value))
	}
	if want := []int64{10, 4, 30, 5, 40, 7, 50, 10, 51, 13}; !slices.Equal(got, want) {
		t.Errorf("times and steps are %v, want %v", got, want)
	}
	if _, left := s.Rejected(); left != 4 {
		t.Errorf("%d records left out, want 4", left)
	}
	if strings.Count(log.String(), "is not sent") != 1 {
		t.Errorf("the log says %q", &log)
	}
	if d.total("usp.records.stored") != 11 || d.total("usp.records.lost") != 5 {
		t.Errorf("%v stored and %v lost, want 11 and 5", d.total("usp.records.stored"), d.total("usp.records.lost"))
	}
	for _, p := range d.of("usp.records.stored") {
		if p.start == 0 || p.start > p.time {
			t.Errorf("a counter begins at %d, after its time %d", p.start, p.time)
		}
	}
}

// TestBefore1970 has the interval before 1970 be another one than that after it.
func TestBefore1970(t *testing.T) {
	r := &run{schema: sinktest.Schema(), frames: []frame{{time: 5e6}, {time: -5e6, end: true}}}
	d := r.all(t, otlp.Options{Interval: 10 * time.Millisecond})
	if p := d.of("usp.step"); len(p) != 1 || p[0].time != 5e6 {
		t.Errorf("the points are %+v, want the one of 1970", p)
	}
}

// TestValues compares each element of each type, and finds no digest.
func TestValues(t *testing.T) {
	r := sinktest.Record(t)
	r.Emit(3)
	r.Roll()
	d := newStore(t)
	bring(t, r, open(t, otlp.Options{Endpoint: d.serve(t).URL, Interval: time.Millisecond, Version: "1.2.3", Attributes: []otlp.Attribute{{Key: "host.name", Value: "a b"}}}))
	for i := range r.Schema.Len() {
		f := r.Schema.Field(i)
		points := d.of("usp.field." + f.Name)
		if f.Class == record.Digest {
			if len(points) > 0 {
				t.Errorf("the digest field %s is sent", f.Name)
			}
			continue
		}
		if len(points) != 3*f.Len {
			t.Fatalf("%s has %d points, want %d", f.Name, len(points), 3*f.Len)
		}
		for n, p := range points {
			step, j := uint64(n/f.Len+1), n%f.Len
			row := sinktest.Payload(r.Schema, step)
			want := point{metric: "usp.field." + f.Name, attributes: "run=" + r.Dir.ID() + ",generation=0", time: row[1], value: sinktest.Float(r.Schema, row, i, j)}
			want.integer = f.Type == record.Int64 || f.Type == record.Uint64
			if f.Len > 1 {
				want.attributes += fmt.Sprintf(",index=%d", j)
			}
			if p != want {
				t.Errorf("%+v, want %+v", p, want)
			}
		}
	}
	if want := []string{"service.name=usp", "service.instance.id=" + r.Dir.ID(), "host.name=a b"}; !slices.Equal(d.resource, want) {
		t.Errorf("the resource is %q, want %q", d.resource, want)
	}
	for i, q := range d.requests {
		if q.URL.Path != "/v1/metrics" || q.Header.Get("Content-Type") != "application/x-protobuf" || q.Header.Get("Content-Encoding") != "gzip" || q.UserAgent() != "usp/1.2.3" {
			t.Errorf("a request to %s with %v", q.URL.Path, q.Header)
		}
		for _, canary := range sinktest.Canaries() {
			if bytes.Contains(d.bodies[i], []byte(canary)) {
				t.Errorf("%q is sent", canary)
			}
		}
		for j := range uint64(3) {
			rho := sinktest.Payload(r.Schema, 1)[uint64(r.Schema.StoredWords())+j]
			if bytes.Contains(d.bodies[i], binary8(rho)) {
				t.Errorf("the word %x of a digest field is sent", rho)
			}
		}
	}
}

func binary8(w uint64) []byte {
	b := make([]byte, 8)
	for i := range b {
		b[i] = byte(w >> (8 * i))
	}
	return b
}

// TestLarge keeps requests bounded, vectors cut, and integers beyond int64 as doubles.
func TestLarge(t *testing.T) {
	schema, err := record.NewSchema("large.v1",
		record.Field{Name: "u", Class: record.Metric, Type: record.Uint64, Unit: "{x}s"},
		record.Field{Name: "v", Class: record.Metric, Len: 5000},
		record.Field{Name: "w", Class: record.Metric, Len: 3000},
	)
	if err != nil {
		t.Fatal(err)
	}
	d := newStore(t)
	s, _ := (&run{schema: schema}).begin(t, otlp.Options{Endpoint: "http://store", Transport: d, Elements: 3000, Interval: time.Millisecond}, sink.Cursor{})
	b := &sink.Batch{Next: 40, End: true, Schema: schema}
	for i := range uint64(40) {
		row := make([]uint64, schema.Words())
		row[0], row[1], row[2] = i, uint64(ms(int64(i))), math.MaxUint64-i
		b.Seq, b.Words = append(b.Seq, i), append(b.Words, row...)
	}
	write(t, s, b)
	synced(t, s)
	if n, m := len(d.of("usp.field.v")), len(d.of("usp.field.w")); n != 40*3000 || m != 40*(4096-2-3000) {
		t.Errorf("%d and %d points of the vectors", n, m)
	}
	if len(d.bodies) < 5 {
		t.Errorf("all came in %d requests", len(d.bodies))
	}
	for _, body := range d.bodies {
		if len(body) > 2<<20 {
			t.Errorf("a request of %d bytes", len(body))
		}
	}
	if p := d.of("usp.field.u")[0]; p.integer || p.value != math.MaxUint64 || p.unit != "{xs}" {
		t.Errorf("%+v, want 2⁶⁴ as a double, in {xs}", p)
	}
}

// TestUselessCursor begins again where the state is damaged: the store knows the points.
func TestUselessCursor(t *testing.T) {
	r := &run{schema: sinktest.Schema(), frames: []frame{{time: ms(1)}, {time: ms(9), end: true}}}
	d := newStore(t)
	var log bytes.Buffer
	o := otlp.Options{Endpoint: "http://store", Transport: d, Interval: time.Millisecond, Logger: slog.New(slog.NewTextHandler(&log, nil))}
	s, _ := r.begin(t, o, sink.Cursor{})
	write(t, s, r.batch(0, 9))
	good := synced(t, s)
	for _, at := range []sink.Cursor{{Next: 2}, {Next: 2, State: []byte("{")}, {Next: 1, State: good.State}} {
		log.Reset()
		s, from := r.begin(t, o, at)
		if from != 0 || !strings.Contains(log.String(), "sent again") {
			t.Errorf("%v: begins at %d, and says %q", at, from, &log)
		}
		write(t, s, r.batch(0, 9))
		synced(t, s)
	}
	if len(d.of("usp.step")) != 2 || d.again == 0 {
		t.Errorf("%d points, %d of them again", len(d.of("usp.step")), d.again)
	}
	if _, from := r.begin(t, o, good); from != 2 {
		t.Errorf("a good cursor begins at %d", from)
	}
}

// BenchmarkWrite is what it costs where nearly nothing is sent, and where everything is.
func BenchmarkWrite(b *testing.B) {
	for _, interval := range []time.Duration{10 * time.Second, time.Millisecond} {
		b.Run(interval.String(), func(b *testing.B) {
			schema := sinktest.Schema()
			s, _ := (&run{schema: schema}).begin(b, otlp.Options{Endpoint: "http://store", Transport: swallow{}, Interval: interval}, sink.Cursor{})
			n := 0
			var batch sink.Batch
			for b.Loop() {
				b.StopTimer()
				first := batch.Next
				batch = sink.Batch{First: first, Next: first + 8192, Schema: schema}
				for i := range uint64(8192) {
					row := sinktest.Payload(schema, first+i)[:schema.StoredWords()]
					batch.Seq, batch.Words = append(batch.Seq, i), append(batch.Words, row...)
				}
				b.StartTimer()
				write(b, s, &batch)
				n += 8192
			}
			b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "records/s")
		})
	}
}
