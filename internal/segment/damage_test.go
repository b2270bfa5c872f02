package segment_test

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/usp-project/usp/internal/segment"
	"github.com/usp-project/usp/internal/vfs"
)

// sample is a file of three batches of 5 frames from ordinal 100, each written when those before were
// durable, in sealed form and with preallocated space. at are the offsets of the batches and the footer.
func sample() (sealed, active []byte, at [4]int) {
	r := newRaw(100, "usp-schema v1\n", 4096)
	for i := range 3 {
		at[i] = r.len()
		r.batch(5, r.len(), nil)
	}
	at[3] = r.len()
	active = append(bytes.Clone(r.data), make([]byte, 1024)...)
	return r.batch(0, r.len(), nil).data, active, at
}

// Writer and the independent builder agree to the byte.
func TestRawIsWhatWriterWrites(t *testing.T) {
	want, _, _ := sample()
	m := newFS(t)
	w := create(t, m, 100)
	for range 3 {
		appendTo(t, w, w.Next()+5)
	}
	_, err := w.Seal()
	check(t, err)
	got, err := vfs.ReadFile(m, w.Path(), 1<<20)
	check(t, err)
	if !bytes.Equal(got, want) {
		t.Error(cmp.Diff(want, got))
	}
}

func TestEveryByteFlipped(t *testing.T) {
	sealed, _, at := sample()
	m := newFS(t)
	for i := range sealed {
		if i > 256 && i < 4000 { // the header's padding: a sample is enough
			i -= i % 61
		}
		data := bytes.Clone(sealed)
		data[i] ^= 0x10
		path := write(t, m, data)
		if i < 4096 {
			headerDamage(t, m, path, i)
			continue
		}
		b, _ := slices.BinarySearch(at[:], i+1)
		b-- // the batch that holds byte i
		got := readAll(t, m, path)
		if b == 3 {
			// Without its footer a file is not sealed; that it was is in the log.
			if got.Sealed || got.Torn != int64(at[3]) || len(got.Ordinals) != 15 {
				t.Errorf("byte %d of the footer: %+v", i, got)
			}
			continue
		}
		want := result{Corrupt: [][2]int64{{int64(at[b]), int64(at[b+1])}}, Sealed: true}
		for o := uint64(100); o < 115; o++ {
			if int(o-100)/5 != b {
				want.Ordinals = append(want.Ordinals, o)
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("byte %d: %s", i, diff)
		}
	}
}

// headerDamage wants one of the distinct errors and no panic; Repair must not touch the file.
func headerDamage(t *testing.T, fsys vfs.FS, path string, i int) {
	t.Helper()
	_, err := segment.Open(fsys, path)
	var corrupt *segment.CorruptError
	if i < 8 {
		if !errors.Is(err, segment.ErrNotSegment) {
			t.Errorf("byte %d: %v", i, err)
		}
	} else if !errors.As(err, &corrupt) || errors.Is(err, segment.ErrVersion) {
		t.Errorf("byte %d: %v", i, err)
	}
	before, rerr := vfs.ReadFile(fsys, path, 1<<20)
	check(t, rerr)
	if _, err := segment.Repair(fsys, path); err == nil {
		t.Errorf("byte %d: repaired", i)
	}
	if after, _ := vfs.ReadFile(fsys, path, 1<<20); !bytes.Equal(before, after) {
		t.Errorf("byte %d: Repair changed the file", i)
	}
}

func TestEveryByteFlippedInActive(t *testing.T) {
	_, active, at := sample()
	m := newFS(t)
	for i := at[0]; i < len(active); i++ {
		data := bytes.Clone(active)
		data[i] ^= 0x80
		got := readAll(t, m, write(t, m, data))
		b, _ := slices.BinarySearch(at[:], i+1)
		switch b--; b {
		case 0, 1: // a later batch has promised it
			if len(got.Ordinals) != 10 || len(got.Corrupt) != 1 || got.Torn != 0 || got.Corrupt[0] != [2]int64{int64(at[b]), int64(at[b+1])} {
				t.Errorf("byte %d: %+v", i, got)
			}
		default: // nobody has
			if want := min(b*5, 15); len(got.Ordinals) != want || len(got.Corrupt) != 0 || got.Torn != int64(at[b]) {
				t.Errorf("byte %d: %+v", i, got)
			}
		}
	}
}

func TestEveryPrefix(t *testing.T) {
	sealed, _, at := sample()
	m := newFS(t)
	for n := range len(sealed) {
		if n > 256 && n < 4000 {
			n -= n % 61
		}
		path := write(t, m, sealed[:n])
		if n < 4096 {
			_, err := segment.Open(m, path)
			var corrupt *segment.CorruptError
			if n < 8 && !errors.Is(err, segment.ErrNotSegment) || n >= 8 && !errors.As(err, &corrupt) {
				t.Errorf("%d bytes: %v", n, err)
			}
			continue
		}
		got := readAll(t, m, path)
		b, whole := slices.BinarySearch(at[:], n)
		if !whole {
			b--
		}
		want := result{Ordinals: seq(100, 100+uint64(b)*5)}
		if !whole {
			want.Torn = int64(at[b])
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%d bytes: %s", n, diff)
		}
		s, err := segment.Repair(m, path)
		if err != nil || s.Count != uint64(b)*5 {
			t.Errorf("%d bytes: repaired %+v, %v", n, s, err)
		}
		if b > 0 {
			if want.Torn, want.Sealed = 0, true; cmp.Diff(want, readAll(t, m, path)) != "" {
				t.Errorf("%d bytes: repaired, reads as %+v", n, readAll(t, m, path))
			}
		}
		removeAll(t, m)
	}
}

func removeAll(t *testing.T, fsys vfs.FS) {
	t.Helper()
	list, err := fsys.ReadDir(dir)
	check(t, err)
	for _, e := range list {
		check(t, fsys.Remove(dir+"/"+e.Name()))
	}
}

// damageCase is a file and what a Reader must say of it; at are the offsets of its batches.
type damageCase struct {
	name string
	file func(r *raw) *raw // r holds frames 100 to 104
	want func(at []int) result
}

func flip(r *raw, at int) *raw {
	r.data[at] ^= 1
	return r
}

// tailCases are those in which it is decided whether a tail is torn.
func tailCases() []damageCase {
	torn := func(at []int) result { return result{Ordinals: seq(100, 105), Torn: int64(at[1])} }
	return []damageCase{
		{"torn, a later batch has promised less", func(r *raw) *raw {
			end := r.len()
			mid := r.batch(5, end, nil).len()
			return flip(r.batch(5, end, nil).zeros(512), mid-9)
		}, torn},
		{"hole, a later batch has promised less", func(r *raw) *raw {
			end := r.len()
			mid := r.batch(5, end, nil).len()
			clear(r.data[end:mid])
			return r.batch(5, end, nil).zeros(64)
		}, torn},
		{"hole that was promised", func(r *raw) *raw {
			end := r.len()
			mid := r.batch(5, end, nil).len()
			clear(r.data[end:mid])
			return r.batch(5, mid, nil)
		}, func(at []int) result {
			return result{
				Ordinals: append(seq(100, 105), seq(110, 115)...),
				Corrupt:  [][2]int64{{int64(at[1]), int64(at[2])}},
			}
		}},
		{"two damaged batches side by side are one range", func(r *raw) *raw {
			r.batch(5, r.len(), nil)
			a := r.len()
			r.batch(5, a, nil)
			b := r.len()
			return flip(flip(r.batch(5, b, nil), a-1), b-9)
		}, func(at []int) result {
			return result{
				Ordinals: append(seq(100, 105), seq(115, 120)...),
				Corrupt:  [][2]int64{{int64(at[1]), int64(at[3])}},
			}
		}},
		{"batch of another file", func(r *raw) *raw {
			other := newRaw(100, "other", 4096).batch(5, 4096, nil).batch(5, 4096, nil)
			r.at = other.at
			r.data = append(r.data, other.data[r.len():]...)
			return r
		}, torn},
		{"batch at another place", func(r *raw) *raw {
			r.at = append(r.at, r.len())
			r.data = append(r.data, r.data[4096:]...)
			return r
		}, torn},
		{"footer and zeros", func(r *raw) *raw { return r.batch(0, r.len(), nil).zeros(100) },
			func([]int) result { return result{Ordinals: seq(100, 105)} }},
	}
}

// headerCases have right checksums over fields that no Writer writes.
func headerCases() []damageCase {
	torn := func(at []int) result { return result{Ordinals: seq(100, 105), Torn: int64(at[1])} }
	var cases []damageCase
	for name, edit := range map[string]func(*fields){
		"footer with frames":          func(f *fields) { f.flags = 1 },
		"batch without frames":        func(f *fields) { f.count, f.payload = 0, 0 },
		"more frames than it holds":   func(f *fields) { f.count = 3 },
		"fewer frames than it holds":  func(f *fields) { f.count = 1 },
		"unknown flag":                func(f *fields) { f.flags = 4 },
		"index with frames":           func(f *fields) { f.flags = 2 },
		"promise about the future":    func(f *fields) { f.synced += 8 },
		"payload over the limit":      func(f *fields) { f.payload = segment.MaxBatch + 1 },
		"payload over the file's end": func(f *fields) { f.payload += 8 },
		"ordinals that overflow":      func(f *fields) { f.first = 1<<64 - 1 },
	} {
		cases = append(cases, damageCase{name, func(r *raw) *raw { return r.batch(2, r.len(), edit) }, torn})
	}
	return append(cases,
		damageCase{"ordinals repeated", func(r *raw) *raw {
			r.batch(3, r.len(), func(f *fields) { f.first = 103 })
			r.next = 105
			return r.batch(5, r.len(), nil)
		}, func(at []int) result {
			return result{Ordinals: seq(100, 110), Corrupt: [][2]int64{{int64(at[1]), int64(at[2])}}}
		}},
		damageCase{"ordinals missing", func(r *raw) *raw {
			r.next = 107
			return r.batch(3, r.len(), nil)
		}, func(at []int) result {
			return result{
				Ordinals: append(seq(100, 105), seq(107, 110)...),
				Corrupt:  [][2]int64{{int64(at[1]), int64(at[1])}},
			}
		}},
		damageCase{"data behind the footer", func(r *raw) *raw { return r.batch(0, r.len(), nil).zeros(8).batch(0, 4096, nil) },
			func(at []int) result {
				return result{
					Ordinals: seq(100, 105), Sealed: true,
					Corrupt: [][2]int64{{int64(at[1] + 40), int64(at[2] + 40)}},
				}
			}},
	)
}

func TestDamage(t *testing.T) {
	for _, test := range append(tailCases(), headerCases()...) {
		t.Run(test.name, func(t *testing.T) {
			m := newFS(t)
			r := test.file(newRaw(100, "", 4096).batch(5, 4096, nil))
			if diff := cmp.Diff(test.want(r.at), readAll(t, m, write(t, m, r.data))); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// A frame may hold the image of a batch of this very file; damage around it must not bring it to life.
func TestBatchInsideAFrame(t *testing.T) {
	image := newRaw(100, "", 4096).batch(5, 4096, nil)
	inner := image.data[4096:]
	r := newRaw(100, "", 4096)
	r.put(fields{count: 1, payload: uint32(4 + len(inner)), first: 100, synced: 4096}, append(le.AppendUint32(nil, uint32(len(inner))), inner...))
	r.next++
	mid := r.len()
	r.batch(4, mid, nil)
	for i := 4096; i < mid; i++ {
		m := newFS(t)
		data := bytes.Clone(r.data)
		data[i] ^= 4
		got := readAll(t, m, write(t, m, data))
		if !slices.Equal(got.Ordinals, seq(101, 105)) || len(got.Corrupt) != 1 || got.Corrupt[0] != [2]int64{4096, int64(mid)} {
			t.Errorf("byte %d: %+v", i, got)
		}
	}
}

// Damage in the middle is reported, and stays what it is when the file is repaired.
func TestRepairLeavesTheMiddle(t *testing.T) {
	_, active, at := sample()
	active[at[1]+50] ^= 1
	m := newFS(t)
	path := write(t, m, active)
	s, err := segment.Repair(m, path)
	check(t, err)
	if s.Damaged != 1 || s.Count != 15 || s.Torn != 0 {
		t.Errorf("%+v", s)
	}
	want := result{
		Ordinals: append(seq(100, 105), seq(110, 115)...),
		Corrupt:  [][2]int64{{int64(at[1]), int64(at[2])}}, Sealed: true,
	}
	if diff := cmp.Diff(want, readAll(t, m, path)); diff != "" {
		t.Error(diff)
	}
	data, err := vfs.ReadFile(m, path, 1<<20)
	check(t, err)
	if !bytes.Equal(data[:at[3]], active[:at[3]]) {
		t.Error("Repair changed the damaged bytes")
	}
}

func TestRepairSetsTheTailAside(t *testing.T) {
	sealed, _, at := sample()
	m := newFS(t)
	torn := sealed[at[2] : at[3]-20]
	for i, suffix := range []string{".torn", ".torn", ".torn.1"} {
		data := append(bytes.Clone(sealed[:at[2]]), torn...)
		if i == 2 {
			data[len(data)-1] ^= 1 // another tail; the second is the same as the first
		}
		path := write(t, m, append(data, make([]byte, 999)...))
		s, err := segment.Repair(m, path)
		check(t, err)
		kept, err := vfs.ReadFile(m, path+suffix, 1<<20)
		check(t, err)
		if !bytes.Equal(kept, data[at[2]:]) || s.Torn != int64(len(kept)) {
			t.Errorf("%s: kept %d bytes of %d, %+v", suffix, len(kept), len(data)-at[2], s)
		}
		check(t, m.Chmod(path, 0o600))
	}
}

func TestVersion(t *testing.T) {
	for name, edit := range map[string]func([]byte){
		"version": func(b []byte) { b[8] = 3 },
		"zero":    func(b []byte) { b[8] = 0 },
		"flags":   func(b []byte) { b[20] = 1 },
	} {
		r := newRaw(100, "", 4096)
		edit(r.data)
		m := newFS(t)
		path := write(t, m, r.sign().data)
		if _, err := segment.Open(m, path); !errors.Is(err, segment.ErrVersion) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestHostileFile measures reading by what it reads: it must be linear in the size of the file.
func TestHostileFile(t *testing.T) {
	const size = 1 << 20
	fill := func(unit []byte) []byte {
		r := newRaw(100, "", 4096)
		return append(r.data, bytes.Repeat(unit, (size-len(r.data))/len(unit))...)
	}
	chain := newRaw(100, "", 4096) // good headers over bad payloads, of which each seems to cover the rest
	for chain.len() < size/4 {
		at := chain.len()
		chain.put(fields{count: 1, payload: uint32(size - at - 40), first: 100, synced: uint64(at)}, nil)
	}
	many := newRaw(100, "", 4096) // every other batch is bad
	for i := range 4000 {
		many.batch(1, many.len(), nil)
		if i%2 == 1 {
			many.data[many.len()-1] ^= 1
		}
	}
	for name, data := range map[string][]byte{
		"magic everywhere": fill([]byte("UBAT\x00\x00\x00\x00")),
		"chain":            append(chain.data, make([]byte, size-chain.len())...),
		"many damaged":     many.data,
		"ones":             fill([]byte{1}),
	} {
		t.Run(name, func(t *testing.T) {
			m := newFS(t)
			c := &counting{FS: m}
			r, err := segment.Open(c, write(t, m, data))
			check(t, err)
			for range 1 << 20 {
				_, _, err = r.Next()
				var torn *segment.TornError
				if err == io.EOF || errors.As(err, &torn) {
					break
				}
			}
			if c.bytes > 6*len(data)+4<<20 {
				t.Errorf("read %d bytes of a file of %d", c.bytes, len(data))
			}
		})
	}
}

// counting counts the bytes asked for.
type counting struct {
	vfs.FS
	bytes int
}

func (c *counting) OpenFile(name string, flag int, perm fs.FileMode) (vfs.File, error) {
	f, err := c.FS.OpenFile(name, flag, perm)
	return &countingFile{f, c}, err
}

type countingFile struct {
	vfs.File
	c *counting
}

func (f *countingFile) ReadAt(p []byte, off int64) (int, error) {
	f.c.bytes += len(p)
	return f.File.ReadAt(p, off)
}
