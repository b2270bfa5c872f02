package pyramid

import (
	"errors"
	"math"
	"testing"

	"github.com/usp-project/usp/internal/vfs"
)

// TestRanges: several fields at once are what each is alone, from files, from memory, and from a file that is damaged; one that
// the run does not have has nothing.
func TestRanges(t *testing.T) {
	f := segments(t)
	defer f.close()
	const leaf = 4 // so that there are levels of many aggregates
	all := append(fields(), Field{Name: "rho"}, Field{Name: "nothing"})
	rows := f.effective()
	same := func(what string, q *Query) {
		t.Helper()
		for _, r := range [][3]uint64{{0, math.MaxUint64, 1}, {0, math.MaxUint64, 9}, {3, 5000, 300}, {100, 101, 5}, {2900, 4100, 40}} {
			lists, err := q.Ranges(t.Context(), all, r[0], r[1], int(r[2]))
			if check(t, err); len(lists) != len(all) {
				t.Fatalf("%s: %d lists", what, len(lists))
			}
			for i, field := range all {
				want, err := q.Range(t.Context(), field, r[0], r[1], int(r[2]))
				if i >= len(all)-2 {
					if !errors.Is(err, ErrNoField) || lists[i] != nil {
						t.Errorf("%s: %v: %v, %v", what, field, err, lists[i])
					}
					continue
				}
				if check(t, err); len(want) == 0 {
					t.Fatalf("%s: no columns", what)
				}
				judge(t, lists[i], f, rows, field, r[0], r[1], int(r[2]))
			}
		}
	}
	q := f.open(leaf)
	same("in memory", q)
	check(t, q.Close())
	_, err := Build(t.Context(), BuildOptions{FS: f.fs, Dir: f.dir, leaf: leaf})
	check(t, err)
	q = f.open(leaf)
	defer q.Close()
	same("from files", q)
	for name, data := range f.files() {
		for _, at := range []int{len(data) / 3, len(data) / 2, len(data) - 100} {
			bad := []byte(data)
			bad[at] ^= 1
			f.write(name, string(bad))
			q := f.open(leaf)
			same(name, q)
			check(t, q.Close())
		}
		f.write(name, data)
	}
	in := vfs.Inject(f.fs)
	q.opts.FS = in
	opened := in.Calls(vfs.OpOpen)
	if _, err := q.Ranges(t.Context(), fields(), 0, math.MaxUint64, 9); err != nil || in.Calls(vfs.OpOpen)-opened > 5 { // one ends within an aggregate
		t.Errorf("%d files were opened for 4 segments, %v", in.Calls(vfs.OpOpen)-opened, err)
	}
	reads := in.Calls(vfs.OpRead)
	if _, err := q.Ranges(t.Context(), fields(), 0, math.MaxUint64, 1); err != nil || in.Calls(vfs.OpRead)-reads > 40 {
		t.Errorf("%d reads, %v", in.Calls(vfs.OpRead)-reads, err)
	}
}
