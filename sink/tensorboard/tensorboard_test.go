package tensorboard_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"iter"
	"math"
	"math/rand/v2"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/record"
	"github.com/usp-project/usp/sink"
	"github.com/usp-project/usp/sink/tensorboard"
)

const runID = "20261122T201833-9f3kq"

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func schema(t testing.TB) *record.Schema {
	s, err := record.NewSchema("test.v1",
		record.Field{Name: "cusum", Class: record.Metric, Unit: "nats"},
		record.Field{Name: "weights", Class: record.Metric, Len: 3},
		record.Field{Name: "rho", Class: record.Digest, Len: 2},
		record.Field{Name: "count", Class: record.Metric, Type: record.Int64},
		record.Field{Name: "alarm", Class: record.Flag, Type: record.Uint64},
	)
	check(t, err)
	return s
}

// frames makes batches by hand.
type frames struct {
	schema *record.Schema
	list   []*sink.Batch
	next   uint64
}

// add puts a record behind the others, in a batch of its own.
func (f *frames) add(gen uint32, seq, step uint64, cusum float64, count int64, alarm uint64) {
	b := &sink.Batch{First: f.next, Next: f.next + 1, Generation: gen, Schema: f.schema, Seq: []uint64{seq}}
	b.Words = append(b.Words, step, uint64(1e9*int64(step)+5e8), math.Float64bits(cusum))
	for j := range 3 {
		b.Words = append(b.Words, math.Float64bits(float64(j)+cusum/4))
	}
	b.Words = append(b.Words, uint64(count), alarm)
	f.list = append(f.list, b)
	f.next++
}

func (f *frames) lose(gen uint32, from, to uint64) {
	f.list = append(f.list, &sink.Batch{First: f.next, Next: f.next + 1, Generation: gen, Schema: f.schema, Losses: []sink.Loss{{From: from, To: to, Reason: record.LostOverrun}}})
	f.next++
}

// join makes one batch of several that lie side by side in one generation.
func join(list []*sink.Batch) *sink.Batch {
	b := *list[0]
	b.Seq, b.Words, b.Losses = nil, nil, nil
	for _, x := range list {
		for _, l := range x.Losses {
			l.Before += len(b.Seq)
			b.Losses = append(b.Losses, l)
		}
		b.Seq, b.Words, b.Next = append(b.Seq, x.Seq...), append(b.Words, x.Words...), x.Next
	}
	return &b
}

func each(list []*sink.Batch) iter.Seq2[*sink.Batch, error] {
	return func(yield func(*sink.Batch, error) bool) {
		for _, b := range list {
			if !yield(b, nil) {
				return
			}
		}
	}
}

// story is two generations with losses, the second of which overrides the end of the first.
func story(t testing.TB) *frames {
	f := &frames{schema: schema(t)}
	for i := range uint64(20) {
		f.add(0, i, i+1, float64(i), int64(i), uint64(i/7%2)<<i)
	}
	f.lose(0, 20, 25)
	f.lose(0, 25, 26)
	for i := uint64(26); i < 40; i++ {
		f.add(0, i, i+1, float64(i), int64(i), 0)
	}
	f.lose(1, 0, 2)
	for i := uint64(2); i < 30; i++ {
		f.add(1, i, i+31, float64(i), int64(i), uint64(i%2))
	}
	return f
}

// export returns the event file of batches.
func export(t testing.TB, o tensorboard.Options, s *record.Schema, list []*sink.Batch) ([]byte, tensorboard.Exported) {
	t.Helper()
	o.FS, o.Dir = vfs.NewMem(), "logs"
	check(t, o.FS.Mkdir("logs", 0o755))
	x, err := tensorboard.Export(t.Context(), o, sink.Run{ID: runID, Schema: s}, each(list))
	check(t, err)
	b, err := vfs.ReadFile(o.FS, x.File, 1<<30)
	check(t, err)
	if x.Bytes != int64(len(b)) || x.File != filepath.Join("logs", runID, "events.out.tfevents.1795378713.usp.0.0") {
		t.Errorf("exported %+v, the file has %d bytes", x, len(b))
	}
	return b, x
}

