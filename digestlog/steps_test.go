package digestlog

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"slices"
	"testing"

	"golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"

	"github.com/usp-project/usp/internal/segment"
	"github.com/usp-project/usp/internal/vfs"
)

// edgeStep is step i whose leaf hash begins a stretch.
func edgeStep(i int) *Entry {
	e := step(i)
	for n := 0; ; n++ {
		e.Ext = fmt.Append(nil, n)
		if leaf := tlog.RecordHash(e.Append(nil)); leaf[0] == 0 {
			return e
		}
	}
}

// A logWriter writes a log as a recorder does, with all that can come between two entries.
type logWriter struct {
	t   *rapid.T
	m   *vfs.Mem
	o   Options
	l   *Log
	odd bool       // steps of any generation come between
	rng *rand.Rand // rapid prefers small numbers, and here they are frequencies
}

func newLogWriter(t *rapid.T, o Options) *logWriter {
	w := &logWriter{t: t, m: vfs.NewMem(), o: o, rng: chances(t)}
	w.o.FS = w.m
	w.l = w.reopen()
	return w
}

func chances(t *rapid.T) *rand.Rand { return rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1)) }

func (w *logWriter) reopen() *Log {
	l, err := Open(testDir, w.o)
	if err != nil {
		w.t.Fatal(err)
	}
	return l
}

