package pyramid

import (
	"errors"
	"math"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/usp-project/usp/internal/segment"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/record"
	"github.com/usp-project/usp/sink"
)

// sum is how many records columns have, how many are lost, and how many frames were damaged.
func sum(cs []Column) (count, lost, unread uint64) {
	for _, c := range cs {
		count, lost, unread = count+c.Count, lost+c.Lost, unread+c.Unread
	}
	return count, lost, unread
}

func (f *fixture) all(q *Query, field Field, columns int) []Column {
	f.t.Helper()
	cs, err := q.Range(f.ctx(), field, 0, math.MaxUint64, columns)
	check(f.t, err)
	return cs
}

// TestLossesBetween: segments that hold nothing but losses, in each place.
func TestLossesBetween(t *testing.T) {
	f := newFixture(t, vfs.NewMem(), 1)
	defer f.close()
	lost := func(n uint64) {
		f.lose(n)
		f.roll()
	}
	emit := func(n int) {
		f.emit(n, 1)
		f.roll()
	}
	lost(1) // belongs to the first record
	emit(30)
	lost(2) // to step 30
	emit(10)
	emit(10)
	lost(4) // is overridden, as step 50 is
	f.rewind(35)
	lost(8)  // to step 35, the last of the timeline so far
	lost(16) // as well
	emit(10)
	lost(32) // to step 45
	q := f.open(4)
	defer q.Close()
	rows := f.effective()
	for _, field := range fields() {
		for _, columns := range []int{1, 2, 100} {
			compare(t, q, f, rows, field, 0, math.MaxUint64, columns)
			for _, step := range []uint64{1, 2, 29, 30, 31, 35, 36, 44, 45} {
				compare(t, q, f, rows, field, step, step, columns)
			}
		}
	}
	if count, lost, _ := sum(f.all(q, Field{Name: "loss"}, 3)); count != 45 || lost != 1+2+8+16+32 {
		t.Errorf("%d records and %d lost", count, lost)
	}
}

// TestFlags: one record of many thousand has a flag, and it is seen in one column of all.
func TestFlags(t *testing.T) {
	f := newFixture(t, vfs.NewMem(), 1)
	defer f.close()
	f.emit(20_000, 1)
	p := &f.pieces[0]
	or := uint64(0)
	for _, r := range p.rows {
		or |= r.words[len(r.words)-1]
	}
	f.roll()
	feed(f, 0).write(100)
	q := f.open(defaultLeaf)
	defer q.Close()
	cs := f.all(q, Field{Name: "flags"}, 1)
	if len(cs) != 1 || cs[0].Bits != or || cs[0].Max != float64(or) || cs[0].Min != 0 || !(cs[0].Mean > 0.9 && cs[0].Mean < 1) {
		t.Errorf("%+v, want bits %#x", cs, or)
	}
}

// TestNoField: what a run does not store cannot be asked for, a digest least of all.
func TestNoField(t *testing.T) {
	f := newFixture(t, vfs.NewMem(), 1)
	defer f.close()
	q := f.open(4)
	defer q.Close()
	for range 2 {
		for _, field := range []Field{{Name: "nothing"}, {Name: "rho"}, {Name: "step"}, {Name: "loss", Element: 1}, {Name: "pair", Element: -1}} {
			if _, err := q.Range(t.Context(), field, 0, 9, 3); !errors.Is(err, ErrNoField) {
				t.Errorf("%v: %v", field, err)
			}
		}
		if cs, err := q.Range(t.Context(), Field{Name: "loss"}, 1<<62, 1<<63, 3); err != nil || len(cs) > 0 {
			t.Errorf("%v, %v in an empty range", cs, err)
		}
		f.emit(10, 1)
		check(t, q.Refresh(t.Context()))
	}
	for _, columns := range []int{0, -1, MaxColumns + 1} {
		if _, err := q.Range(t.Context(), Field{Name: "loss"}, 0, 9, columns); err == nil {
			t.Errorf("%d columns", columns)
		}
	}
	if _, err := q.Range(t.Context(), Field{Name: "loss"}, 9, 8, 1); err == nil {
		t.Error("a range that ends before it begins")
	}
}

// files are the names and bytes of the files.
func (f *fixture) files() map[string]string {
	out := map[string]string{}
	list, err := f.fs.ReadDir(directory(f.dir))
	check(f.t, err)
	for _, d := range list {
		b, err := vfs.ReadFile(f.fs, directory(f.dir)+"/"+d.Name(), 1<<30)
		check(f.t, err)
		out[d.Name()] = string(b)
	}
	return out
}