// value is a Summary.Value, decoded.
type value struct {
	tag, plugin, description, text string
	number                         float32
}

// event is an Event, decoded.
type event struct {
	time    float64
	step    int64
	version string
	start   string
	values  []value
}

// decode reads an event file with a decoder of its own, and fails if a checksum is wrong.
func decode(t testing.TB, b []byte) (events []event) {
	t.Helper()
	table := crc32.MakeTable(crc32.Castagnoli)
	sum := func(b []byte) uint32 {
		c := crc32.Checksum(b, table)
		return ((c >> 15) | (c << 17)) + 0xa282ead8
	}
	for len(b) > 0 {
		n := binary.LittleEndian.Uint64(b)
		data := b[12 : 12+n]
		if sum(b[:8]) != binary.LittleEndian.Uint32(b[8:]) || sum(data) != binary.LittleEndian.Uint32(b[12+n:]) {
			t.Fatalf("event %d: a checksum is wrong", len(events))
		}
		b = b[16+n:]
		var e event
		walk(t, data, func(num protowire.Number, x uint64, m []byte) {
			switch num {
			case 1:
				e.time = math.Float64frombits(x)
			case 2:
				e.step = int64(x)
			case 3:
				e.version = string(m)
			case 5:
				walk(t, m, func(_ protowire.Number, _ uint64, m []byte) { e.values = append(e.values, decodeValue(t, m)) })
			case 7:
				walk(t, m, func(num protowire.Number, x uint64, m []byte) {
					if num == 3 {
						e.start = string(m)
					} else if x != 1 {
						t.Errorf("session status %d", x)
					}
				})
			}
		})
		events = append(events, e)
	}
	if len(events) < 2 || events[0].version != "brain.Event:2" || events[1].start != "usp" || events[1].step != 0 {
		t.Fatalf("the file does not begin with its version and a start: %+v", events[:min(2, len(events))])
	}
	return slices.Delete(events, 1, 2)
}

// decodeValue decodes a Summary.Value.
func decodeValue(t testing.TB, m []byte) (v value) {
	walk(t, m, func(num protowire.Number, x uint64, m []byte) {
		switch num {
		case 1:
			v.tag = string(m)
		case 2:
			v.number = math.Float32frombits(uint32(x))
		case 8:
			walk(t, m, func(num protowire.Number, _ uint64, m []byte) {
				if num == 8 {
					v.text = string(m)
				}
			})
		case 9:
			walk(t, m, func(num protowire.Number, _ uint64, m []byte) {
				if num == 3 {
					v.description = string(m)
				} else {
					v.plugin = string(m[2:])
				}
			})
		}
	})
	return v
}

// walk calls back for each field of a message.
func walk(t testing.TB, b []byte, f func(num protowire.Number, x uint64, m []byte)) {
	t.Helper()
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		size := protowire.ConsumeFieldValue(num, typ, b[max(n, 0):])
		if n < 0 || size < 0 {
			t.Fatalf("no message: %x", b)
		}
		v := b[n : n+size]
		switch typ {
		case protowire.VarintType:
			x, _ := protowire.ConsumeVarint(v)
			f(num, x, nil)
		case protowire.Fixed64Type:
			x, _ := protowire.ConsumeFixed64(v)
			f(num, x, nil)
		case protowire.Fixed32Type:
			x, _ := protowire.ConsumeFixed32(v)
			f(num, uint64(x), nil)
		case protowire.BytesType:
			m, _ := protowire.ConsumeBytes(v)
			f(num, 0, m)
		}
		b = b[n+size:]
	}
}

// TestGolden wants the bytes that every reader of the format wants: the head of a record of 24 bytes is known from TensorFlow's own files.
func TestGolden(t *testing.T) {
	b, _ := export(t, tensorboard.Options{}, schema(t), nil)
	// TIME 1795378713 s, "brain.Event:2", writer "usp".
	want := "1f00000000000000" + hex.EncodeToString(masked(b[:8])) + "09000040"
	if !strings.HasPrefix(hex.EncodeToString(b), want) || !bytes.Contains(b, []byte("\x1a\x0dbrain.Event:2\x52\x05\x0a\x03usp")) {
		t.Errorf("the version is %x", b)
	}
	if got := hex.EncodeToString(masked([]byte{0x18, 0, 0, 0, 0, 0, 0, 0})); got != "a37f4b22" {
		t.Errorf("the checksum of TensorFlow's version record is %s, want a37f4b22", got)
	}
	events := decode(t, b)
	if len(events) != 1 || events[0].version != "brain.Event:2" || events[0].time != 1795378713 {
		t.Errorf("decoded: %+v", events)
	}
}

