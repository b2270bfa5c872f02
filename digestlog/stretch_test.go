package digestlog

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"

	"golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"

	"github.com/usp-project/usp/internal/segment"
	"github.com/usp-project/usp/internal/vfs"
)

// stretchesOf are the stretches of entries that are the file from index base on, by the words of the format page.
func stretchesOf(entries [][]byte, base uint64) (all []Stretch) {
	var before Entry
	var leaves []byte
	any := false
	end := func() {
		if any {
			all[len(all)-1].Sum = sha256.Sum256(leaves)
		}
		leaves = nil
	}
	for i, raw := range entries {
		e, err := ParseEntry(raw)
		if err != nil || e.Kind != KindStep {
			continue
		}
		leaf := tlog.RecordHash(raw)
		if !any || leaf[0] == 0 || e.Generation != before.Generation || e.Step <= before.Step || e.Seq <= before.Seq || all[len(all)-1].Count == 4096 {
			end()
			all = append(all, Stretch{Index: base + uint64(i), Generation: e.Generation, FirstStep: e.Step})
		}
		s := &all[len(all)-1]
		s.Count++
		s.LastStep = e.Step
		leaves = append(leaves, leaf[:]...)
		before, any = e, true
	}
	end()
	return all
}

// TestStretches: of any log the outlines have the stretches that its entries make, whoever made the outline.
func TestStretches(t *testing.T) {
	o := quickOptions(t)
	rapid.Check(t, func(t *rapid.T) {
		w := newLogWriter(t, o)
		w.odd = rapid.Bool().Draw(t, "odd")
		for i := range rapid.IntRange(1, 60).Draw(t, "entries") {
			e := step(i)
			if w.rng.IntN(5) == 0 {
				e = edgeStep(i)
			}
			e.Generation = uint32(i / 25)
			w.put(e)
		}
		m := w.end()
		infos, err := segment.List(m, testDir)
		if err != nil {
			t.Fatal(err)
		}
		files := map[string][][]byte{}
		for it, err := range Entries(m, testDir) {
			if f := new(Fault); err != nil && !(errors.As(err, &f) && f.Benign()) {
				t.Fatal(err)
			}
			files[it.File] = append(files[it.File], bytes.Clone(it.Raw))
		}
		var want, got []Stretch
		outlined := 0
		for _, info := range infos {
			if ends, err := segment.ReadEnds(m, info.Path); err == nil && ends.Sealed {
				want = append(want, stretchesOf(files[info.Name], info.Base)...)
				outlined++
			}
		}
		r := NewStepReader(m, testDir)
		defer r.Close()
		for {
			if s, ok := r.Stretch(); ok {
				got = append(got, s)
				r.Skip()
				continue
			}
			if _, err := r.Next(); err == io.EOF {
				break
			} else if f := new(Fault); err != nil && !errors.As(err, &f) {
				t.Fatal(err)
			}
		}
		if !slices.Equal(got, want) {
			t.Fatalf("of %d files the stretches are\n%+v, want\n%+v", outlined, got, want)
		}
	})
}

// A merger finds out which steps of two logs differ, as a comparer does. With skips it passes equal stretches.
type merger struct {
	t     rapid.TB
	skips bool
	sides [2]mergeSide
	diff  []string // what is different, in order
	equal uint64   // entries that are the same
	read  uint64   // of them, those that were read
}

type mergeSide struct {
	r      *StepReader
	e      StepEntry
	have   bool
	done   bool
	faults int
}

// fill makes sure that there is an entry.
func (s *mergeSide) fill(t rapid.TB) {
	for !s.have && !s.done {
		e, err := s.r.Next()
		switch {
		case err == nil:
			s.e, s.have = e, true
		case err == io.EOF:
			s.done = true
		default:
			if f := new(Fault); !errors.As(err, &f) {
				t.Fatalf("%v", err)
			}
			s.faults++
		}
	}
}