func (f *fixture) write(name, data string) {
	h, err := f.fs.OpenFile(directory(f.dir)+"/"+name, os.O_WRONLY|os.O_TRUNC|os.O_CREATE, 0o600)
	check(f.t, err)
	_, err = h.Write([]byte(data))
	check(f.t, errors.Join(err, h.Close()))
}

func sameFiles(t *testing.T, got, want map[string]string) {
	t.Helper()
	for name, data := range want {
		if got[name] != data {
			t.Errorf("%s: %d bytes that are not the %d of another maker", name, len(got[name]), len(data))
		}
	}
	if len(got) != len(want) || len(want) == 0 {
		t.Errorf("%d files, want %d", len(got), len(want))
	}
}

// segments is a run of several segments, all sealed.
func segments(t *testing.T) *fixture {
	f := newFixture(t, vfs.NewMem(), 3)
	for range 3 {
		f.emit(1500, 2)
		f.lose(3)
		f.emit(500, 2)
		f.lose(1)
		f.roll()
	}
	f.rewind(f.step * 5 / 6)
	f.emit(700, 1)
	f.roll()
	return f
}

// TestDamaged flips each region of each file: a range is what it was, the damage is told, and both makers mend it.
func TestDamaged(t *testing.T) {
	const leaf = 4 // so that there are levels of many aggregates
	f := segments(t)
	defer f.close()
	built, err := Build(t.Context(), BuildOptions{FS: f.fs, Dir: f.dir, leaf: leaf})
	if err != nil || built.Made != 4 || built.Records != 6700 || built.Kept != 0 || built.Open != 0 {
		t.Fatalf("%+v, %v", built, err)
	}
	want, rows := f.files(), f.effective()
	for name, data := range want {
		places := []int{0, 9, 13, 70, 200, len(data) / 10, len(data) / 4, len(data) / 2, len(data) - 12, -1, -2}
		if testing.Short() {
			places = []int{70, len(data) / 4, len(data) / 2, -1}
		}
		for _, at := range places {
			q := f.open(leaf) // before the damage
			bad := []byte(data)
			switch at {
			case -1:
				bad = bad[:len(bad)-8]
			case -2:
				bad = append(bad, 0)
			default:
				bad[at] ^= 4
			}
			f.write(name, string(bad))
			for round := range 3 {
				told := 0
				q.opts.Damaged = func(error) { told++ }
				for _, field := range []Field{{Name: "loss"}, {Name: "flags"}} {
					for _, columns := range []int{1, 30, 2000} {
						compare(t, q, f, rows, field, 0, math.MaxUint64, columns)
						compare(t, q, f, rows, field, 3, 5000, columns)
					}
				}
				if round == 1 && told > 0 && at >= 0 {
					t.Errorf("%s at %d: told %d times after the part was read anew", name, at, told)
				}
				check(t, q.Refresh(t.Context()))
			}
			check(t, q.Close())
			q = f.open(leaf) // and after
			compare(t, q, f, rows, Field{Name: "loss"}, 0, math.MaxUint64, 3)
			check(t, q.Close())
			built, err := Build(t.Context(), BuildOptions{FS: f.fs, Dir: f.dir, leaf: leaf})
			if err != nil || built.Made != 1 || built.Kept != 3 {
				t.Fatalf("%s damaged at %d: %+v, %v", name, at, built, err)
			}
			sameFiles(t, f.files(), want)
		}
		check(t, f.fs.Remove(directory(f.dir)+"/"+name))
		d := feed(f, leaf)
		d.write(100)
		d.close()
		sameFiles(t, f.files(), want)
	}
}

// TestHealed: a query that found damage uses the file again when it was made anew.
func TestHealed(t *testing.T) {
	f := segments(t)
	defer f.close()
	_, err := Build(t.Context(), BuildOptions{FS: f.fs, Dir: f.dir})
	check(t, err)
	want := f.files()
	for name, data := range want {
		q := f.open(defaultLeaf)
		bad := []byte(data)
		bad[len(bad)/2] ^= 1
		f.write(name, string(bad))
		for _, field := range fields() {
			f.all(q, field, 5)
		}
		check(t, q.Refresh(t.Context()))
		memory := 0
		for _, p := range q.parts {
			if p.path == "" {
				memory++
			}
		}
		if memory != 1 {
			t.Errorf("%s: %d segments are in memory", name, memory)
		}
		f.write(name, data)
		check(t, q.Refresh(t.Context()))
		for _, p := range q.parts {
			if p.path == "" {
				t.Errorf("%s is still left out", p.info.Name)
			}
			if _, bad := q.damaged.Load(p.info.Base); bad {
				t.Errorf("%s is still said to be damaged", p.info.Name)
			}
		}
		check(t, q.Close())
	}
}

