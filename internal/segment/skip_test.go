package segment_test

import (
	"errors"
	"io"
	"slices"
	"syscall"
	"testing"

	"github.com/usp-project/usp/internal/segment"
	"github.com/usp-project/usp/internal/vfs"
	"pgregory.net/rapid"
)

// nextFrame returns the next frame's ordinal, and the ranges of damage before it; false at the end.
func nextFrame(t rapid.TB, r *segment.Reader) (ordinal uint64, damage [][2]int64, ok bool) {
	for {
		b, ordinal, err := r.Next()
		var corrupt *segment.CorruptError
		switch {
		case err == nil:
			if string(b) != string(frame(ordinal)) {
				t.Fatalf("frame %d is another one's", ordinal)
			}
			return ordinal, damage, true
		case errors.As(err, &corrupt):
			damage = append(damage, [2]int64{corrupt.Offset, corrupt.End})
		case err == io.EOF:
			return 0, damage, false
		default:
			t.Fatalf("%v", err)
		}
	}
}

// TestSkipTo: with skips one gets the frames that one gets without, from those asked for on. Damage to a header is
// always reported, as it is without; damage to frames that were passed is not.
func TestSkipTo(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		r := newRaw(100, "", 4096)
		heads := map[[2]int64]uint64{} // damaged headers, and the ordinal behind their batch
		for range rapid.IntRange(1, 12).Draw(rt, "batches") {
			start := r.len()
			r.batch(rapid.IntRange(1, 4).Draw(rt, "count"), start, nil)
			switch rapid.IntRange(0, 5).Draw(rt, "damage") {
			case 0:
				r.data[rapid.IntRange(start, start+35).Draw(rt, "at")] ^= 4
				heads[[2]int64{int64(start), int64(r.len())}] = r.next
			case 1:
				r.data[rapid.IntRange(start+36, r.len()-1).Draw(rt, "at")] ^= 4
			}
		}
		m := newFS(t)
		path := write(t, m, r.batch(0, r.len(), nil).data)
		plain := readAll(t, m, path)
		s, err := segment.Open(m, path)
		check(t, err)
		defer s.Close()
		var reported [][2]int64
		want := plain.Ordinals
		for from := uint64(0); ; {
			if rapid.Bool().Draw(rt, "skip") {
				from += uint64(rapid.IntRange(0, 15).Draw(rt, "by"))
				s.SkipTo(from)
			}
			i, _ := slices.BinarySearch(want, from)
			want = want[i:]
			ordinal, damage, ok := nextFrame(rt, s)
			reported = append(reported, damage...)
			if ok != (len(want) > 0) || ok && ordinal != want[0] {
				rt.Fatalf("frame %d %v, want of %v", ordinal, ok, want)
			}
			if !ok {
				break
			}
			from, want = ordinal+1, want[1:]
		}
		if s.Sealed() != plain.Sealed {
			rt.Fatalf("sealed %v, without skips %v", s.Sealed(), plain.Sealed)
		}
		for head := range heads {
			found := slices.ContainsFunc(reported, func(d [2]int64) bool { return d[0] <= head[0] && head[1] <= d[1] })
			if !found {
				rt.Fatalf("damaged header %v is not in %v", head, reported)
			}
		}
		for _, d := range reported {
			if !slices.ContainsFunc(plain.Corrupt, func(p [2]int64) bool { return p[0] <= d[0] && d[1] <= p[1] }) {
				rt.Fatalf("%v is reported, without skips %v", d, plain.Corrupt)
			}
		}
	})
}

// TestSkipToReadsHeaders: what is passed is not read.
func TestSkipToReadsHeaders(t *testing.T) {
	m := newFS(t)
	w := create(t, m, 100)
	for range 200 {
		for range 100 {
			check(t, w.Append(make([]byte, 1000)))
		}
		check(t, w.Sync())
	}
	_, err := w.Seal()
	check(t, err)
	c := &counting{FS: m}
	r, err := segment.Open(c, w.Path())
	check(t, err)
	defer r.Close()
	before := c.bytes
	r.SkipTo(100 + 199*100 + 50)
	_, ordinal, err := r.Next()
	check(t, err)
	if n := c.bytes - before; ordinal != 100+199*100+50 || n > 256<<10+200*40 {
		t.Errorf("frame %d after %d bytes", ordinal, n)
	}
	r.SkipTo(1 << 60)
	if _, _, err := r.Next(); err != io.EOF || !r.Sealed() {
		t.Errorf("behind the last: %v", err)
	}
}

// TestSkipToErrors: an error of reading comes out of Next as what it is.
func TestSkipToErrors(t *testing.T) {
	m := newFS(t)
	w := create(t, m, 100)
	for range 3 {
		for range 100 {
			check(t, w.Append(make([]byte, 10_000)))
		}
		check(t, w.Sync())
	}
	in := vfs.Inject(m)
	r, err := segment.Open(in, w.Path())
	check(t, err)
	defer r.Close()
	r.SkipTo(350)
	in.Add(vfs.Rule{Op: vfs.OpRead, Nth: 2})
	if _, _, err := r.Next(); !errors.Is(err, syscall.EIO) {
		t.Errorf("%v", err)
	}
	if _, ordinal, err := r.Next(); err != nil || ordinal != 350 {
		t.Errorf("when the fault has ended: frame %d, %v", ordinal, err)
	}
	check(t, w.Abort())
}