func (m *merger) run() {
	a, b := &m.sides[0], &m.sides[1]
	for {
		if m.skips && !a.have && !b.have {
			sa, okA := a.r.Stretch()
			sb, okB := b.r.Stretch()
			if okA && okB && sa.Sum == sb.Sum && sa.Count == sb.Count {
				m.equal += sa.Count
				a.r.Skip()
				b.r.Skip()
				continue
			}
		}
		a.fill(m.t)
		b.fill(m.t)
		less := func(x, y *mergeSide) bool {
			return x.have && (!y.have || x.e.Generation < y.e.Generation || x.e.Generation == y.e.Generation && x.e.Step < y.e.Step)
		}
		switch {
		case !a.have && !b.have:
			return
		case less(a, b):
			m.diff = append(m.diff, fmt.Sprintf("a %d %d", a.e.Generation, a.e.Step))
			a.have = false
		case less(b, a):
			m.diff = append(m.diff, fmt.Sprintf("b %d %d", b.e.Generation, b.e.Step))
			b.have = false
		default:
			if bytes.Equal(a.e.Raw, b.e.Raw) {
				m.equal++
				m.read++
			} else {
				m.diff = append(m.diff, fmt.Sprintf("%d %d", a.e.Generation, a.e.Step))
			}
			a.have, b.have = false, false
		}
	}
}

func merged(t rapid.TB, a, b vfs.FS, skips bool) *merger {
	m := &merger{t: t, skips: skips, sides: [2]mergeSide{{r: NewStepReader(a, testDir)}, {r: NewStepReader(b, testDir)}}}
	m.run()
	for i := range m.sides {
		if err := m.sides[i].r.Close(); err != nil {
			t.Fatalf("%v", err)
		}
	}
	return m
}

// twins are two logs of almost the same steps, each with other entries in between and other files.
func twins(t *rapid.T, o Options) (a, b *vfs.Mem) {
	wa, wb := newLogWriter(t, o), newLogWriter(t, o)
	rng := chances(t)
	for i := range rng.IntN(120) {
		e := step(i)
		if rng.IntN(6) == 0 {
			e = edgeStep(i)
		}
		e.Generation = uint32(i / 50)
		other := *e
		switch rng.IntN(40) {
		case 0:
			other.Nonfinite ^= 1
		case 1:
			wa.put(e)
			continue
		}
		wa.put(e)
		wb.put(&other)
	}
	return wa.end(), wb.end()
}

// TestMergeWithSkips: with skips one finds what one finds without. Where files are damaged that holds of what both have read.
func TestMergeWithSkips(t *testing.T) {
	o := quickOptions(t)
	skipped := uint64(0)
	rapid.Check(t, func(t *rapid.T) {
		a, b := twins(t, o)
		plain, quick := merged(t, a, b, false), merged(t, a, b, true)
		if !slices.Equal(quick.diff, plain.diff) || quick.equal != plain.equal || plain.read != plain.equal {
			t.Fatalf("with skips %v, %d equal, without %v, %d equal", quick.diff, quick.equal, plain.diff, plain.equal)
		}
		skipped += quick.equal - quick.read
		want := plain.diff
		hurt(t, a)
		plain, quick = merged(t, a, b, false), merged(t, a, b, true)
		// What damage has taken from a is only in b then; what a stretch vouches for need not be read.
		for _, d := range quick.diff {
			if !slices.Contains(plain.diff, d) {
				t.Fatalf("damaged, %q is found with skips only: %q", d, plain.diff)
			}
		}
		for _, d := range plain.diff {
			if !slices.Contains(quick.diff, d) && slices.Contains(want, d) {
				t.Fatalf("damaged, %q is not found with skips: %q", d, quick.diff)
			}
		}
		if quick.sides[0].faults > plain.sides[0].faults {
			t.Fatalf("%d faults with skips, %d without", quick.sides[0].faults, plain.sides[0].faults)
		}
	})
	if skipped < 50 {
		t.Errorf("only %d entries were passed", skipped)
	}
}

// TestSkipReadsNothing: equal files are passed by their ends.
func TestSkipReadsNothing(t *testing.T) {
	m := closedLog(t, 2000, 100_000)
	in := vfs.Inject(m)
	if got := merged(t, in, m, true); got.equal != 1998 || got.read != 0 || got.diff != nil {
		t.Errorf("%+v", got)
	}
	infos, err := segment.List(m, testDir)
	must(t, err)
	if n := in.Calls(vfs.OpRead); len(infos) < 2 || n > 8*len(infos) {
		t.Errorf("%d reads of %d files", n, len(infos))
	}
}

