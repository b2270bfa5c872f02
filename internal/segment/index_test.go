package segment_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/usp-project/usp/internal/segment"
	"github.com/usp-project/usp/internal/vfs"
)

// summary is an index for tests: how many frames, and a checksum over all of them.
type summary struct {
	next uint64
	sum  uint32
}

func (s *summary) Add(ordinal uint64, frame []byte) {
	s.next = ordinal + 1
	s.sum = crc32.Update(s.sum, crc32.IEEETable, frame)
}

func (s *summary) Index() []byte {
	return binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint64(nil, s.next), s.sum)
}

func newSummary(segment.Header) segment.Indexer { return new(summary) }

// indexed are options for a segment with an index.
func indexed(fsys vfs.FS) segment.Options {
	o := options(fsys)
	o.Index = new(summary)
	return o
}

// summaryOf is the index that a segment with the frames [base, next) has.
func summaryOf(base, next uint64) []byte {
	var s summary
	for i := base; i < next; i++ {
		s.Add(i, frame(i))
	}
	return s.Index()
}

// checkIndex reads the ends of a file that is sealed as s says.
func checkIndex(fsys vfs.FS, path string, s segment.Sealed) error {
	if s.Count == 0 {
		return nil
	}
	e, err := segment.ReadEnds(fsys, path)
	if err != nil {
		return err
	}
	next := s.Base + s.Count
	if !e.Sealed || e.Next != next || e.Size != s.Size || e.Header.Base != s.Base || !bytes.Equal(e.Index, summaryOf(s.Base, next)) {
		return fmt.Errorf("sealed as %+v, its ends are %+v, want index %x", s, e, summaryOf(s.Base, next))
	}
	return nil
}

// indexedSample is sample with an index.
func indexedSample() (sealed []byte, at [5]int) {
	r := newRaw(100, "usp-schema v1\n", 4096)
	for i := range 3 {
		at[i] = r.len()
		r.batch(5, r.len(), nil)
	}
	at[3] = r.len()
	r.seal(string(summaryOf(100, 115)))
	at[4] = r.len() - 40
	return r.data, at
}

// Writer and the independent builder agree to the byte, and so does Repair of the same file.
func TestIndexIsWhatWriterWrites(t *testing.T) {
	want, at := indexedSample()
	m := newFS(t)
	w, err := segment.Create(dir, 100, indexed(m))
	check(t, err)
	for range 3 {
		appendTo(t, w, w.Next()+5)
	}
	s, err := w.Seal()
	check(t, err)
	check(t, checkIndex(m, w.Path(), s))
	got, err := vfs.ReadFile(m, w.Path(), 1<<20)
	check(t, err)
	if !bytes.Equal(got, want) {
		t.Error(cmp.Diff(want, got))
	}
	for i, n := range []int{at[3], at[4], len(want), at[3] + 12, at[4] + 39} {
		removeAll(t, m)
		path := write(t, m, append(bytes.Clone(want[:n]), make([]byte, 200)...))
		again, err := segment.RepairIndexed(m, path, newSummary)
		check(t, err)
		if i < 3 && again.Torn != 0 {
			t.Errorf("cut at %d: what an unfinished seal left is set aside: %+v", n, again)
		}
		if again.Torn = 0; again != s {
			t.Errorf("cut at %d and repaired: %+v, want %+v", n, again, s)
		}
	}
}

// What is pending when a segment is sealed goes out with its index in one sync.
func TestSealSyncsOnce(t *testing.T) {
	m := newFS(t)
	in := vfs.Inject(m)
	w, err := segment.Create(dir, 100, indexed(in))
	check(t, err)
	check(t, w.Append(frame(100)))
	before := in.Calls(vfs.OpDatasync | vfs.OpSync)
	_, err = w.Seal()
	check(t, err)
	if n := in.Calls(vfs.OpDatasync|vfs.OpSync) - before; n != 2 {
		t.Errorf("%d syncs", n)
	}
}