// put writes entries down, and then now and then what a recorder does between two of them.
func (w *logWriter) put(entries ...*Entry) {
	for _, e := range entries {
		if _, err := w.l.Append(e); err != nil {
			w.t.Fatal(err)
		}
	}
	var err error
	switch w.rng.IntN(30) {
	case 0, 1, 2, 3:
		err = w.l.Sync()
	case 4:
		err = w.l.Close()
		w.l = w.reopen()
	case 5:
		err = errors.Join(w.l.Sync(), w.l.Abort())
		w.l = w.reopen()
	case 6, 7, 8:
		if e := genEntry(w.t); w.odd || e.Kind != KindStep {
			_, err = w.l.Append(&e)
		}
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// end closes the log, or leaves it as a killed recorder does.
func (w *logWriter) end() *vfs.Mem {
	err := w.l.Sync()
	if w.rng.IntN(4) > 0 {
		err = errors.Join(err, w.l.Close())
	} else {
		err = errors.Join(err, w.l.Abort())
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return w.m
}

// hurt damages some of the files, or takes one away.
func hurt(t *rapid.T, m *vfs.Mem) {
	infos, err := segment.List(m, testDir)
	if err != nil || len(infos) == 0 {
		return
	}
	for range rapid.IntRange(0, 3).Draw(t, "damage") {
		info := infos[rapid.IntRange(0, len(infos)-1).Draw(t, "file")]
		f, err := vfs.ReadFile(m, info.Path, 1<<20)
		if err != nil || len(f) == 0 {
			continue // taken away
		}
		switch at := rapid.IntRange(0, len(f)-1).Draw(t, "at"); rapid.IntRange(0, 5).Draw(t, "how") {
		case 0:
			err = m.Remove(info.Path)
		case 1:
			err = vfs.Replace(m, info.Path, f[:at], 0o600)
		default:
			f[at] ^= 1
			err = vfs.Replace(m, info.Path, f, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// A told is what a reader says of the STEP entries of a log.
type told struct {
	steps  []string
	faults []string
}

func (r *told) add(index uint64, raw []byte) {
	r.steps = append(r.steps, fmt.Sprintf("%d %x", index, raw))
}

// fault takes a fault in; false: err is none.
func (r *told) fault(err error) bool {
	var f *Fault
	if errors.As(err, &f) {
		r.faults = append(r.faults, fmt.Sprintf("at %d: %v", len(r.steps), f))
	}
	return f != nil
}

// byEntries is what Entries says.
func byEntries(t rapid.TB, fsys vfs.FS) (all told) {
	for it, err := range Entries(fsys, testDir) {
		if err != nil && !all.fault(err) {
			t.Fatalf("%v", err)
		}
		if err == nil && it.Entry.Kind == KindStep {
			all.add(it.Index, it.Raw)
		}
	}
	return all
}

// TestStepReader: of any log, whole or damaged, it says what Entries says.
func TestStepReader(t *testing.T) {
	o := quickOptions(t)
	rapid.Check(t, func(t *rapid.T) {
		w := newLogWriter(t, o)
		w.odd = true
		for i := range rapid.IntRange(1, 60).Draw(t, "entries") {
			e := step(i)
			if w.rng.IntN(5) == 0 {
				e = edgeStep(i)
			}
			e.Generation = uint32(i / 25)
			w.put(e)
		}
		m := w.end()
		if rapid.Bool().Draw(t, "hurt") {
			hurt(t, m)
		}
		want := byEntries(t, m)
		var got told
		r := NewStepReader(m, testDir)
		for {
			look := rapid.Bool().Draw(t, "look")
			var s Stretch
			begins := false
			if look {
				s, begins = r.Stretch()
			}
			e, err := r.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				if !got.fault(err) {
					t.Fatal(err)
				}
				continue
			}
			parsed, err := ParseEntry(e.Raw)
			if err != nil || parsed.Step != e.Step || parsed.Seq != e.Seq || parsed.Generation != e.Generation {
				t.Fatalf("%+v, parsed as %+v, %v", e, parsed, err)
			}
			if begins && (s.Index != e.Index || s.FirstStep != e.Step || s.Generation != e.Generation) {
				t.Fatalf("stretch %+v begins with %+v", s, e)
			}
			got.add(e.Index, e.Raw)
		}
		if !slices.Equal(got.steps, want.steps) || !slices.Equal(got.faults, want.faults) {
			t.Fatalf("got\n%q\n%q, want\n%q\n%q", got.steps, got.faults, want.steps, want.faults)
		}
		if _, err := r.Next(); err != io.EOF || r.Close() != nil {
			t.Fatalf("behind the end: %v", err)
		}
	})
}

// TestStepEntry: what is taken from the bytes is what is in the entry.
func TestStepEntry(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := genEntry(t)
		e.Kind = KindStep
		if e.Validate() != nil {
			t.Skip()
		}
		s := StepEntry{Raw: e.Append(nil)}
		ok := s.Nonfinite() == e.Nonfinite && s.Len() == len(e.Digests) && bytes.Equal(s.Ext(), e.Ext) && bytes.Equal(s.Body(), s.Raw[24:])
		for i := range e.Digests {
			ok = ok && bytes.Equal(s.Digest(i), e.Digests[i][:])
		}
		if !ok {
			t.Fatalf("%x of %+v", s.Raw, e)
		}
	})
}

// TestStepReaderErrors: an error of the file system comes out as what it is, and is the last.
func TestStepReaderErrors(t *testing.T) {
	m := closedLog(t, 40, 5<<10)
	for nth := 1; ; nth++ {
		in := vfs.Inject(m, vfs.Rule{Nth: nth})
		r := NewStepReader(in, testDir)
		n := 0
		var err error
		for ; err == nil; n++ {
			_, err = r.Next()
		}
		if len(in.Fired()) == 0 {
			if nth < 20 || n != 39 {
				t.Errorf("only %d operations, %d entries", nth, n)
			}
			return
		}
		var f *Fault
		if _, again := r.Next(); errors.As(err, &f) || err == io.EOF && n != 39 || again != err {
			t.Errorf("after %v failed: %d entries, %v, then %v", in.Fired(), n, err, again)
		}
		_ = r.Close()
	}
}

func TestStepReaderClosed(t *testing.T) {
	r := NewStepReader(closedLog(t, 40, 5<<10), testDir)
	_, err := r.Next()
	must(t, err)
	must(t, r.Close())
	if _, err := r.Next(); err != io.EOF || r.Close() != nil {
		t.Errorf("after Close: %v", err)
	}
	if _, ok := r.Stretch(); ok {
		t.Error("a stretch after Close")
	}
	r.Skip()
	r = NewStepReader(vfs.NewMem(), testDir)
	if _, err := r.Next(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of nothing: %v", err)
	}
}