// TestStretchOfMany: a stretch ends at 4096 entries whatever they are.
func TestStretchOfMany(t *testing.T) {
	var x stretcher
	leaf := tlog.Hash{1}
	for i := range uint64(10_000) {
		x.add(&Steps{0, 1, i, i, i, i}, &leaf)
	}
	b, ok := x.append(nil)
	if !ok || x.count != 2 || x.run.Count != 10_000-2*4096 || len(b) != stretchesLen+3*stretchLen {
		t.Errorf("%d and one of %d, %d bytes", x.count, x.run.Count, len(b))
	}
}

// TestOutlineBare: stretches that do not fit are left out, and what is kept until then is bounded.
func TestOutlineBare(t *testing.T) {
	var o outliner
	leaf := tlog.Hash{0}
	add := func(i int) {
		o.expect(&leaf)
		o.Add(0, step(i).Append(nil))
	}
	const most = (segment.MaxIndex - outlineHeader - itemStepsLen - stretchesLen) / stretchLen
	for i := range most {
		add(i)
	}
	for i, bare := range []bool{false, true, true, true} {
		if i > 0 {
			add(most + i)
		}
		b := o.Index()
		got, err := readOutline(b, o.entries, nil, nil)
		if err != nil || got != bare || len(b) > segment.MaxIndex {
			t.Errorf("%d steps more than fit: bare %v, %d bytes, %v", i, got, len(b), err)
		}
	}
	if !o.stretch.full || o.stretch.out != nil {
		t.Errorf("%d bytes are kept", len(o.stretch.out))
	}
}

// FuzzOutline: what is accepted is what an outliner makes of entries that there can be.
func FuzzOutline(f *testing.F) {
	for _, v := range vectorOutlines() {
		f.Add(v.bytes, v.Size)
	}
	f.Fuzz(func(t *testing.T, b []byte, entries uint64) {
		if outlineError(b, entries) != nil || entries > 10_000 {
			return
		}
		again, sums := remake(t, b, entries)
		same := bytes.Clone(b)
		for i := range sums { // sums are of leaf hashes, which nobody can choose
			copy(same[len(b)-i*stretchLen-stretchSum:], again[len(again)-i*stretchLen-stretchSum:][:stretchSum])
		}
		if !bytes.Equal(again, same) {
			t.Fatalf("%x is accepted, and would be made as %x", b, again)
		}
	})
}

// remake makes an outline of entries that the outline b can be of, and returns how many stretches it has.
func remake(t *testing.T, b []byte, entries uint64) (again []byte, stretches int) {
	var list []Stretch
	bare, err := readOutline(b, entries, nil, func(s Stretch) { list = append(list, s) })
	must(t, err)
	o := outliner{plain: b[0] == outlinePlain}
	index, left, rest := uint64(0), uint64(0), list
	_, _ = readOutline(b, entries, func(run Steps, raw []byte) bool {
		if run.Count == 0 {
			checkStepOf(t, raw)
			o.Add(0, raw)
			index++
			return true
		}
		e := Entry{Kind: KindStep, Generation: run.Generation, Step: run.FirstStep, Seq: run.FirstSeq}
		for i := range run.Count {
			leaf := tlog.Hash{1}
			if len(rest) > 0 && rest[0].Index == index {
				left, e.Step, leaf[0] = rest[0].Count, rest[0].FirstStep, 0
			}
			if left--; len(rest) > 0 && left == 0 {
				e.Step, rest = rest[0].LastStep, rest[1:]
			}
			if i == run.Count-1 {
				e.Step, e.Seq = run.LastStep, run.LastSeq
			}
			o.expect(&leaf)
			o.Add(0, e.Append(nil))
			e.Step, e.Seq, index = e.Step+1, e.Seq+1, index+1
		}
		return true
	}, nil)
	if bare {
		list = nil
	}
	return o.Index(), len(list)
}