// TestUnbuilt: a long run without files is not read into memory, and says so.
func TestUnbuilt(t *testing.T) {
	f := segments(t)
	defer f.close()
	q := f.open(defaultLeaf)
	q.room = 1
	check(t, q.Close())
	check(t, q.Refresh(t.Context()))
	if e := q.Extent(); e.Unbuilt != 2 || e.Segments != 4 { // the first takes the room, the last needs none
		t.Errorf("%+v", e)
	}
	_, err := q.Range(t.Context(), Field{Name: "loss"}, 0, 9, 3)
	if !errors.Is(err, ErrUnbuilt) || !strings.Contains(err.Error(), "2 of 4") {
		t.Errorf("%v", err)
	}
	_, err = Build(t.Context(), BuildOptions{FS: f.fs, Dir: f.dir})
	check(t, err)
	check(t, q.Refresh(t.Context()))
	compare(t, q, f, f.effective(), Field{Name: "loss"}, 0, math.MaxUint64, 10)
	check(t, q.Close())
}

// TestOtherRun: files that were copied from another run, and of frames that a crash has taken, are made anew.
func TestOtherRun(t *testing.T) {
	f := segments(t)
	defer f.close()
	_, err := Build(t.Context(), BuildOptions{FS: f.fs, Dir: f.dir})
	check(t, err)
	want := f.files()
	z := newFiller(f.fs, f.dir, 0, defaultLeaf, nil)
	check(t, z.fill(t.Context()))
	b, err := z.builder.encode("another-run")
	check(t, err)
	f.write("00000000000000000000.pyr", string(b))
	d := feed(f, 0)
	d.write(100)
	d.close()
	sameFiles(t, f.files(), want)
	z.builder.next += 5
	if b, err = z.builder.encode(runID); err != nil {
		t.Fatal(err)
	}
	f.write("00000000000000000000.pyr", string(b))
	d = feed(f, 0)
	d.write(100)
	if at, err := d.sink.Sync(t.Context()); err != nil || at.Next != f.ordinal {
		t.Errorf("%+v, %v; want frame %d", at, err, f.ordinal)
	}
	d.close()
	sameFiles(t, f.files(), want)
}

// TestPoisoned: a recorder whose disk failed goes on in a new segment, which has again what was not synced in the old one; what
// was read of that is forgotten.
func TestPoisoned(t *testing.T) {
	f := newFixture(t, vfs.NewMem(), 5)
	defer f.close()
	f.emit(1000, 1)
	f.lose(3)
	f.pieces[0].rows[999].lost, f.pieces[0].lost = f.pieces[0].lost, 0
	synced := f.ordinal
	d, q := feed(f, 0), f.open(defaultLeaf)
	old, writer := &f.pieces[0], f.writer
	n := len(old.rows)
	for range 500 {
		f.step++
		words := []uint64{f.step, f.step}
		for _, k := range kindsOf(f.schema) {
			words = append(words, f.word(k))
		}
		old.rows = append(old.rows, row{words: words})
		check(t, writer.Append(record.AppendRecord(nil, 0, f.seq, words)))
		f.seq++
	}
	check(t, writer.Flush())
	d.write(100)
	check(t, q.Refresh(t.Context()))
	compare(t, q, f, f.effective(), Field{Name: "loss"}, 0, math.MaxUint64, 2)
	check(t, writer.Abort())
	again := old.rows[n:]
	old.rows = old.rows[:n:n]
	f.writer, f.ordinal = nil, synced
	for i, r := range again {
		p := f.append(record.AppendRecord(nil, 0, uint64(n+i+3), r.words))
		p.rows = append(p.rows, r)
	}
	f.emit(300, 1)
	check(t, q.Refresh(t.Context()))
	for _, columns := range []int{1, 2, 5000} {
		compare(t, q, f, f.effective(), Field{Name: "loss"}, 0, math.MaxUint64, columns)
	}
	check(t, q.Close())
	f.roll()
	told := 0
	for told < 3 { // as the runner does
		b, err := d.in.Next()
		if err != nil {
			break
		}
		if err := d.sink.Write(t.Context(), b); err != nil {
			told++
			d.close()
			d = feed(f, 0)
		}
	}
	if at, err := d.sink.Sync(t.Context()); err != nil || at.Next != f.ordinal || told > 1 {
		t.Errorf("synced up to %d of %d after %d errors, %v", at.Next, f.ordinal, told, err)
	}
	d.close()
	q = f.open(defaultLeaf)
	compare(t, q, f, f.effective(), Field{Name: "loss"}, 0, math.MaxUint64, 2)
	for _, p := range q.parts {
		if p.path == "" {
			t.Errorf("segment %s has no file", p.info.Name)
		}
	}
	check(t, q.Close())
}