func masked(b []byte) []byte {
	c := crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))
	return binary.LittleEndian.AppendUint32(nil, (c>>15|c<<17)+0xa282ead8)
}

// TestEvents wants of a record all that is stored, under the names that TensorBoard groups, described once.
func TestEvents(t *testing.T) {
	f := &frames{schema: schema(t)}
	f.add(0, 0, 7, 1.5, -3, 9)
	f.add(0, 1, 8, 2.5, 1<<24+1, 0)
	b, x := export(t, tensorboard.Options{}, f.schema, f.list)
	events := decode(t, b)
	want := []value{
		{tag: "cusum", description: "metric, f64, unit nats; rounded to float32", number: 1.5},
		{tag: "weights/0", description: "metric, f64; rounded to float32", number: 0.375},
		{tag: "weights/1", description: "metric, f64; rounded to float32", number: 1.375},
		{tag: "weights/2", description: "metric, f64; rounded to float32", number: 2.375},
		{tag: "count", description: "metric, i64; exact up to 2^24, rounded to float32 beyond", number: -3},
		{tag: "alarm", description: "flag, u64; bits, as an integer", number: 9},
	}
	if len(events) != 3 || !reflect.DeepEqual(events[1], event{time: 7.5, step: 7, values: want}) {
		t.Fatalf("decoded: %+v", events)
	}
	second := events[2]
	if second.step != 8 || second.time != 8.5 || second.values[0] != (value{tag: "cusum", number: 2.5}) || second.values[4].number != 1<<24 {
		t.Errorf("decoded: %+v", second)
	}
	if x.Events != 2 || x.Narrowing != (tensorboard.Narrowing{Integers: 1}) {
		t.Errorf("exported: %+v", x)
	}
	b, _ = export(t, tensorboard.Options{Fields: []string{"count"}}, f.schema, f.list)
	if events := decode(t, b); len(events[2].values) != 1 || events[2].values[0].tag != "count" {
		t.Errorf("of one field: %+v", events[2])
	}
}