// A byte of index or footer that is flipped is found: of the index by anyone, of the footer because the file is not
// sealed any more. Nobody takes the index for what it is not.
func TestEveryByteFlippedOfTheEnd(t *testing.T) {
	sealed, at := indexedSample()
	m := newFS(t)
	for i := at[3]; i < len(sealed); i++ {
		data := bytes.Clone(sealed)
		data[i] ^= 0x10
		path := write(t, m, data)
		got := readAll(t, m, path)
		e, err := segment.ReadEnds(m, path)
		if len(got.Ordinals) != 15 {
			t.Errorf("byte %d: %+v", i, got)
		}
		if i >= at[4] {
			if got.Sealed || got.Torn != int64(at[4]) || err != nil || e.Sealed || e.Index != nil {
				t.Errorf("byte %d of the footer: %+v; ends %+v, %v", i, got, e, err)
			}
			continue
		}
		var corrupt *segment.CorruptError
		want := [2]int64{int64(at[3]), int64(at[4])}
		if !got.Sealed || len(got.Corrupt) != 1 || got.Corrupt[0] != want || !errors.As(err, &corrupt) || corrupt.Offset != want[0] || e.Index != nil {
			t.Errorf("byte %d of the index: %+v; ends %+v, %v", i, got, e, err)
		}
	}
}

func TestEveryPrefixOfTheEnd(t *testing.T) {
	sealed, at := indexedSample()
	m := newFS(t)
	for n := at[3]; n < len(sealed); n++ {
		removeAll(t, m)
		path := write(t, m, sealed[:n])
		if e, err := segment.ReadEnds(m, path); err != nil || e.Sealed || e.Index != nil {
			t.Errorf("%d bytes: %+v, %v", n, e, err)
		}
		if got := readAll(t, m, path); got.Sealed || len(got.Ordinals) != 15 || len(got.Corrupt) > 0 {
			t.Errorf("%d bytes: %+v", n, got)
		}
		s, err := segment.RepairIndexed(m, path, newSummary)
		check(t, err)
		check(t, checkIndex(m, path, s))
	}
}

// Seals with right checksums that no Writer writes. The frames are delivered, the index is not.
func TestHostileIndex(t *testing.T) {
	footer := func(r *raw, count int) *raw { return r.batch(0, r.len(), func(f *fields) { f.count = uint32(count) }) }
	for name, build := range map[string]func(r *raw) *raw{
		"over the limit, no footer": func(r *raw) *raw {
			return r.put(fields{flags: 2, payload: segment.MaxIndex + 8, first: 105, synced: 4096}, make([]byte, segment.MaxIndex+8))
		},
		"frames, and the footer forgets them": func(r *raw) *raw {
			n := r.len()
			r.batch(1, n, nil)
			r.next--
			return footer(r, r.len()-n)
		},
		"longer than the file": func(r *raw) *raw { return footer(r, 1<<20) },
		"over the limit":       func(r *raw) *raw { return footer(r, segment.MaxIndex+48) },
		"not aligned":          func(r *raw) *raw { return footer(r, 44) },
		"a batch of frames":    func(r *raw) *raw { n := r.len(); r.batch(1, n, nil); return footer(r, r.len()-n) },
		"of another ordinal": func(r *raw) *raw {
			n := r.len()
			r.put(fields{flags: 2, payload: 8, first: 104, synced: 4096}, []byte("anything"))
			return footer(r, r.len()-n)
		},
		"not the one in front": func(r *raw) *raw {
			n := r.len()
			r.put(fields{flags: 2, payload: 8, first: 105, synced: 4096}, []byte("anything"))
			r.put(fields{flags: 2, payload: 8, first: 105, synced: 4096}, []byte("anything"))
			return footer(r, r.len()-n)
		},
		"with a count": func(r *raw) *raw {
			n := r.len()
			r.put(fields{flags: 2, payload: 8, count: 1, first: 105, synced: 4096}, []byte("\x04\x00\x00\x00abcd"))
			return footer(r, r.len()-n)
		},
		"empty": func(r *raw) *raw {
			n := r.len()
			r.put(fields{flags: 2, first: 105, synced: 4096}, nil)
			return footer(r, r.len()-n)
		},
		"there, and not pointed to": func(r *raw) *raw { r.seal("anything"); r.data = r.data[:r.len()-40]; return footer(r, 0) },
	} {
		t.Run(name, func(t *testing.T) {
			m := newFS(t)
			r := build(newRaw(100, "", 4096).batch(5, 4096, nil))
			path := write(t, m, r.data)
			got := readAll(t, m, path)
			if len(got.Ordinals) < 5 || len(got.Corrupt) == 0 && got.Torn == 0 {
				t.Errorf("%+v", got)
			}
			if e, _ := segment.ReadEnds(m, path); e.Index != nil {
				t.Errorf("ends %+v", e)
			}
		})
	}
}

// An owner that has no index to give, or one that is too large, gets a segment without.
type noIndex int