// TestDisordered: records whose steps are not above those before are in no column, and what was lost in front of them is in the next.
func TestDisordered(t *testing.T) {
	f := newFixture(t, vfs.NewMem(), 9)
	defer f.close()
	f.emit(100, 1)
	f.lose(2)
	f.step -= 30
	f.emit(100, 1)
	f.step -= 3
	f.emit(10, 1)
	f.roll()
	for range 2 {
		q := f.open(4)
		if q.parts[0].leftOut != 33 || q.Extent().Records != 177 {
			t.Errorf("%d records left out of %+v", q.parts[0].leftOut, q.Extent())
		}
		for _, columns := range []int{1, 5, 1000} {
			compare(t, q, f, f.effective(), Field{Name: "delta"}, 0, math.MaxUint64, columns)
			compare(t, q, f, f.effective(), Field{Name: "delta"}, 50, 103, columns)
		}
		check(t, q.Close())
		d := feed(f, 4)
		d.write(10)
		d.close()
	}
}

// TestUnread: frames of a damaged segment are counted as such in any columns, and a segment that is no segment any more holds nobody up.
func TestUnread(t *testing.T) {
	f := segments(t)
	defer f.close()
	name := f.dir.Telemetry() + "/" + segment.FileName(2002)
	whole, err := vfs.ReadFile(f.fs, name, 1<<20)
	check(t, err)
	all := f.effective()
	for at, want := range map[int]uint64{20_000: 0, 100_000: 0, 0: 2002} {
		check(t, f.fs.Chmod(name, 0o600))
		bad := slices.Clone(whole)
		bad[at] ^= 1
		check(t, vfs.Replace(f.fs, name, bad, 0o600))
		var seen uint64
		for round := range 2 { // in memory, and from files
			q := f.open(defaultLeaf)
			for _, columns := range []int{1, 3, 7, 5000} {
				cs := f.all(q, Field{Name: "loss"}, columns)
				count, lost, unread := sum(cs)
				if seen == 0 {
					seen = unread
				}
				if unread == 0 || unread != seen || want > 0 && unread != want || count+min(unread, 2000) < uint64(len(all)) || count >= uint64(len(all)) {
					t.Errorf("byte %d, round %d, %d columns: %d of %d records, %d lost, %d frames unread, %d before", at, round, columns, count, len(all), lost, unread, seen)
				}
			}
			check(t, q.Close())
			d := feed(f, 0)
			d.write(100)
			if at, err := d.sink.Sync(t.Context()); err != nil || at.Next != f.ordinal {
				t.Errorf("synced up to %+v, %v", at, err)
			}
			d.close()
			if d = feed(f, 0); d.in.Position() != f.ordinal {
				t.Errorf("byte %d: begins again at %d of %d", at, d.in.Position(), f.ordinal)
			}
			d.close()
		}
		for name := range f.files() {
			check(t, f.fs.Remove(directory(f.dir)+"/"+name))
		}
	}
}

// TestNoDigest: nothing of a digest field is in a file but its name in the schema, as its values are not in the telemetry.
func TestNoDigest(t *testing.T) {
	f := segments(t)
	defer f.close()
	_, err := Build(t.Context(), BuildOptions{FS: f.fs, Dir: f.dir})
	check(t, err)
	for name, data := range f.files() {
		h, err := open(f.fs, directory(f.dir)+"/"+name, nil)
		check(t, err)
		if want := f.schema.StoredWords() - headWords; len(h.kinds) != want || strings.Count(data, "rho") != 1 {
			t.Errorf("%s has %d elements, want %d", name, len(h.kinds), want)
		}
		h.close()
	}
}

var _ sink.Sink = (*Sink)(nil)