// TestRewind wants TensorBoard told what a generation overrides, of which the first two records were lost, and of each loss how much and what.
func TestRewind(t *testing.T) {
	f := story(t)
	b, x := export(t, tensorboard.Options{}, f.schema, f.list)
	var got []string
	for _, e := range decode(t, b) {
		if e.start != "" {
			got = append(got, fmt.Sprintf("%d %s", e.step, e.start))
		}
		for _, v := range e.values {
			if strings.HasPrefix(v.tag, "usp/") {
				got = append(got, fmt.Sprintf("%d %s %g %s%s", e.step, v.tag, v.number, v.plugin, v.text))
			}
		}
	}
	want := []string{
		"20 usp/lost 5 ", "20 usp/losses 0 textgeneration 0, records 20 to 24: overrun",
		"20 usp/lost 6 ", "20 usp/losses 0 textgeneration 0, records 25 to 25: overrun",
		"40 usp/lost 8 ", "40 usp/losses 0 textgeneration 1, records 0 to 1: overrun",
		"31 generation 1", "31 usp/lost 8 ",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
	if x.Lost != 8 || x.Events != 62+3+2 {
		t.Errorf("exported: %+v", x)
	}
}

// TestEvery wants few events, and no flag unseen.
func TestEvery(t *testing.T) {
	f := &frames{schema: schema(t)}
	for i := range uint64(10) {
		f.add(0, i, i+1, 0, 0, 1<<i)
	}
	f.add(1, 0, 5, 0, 0, 1<<20)
	f.add(1, 1, 6, 0, 0, 1<<21)
	b, _ := export(t, tensorboard.Options{Every: 4}, f.schema, f.list)
	var got []string
	for _, e := range decode(t, b)[1:] {
		if e.start == "" {
			got = append(got, fmt.Sprintf("%d:%x", e.step, uint64(e.values[5].number)))
		}
	}
	if want := []string{"1:1", "5:1e", "9:1e0", "5:100000"}; !slices.Equal(got, want) {
		t.Errorf("steps and flags %q, want %q", got, want)
	}
}

// TestCrashes wants the same bytes from a sink that is interrupted at any call, on a disk that keeps only what was synced, as from an export.
func TestCrashes(t *testing.T) {
	f := story(t)
	for seed := range uint64(400) {
		rng := rand.New(rand.NewPCG(seed, 1))
		o := tensorboard.Options{Every: seed % 4}
		want, _ := export(t, o, f.schema, f.list)
		disk := vfs.NewMem()
		check(t, disk.Mkdir("logs", 0o755))
		check(t, disk.SyncDir("/"))
		run := sink.Run{ID: runID, Schema: f.schema}
		var at sink.Cursor
		var s *tensorboard.Sink
		over, cancel := context.WithCancel(t.Context())
		cancel()
		for crashes := 0; at.Next < f.next; {
			if o.FS, o.Dir = disk, "logs"; s == nil {
				s = tensorboard.New(o)
			}
			from, err := s.Begin(t.Context(), run, at)
			check(t, err)
			for from.Next < f.next && (crashes > 20 || rng.IntN(12) > 0) {
				n := from.Next + 1
				for n < f.next && f.list[n].Generation == f.list[from.Next].Generation && rng.IntN(5) > 0 {
					n++
				}
				if rng.IntN(4) == 0 {
					if _, err := s.Sync(over); !errors.Is(err, context.Canceled) { // and nothing is lost by that
						t.Fatalf("a sync whose context has ended: %v", err)
					}
				}
				check(t, s.Write(t.Context(), join(f.list[from.Next:n])))
				from.Next = n
				if rng.IntN(3) == 0 || n == f.next {
					at, err = s.Sync(t.Context())
					check(t, err)
				}
			}
			crashes++
			if at.Next < f.next && rng.IntN(3) > 0 { // else it begins again in the same process
				check(t, s.Close())
				disk, s = disk.Crash(rng, vfs.Policy(seed/4%4)), nil
			}
		}
		got, err := vfs.ReadFile(disk, filepath.Join("logs", runID, tensorboard.FileName(runID)), 1<<30)
		check(t, err)
		if !bytes.Equal(got, want) {
			t.Fatalf("seed %d: the file differs from an export: %d and %d bytes", seed, len(got), len(want))
		}
	}
}

// TestExportFails leaves nothing of an export that fails, but what was there.
func TestExportFails(t *testing.T) {
	f := story(t)
	mem := vfs.NewMem()
	check(t, vfs.MkdirAll(mem, "mine", 0o755))
	lost := errors.New("lost")
	failing := func(yield func(*sink.Batch, error) bool) { _ = yield(f.list[0], nil) && yield(nil, lost) }
	for _, dir := range []string{"new", "mine"} {
		_, err := tensorboard.Export(t.Context(), tensorboard.Options{Dir: dir, FS: mem}, sink.Run{ID: runID, Schema: f.schema}, failing)
		if !errors.Is(err, lost) {
			t.Errorf("%s: %v", dir, err)
		}
		if _, err := mem.Stat(filepath.Join(dir, runID)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: the run's directory is left: %v", dir, err)
		}
		if _, err := mem.Stat(dir); (err == nil) != (dir == "mine") {
			t.Errorf("%s: %v", dir, err)
		}
	}
}

// TestBegin wants a file that is gone or was cut begun anew, and one of somebody else left alone.
func TestBegin(t *testing.T) {
	f := story(t)
	mem := vfs.NewMem()
	check(t, mem.Mkdir("logs", 0o755))
	run := sink.Run{ID: runID, Schema: f.schema}
	name := filepath.Join("logs", runID, tensorboard.FileName(runID))
	s := tensorboard.New(tensorboard.Options{Dir: "logs", FS: mem})
	_, err := s.Begin(t.Context(), run, sink.Cursor{})
	check(t, err)
	check(t, s.Write(t.Context(), f.list[0]))
	at, err := s.Sync(t.Context())
	check(t, err)
	if at.Next != 1 {
		t.Errorf("the cursor says %d, want 1", at.Next)
	}
	synced, err := mem.Stat(name)
	check(t, err)
	check(t, s.Write(t.Context(), f.list[1]))
	_, err = s.Sync(t.Context())
	check(t, err)
	if from, err := s.Begin(t.Context(), run, at); err != nil || from.Next != 1 {
		t.Errorf("from %d, %v, want 1", from.Next, err)
	}
	if cut, err := mem.Stat(name); err != nil || cut.Size() != synced.Size() {
		t.Errorf("begun again, the file has %d bytes, want %d; %v", cut.Size(), synced.Size(), err)
	}
	file, err := mem.OpenFile(name, 2, 0)
	check(t, err)
	info, _ := file.Stat()
	check(t, file.Truncate(info.Size()-1))
	if from, err := s.Begin(t.Context(), run, at); err != nil || from.Next != 0 {
		t.Errorf("of a file that was cut: from %d, %v, want 0", from.Next, err)
	}
	check(t, mem.Remove(name))
	if from, err := s.Begin(t.Context(), run, at); err != nil || from.Next != 0 {
		t.Errorf("of a file that is gone: from %d, %v, want 0", from.Next, err)
	}
	check(t, vfs.Replace(mem, name, bytes.Repeat([]byte("theirs"), 30), 0o644))
	if _, err := s.Begin(t.Context(), run, sink.Cursor{}); !errors.Is(err, sink.ErrRefused) {
		t.Errorf("of another file: %v, want ErrRefused", err)
	}
	if b, _ := vfs.ReadFile(mem, name, 1<<20); len(b) != 180 {
		t.Errorf("another file was changed: %d bytes", len(b))
	}
	if err := s.Write(t.Context(), f.list[0]); err == nil {
		t.Error("a sink that is not open takes a batch")
	}
}

// TestRefused wants what no retry mends said so.
func TestRefused(t *testing.T) {
	f := &frames{schema: schema(t)}
	f.add(0, 0, 1<<63, 0, 0, 0)
	mem := vfs.NewMem()
	check(t, mem.Mkdir("logs", 0o755))
	run := sink.Run{ID: runID, Schema: f.schema}
	for _, fields := range [][]string{{"nothing"}, {"rho"}} {
		if _, err := tensorboard.New(tensorboard.Options{Dir: "logs", FS: mem, Fields: fields}).Begin(t.Context(), run, sink.Cursor{}); !errors.Is(err, sink.ErrRefused) {
			t.Errorf("the field %q: %v, want ErrRefused", fields, err)
		}
	}
	if _, err := tensorboard.New(tensorboard.Options{}).Begin(t.Context(), run, sink.Cursor{}); !errors.Is(err, sink.ErrRefused) {
		t.Errorf("without a directory: %v, want ErrRefused", err)
	}
	o := tensorboard.Options{Dir: "logs", FS: mem}
	if _, err := tensorboard.Export(t.Context(), o, run, each(f.list)); !errors.Is(err, sink.ErrRefused) {
		t.Errorf("a step of 2^63: %v, want ErrRefused", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := tensorboard.Export(ctx, o, run, each(story(t).list)); !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v, want context.Canceled", err)
	}
	_, err := tensorboard.Export(t.Context(), o, run, each(nil))
	check(t, err)
	if _, err := tensorboard.Export(t.Context(), o, run, each(nil)); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second export: %v, want fs.ErrExist", err)
	}
}

// TestCanary wants no digest field in a file: its value is not among what a sink gets, and neither name nor value is there.
func TestCanary(t *testing.T) {
	const canary = 0x4142434445464748
	s := schema(t)
	v := record.NewValues(s)
	rho, _ := s.Index("rho")
	v.SetFloat64s(rho, []float64{math.Float64frombits(canary), math.Float64frombits(canary)})
	b := &sink.Batch{Next: 1, Schema: s, Seq: []uint64{0}, Words: v.Payload(1, 0)[:s.StoredWords()]}
	for _, o := range []tensorboard.Options{{}, {Every: 7}} {
		out, _ := export(t, o, s, []*sink.Batch{b})
		little := binary.LittleEndian.AppendUint64(nil, canary)
		narrow := binary.LittleEndian.AppendUint32(nil, math.Float32bits(float32(math.Float64frombits(canary))))
		for _, bad := range [][]byte{little, narrow, []byte("rho"), []byte(fmt.Sprintf("%x", canary)), []byte(hex.EncodeToString(little))} {
			if bytes.Contains(out, bad) {
				t.Errorf("the file has %q of a digest field", bad)
			}
		}
	}
}

// TestBroken wants nothing vouched for behind a failed write or sync until the sink is begun again, and all of it then.
func TestBroken(t *testing.T) {
	f := &frames{schema: schema(t)}
	for i := range uint64(5000) {
		f.add(0, i, i+1, float64(i), int64(i), 0)
	}
	want, _ := export(t, tensorboard.Options{}, f.schema, f.list)
	run := sink.Run{ID: runID, Schema: f.schema}
	for name, op := range map[string]vfs.OpKind{"write": vfs.OpWrite, "sync": vfs.OpDatasync} {
		mem := vfs.NewMem()
		check(t, mem.Mkdir("logs", 0o755))
		in := vfs.Inject(mem)
		s := tensorboard.New(tensorboard.Options{Dir: "logs", FS: in})
		_, err := s.Begin(t.Context(), run, sink.Cursor{})
		check(t, err)
		check(t, s.Write(t.Context(), join(f.list[:10])))
		at, err := s.Sync(t.Context())
		check(t, err)
		in.Add(vfs.Rule{Op: op})
		if err := s.Write(t.Context(), join(f.list[10:4000])); (err == nil) != (op == vfs.OpDatasync) {
			t.Errorf("%s: a large batch: %v", name, err)
		}
		for range 2 {
			if got, err := s.Sync(t.Context()); err == nil {
				t.Errorf("%s: it vouches for the frames before %d", name, got.Next)
			}
		}
		if err := s.Write(t.Context(), f.list[4000]); err == nil {
			t.Errorf("%s: it takes a batch", name)
		}
		from, err := s.Begin(t.Context(), run, at)
		if err != nil || from.Next != 10 {
			t.Fatalf("%s: begun again at %d, %v", name, from.Next, err)
		}
		check(t, s.Write(t.Context(), join(f.list[10:])))
		_, err = s.Sync(t.Context())
		check(t, err)
		got, err := vfs.ReadFile(mem, filepath.Join("logs", runID, tensorboard.FileName(runID)), 1<<30)
		check(t, err)
		if !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, want %d", name, len(got), len(want))
		}
	}
}

// TestSyncAgain wants what a sync could not write written by the next one.
func TestSyncAgain(t *testing.T) {
	f := story(t)
	want, _ := export(t, tensorboard.Options{}, f.schema, f.list)
	mem := vfs.NewMem()
	check(t, mem.Mkdir("logs", 0o755))
	in := vfs.Inject(mem)
	s := tensorboard.New(tensorboard.Options{Dir: "logs", FS: in})
	_, err := s.Begin(t.Context(), sink.Run{ID: runID, Schema: f.schema}, sink.Cursor{})
	check(t, err)
	for _, b := range f.list {
		check(t, s.Write(t.Context(), b))
	}
	in.Add(vfs.Rule{Op: vfs.OpWrite, Short: true})
	if _, err := s.Sync(t.Context()); err == nil {
		t.Error("a sync that cannot write is well")
	}
	at, err := s.Sync(t.Context())
	check(t, err)
	got, err := vfs.ReadFile(mem, filepath.Join("logs", runID, tensorboard.FileName(runID)), 1<<30)
	check(t, err)
	if !bytes.Equal(got, want) || at.Next != f.next {
		t.Errorf("%d bytes up to frame %d, want %d up to %d", len(got), at.Next, len(want), f.next)
	}
}