func (n noIndex) Add(uint64, []byte) {}
func (n noIndex) Index() []byte      { return make([]byte, n) }

func TestIndexBounds(t *testing.T) {
	for n, want := range map[int]int{0: 0, 1: 1, segment.MaxIndex: segment.MaxIndex, segment.MaxIndex + 1: 0} {
		m := newFS(t)
		o := options(m)
		o.Index = noIndex(n)
		w, err := segment.Create(dir, 0, o)
		check(t, err)
		appendTo(t, w, 10)
		_, err = w.Seal()
		check(t, err)
		e, err := segment.ReadEnds(m, w.Path())
		check(t, err)
		if len(e.Index) != want || !e.Sealed || e.Next != 10 {
			t.Errorf("index of %d bytes: %d, %v, next %d", n, len(e.Index), e.Sealed, e.Next)
		}
		if got := readAll(t, m, w.Path()); !got.Sealed || len(got.Corrupt) > 0 {
			t.Errorf("index of %d bytes: %+v", n, got)
		}
	}
}

// Repair makes no index for a damaged file, whose readers are to find the damage, nor for one of version 1.
func TestNoIndexForDamage(t *testing.T) {
	sealed, at := indexedSample()
	damaged := bytes.Clone(sealed[:at[4]])
	damaged[at[0]+50] ^= 1
	first := newRaw(100, "", 4096)
	first.data[8] = 1
	first.sign().batch(5, 4096, nil)
	for name, data := range map[string][]byte{"damaged": damaged, "version 1": first.data} {
		m := newFS(t)
		path := write(t, m, data)
		_, err := segment.RepairIndexed(m, path, newSummary)
		check(t, err)
		if e, err := segment.ReadEnds(m, path); err != nil || !e.Sealed || e.Index != nil {
			t.Errorf("%s: %+v, %v", name, e, err)
		}
	}
}

// A poisoned segment that had its index already is repaired without leftovers, whatever its successor begins with.
func TestRepairBehindAnIndex(t *testing.T) {
	for nth := 1; nth <= 6; nth++ {
		m := newFS(t)
		in := vfs.Inject(m)
		w, err := segment.Create(dir, 0, indexed(in))
		check(t, err)
		appendTo(t, w, 10)
		check(t, w.Append(frame(10)))
		in.Add(vfs.Rule{Op: vfs.OpMutates, Nth: nth})
		if _, err := w.Seal(); err == nil {
			continue // fewer operations than that
		}
		next, err := w.Continue(indexed(m))
		check(t, err)
		appendTo(t, next, 15)
		for _, after := range []*vfs.Mem{m, m.Crash(rand.New(rand.NewPCG(1, 1)), vfs.Mixed)} {
			s, err := segment.RepairIndexed(after, w.Path(), newSummary)
			check(t, err)
			check(t, checkIndex(after, w.Path(), s))
			if got, err := count(after); err != nil || got != 15 {
				t.Errorf("operation %d: %d frames, %v", nth, got, err)
			}
		}
	}
}

// FuzzEnds gives any bytes to ReadEnds: what it says of a file that reads without damage, the Reader says too.
func FuzzEnds(f *testing.F) {
	for _, v := range vectors() {
		f.Add(v.data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		m := newFS(t)
		path := write(t, m, data)
		e, err := segment.ReadEnds(m, path)
		if err != nil {
			return
		}
		r, err := segment.Open(m, path)
		check(t, err)
		defer r.Close()
		for err == nil {
			_, _, err = r.Next()
		}
		if err == io.EOF && r.Sealed() && (!e.Sealed || r.Ordinal() != e.Next || r.Offset() != e.Size) {
			t.Fatalf("the Reader comes to %d at byte %d; ends %+v", r.Ordinal(), r.Offset(), e)
		}
	})
}

// ReadEnds takes as many reads for a long segment as for a short one.
func TestReadEndsIsConstant(t *testing.T) {
	var reads []int
	for _, frames := range []uint64{1, 2000} {
		m := newFS(t)
		o := indexed(m)
		w, err := segment.Create(dir, 0, o)
		check(t, err)
		appendTo(t, w, frames)
		_, err = w.Seal()
		check(t, err)
		in := vfs.Inject(m)
		_, err = segment.ReadEnds(in, w.Path())
		check(t, err)
		reads = append(reads, in.Calls(vfs.OpRead))
	}
	if reads[0] != reads[1] || reads[0] > 4 {
		t.Errorf("reads %v", reads)
	}
}
