package compare_test

import (
	"io"
	"strings"
	"testing"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/segment"
	"github.com/usp-project/usp/internal/vfs"
)

// fixedIndex is an index that has nothing to do with the frames.
type fixedIndex []byte

func (fixedIndex) Add(uint64, []byte) {}
func (x fixedIndex) Index() []byte    { return x }

// An outline that lies about stretches makes runs equal that are not: doc/threat-model.md says so. That stretches were believed is noted, and
// a verification finds it.
func TestOutlineThatLies(t *testing.T) {
	const steps = 3000
	mem := vfs.NewMem()
	for _, dir := range []string{"/a", "/b"} {
		p := newProgram(t, mem, dir)
		p.segment = 1 << 20
		if dir == "/b" {
			perturbed(700, 1)(p)
		}
		p.run(steps)
	}
	if is, _ := judged(t, mem); is != "parted 22 at 700 in rho" {
		t.Fatal(is)
	}
	a, err := segment.List(mem, rundir.At("/a").Digests())
	check(t, err)
	b, err := segment.List(mem, rundir.At("/b").Digests())
	check(t, err)
	for i := range b {
		ends, err := segment.ReadEnds(mem, a[i].Path)
		check(t, err)
		rewrite(t, mem, b[i], ends.Index)
	}
	is, got := judged(t, mem)
	if is != "identical 0" || got.Skipped != steps || !strings.Contains(strings.Join(got.Notes, "\n"), "3000 equal steps were passed by hashes in the index") {
		t.Errorf("%s, %d steps passed, notes %q", is, got.Skipped, got.Notes)
	}
	r, err := digestlog.Verify(mem, rundir.At("/b").Digests(), "", nil)
	check(t, err)
	if !r.Has(digestlog.ClassCorrupt) {
		t.Errorf("a verification finds %v", r.Faults)
	}
}

// rewrite puts another index behind the same frames.
func rewrite(t *testing.T, mem vfs.FS, file segment.Info, index []byte) {
	t.Helper()
	r, err := segment.Open(mem, file.Path)
	check(t, err)
	h := r.Header()
	var frames [][]byte
	for {
		f, _, err := r.Next()
		if err == io.EOF {
			break
		}
		check(t, err)
		frames = append(frames, append([]byte(nil), f...))
	}
	check(t, r.Close())
	check(t, mem.Remove(file.Path))
	w, err := segment.Create(rundir.At("/b").Digests(), h.Base, segment.Options{FS: mem, Kind: h.Kind, RunID: h.RunID, Meta: h.Meta, Index: fixedIndex(index)})
	check(t, err)
	for _, f := range frames {
		check(t, w.Append(f))
	}
	_, err = w.Seal()
	check(t, err)
}
