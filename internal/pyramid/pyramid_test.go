package pyramid

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/usp-project/usp/internal/vfs"
)

// TestRange wants of any run, while it is recorded and brought to the sink, what a scan of its records gives.
func TestRange(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := newFixture(t, vfs.NewMem(), rapid.Uint64().Draw(t, "seed"))
		defer f.close()
		leaf := rapid.SampledFrom([]uint32{1, 4, 5}).Draw(t, "leaf")
		d := feed(f, leaf)
		defer func() { d.close() }()
		q := f.open(leaf)
		defer q.Close()
		for range rapid.IntRange(1, 25).Draw(t, "actions") {
			switch rapid.IntRange(0, 9).Draw(t, "action") {
			case 0, 1, 2, 3:
				n := rapid.SampledFrom([]int{1, 3, 20, 150, 700}).Draw(t, "records")
				f.emit(n, rapid.SampledFrom([]int{1, 1, 3, 1000}).Draw(t, "stride"))
			case 4:
				f.lose(rapid.Uint64Range(1, 9).Draw(t, "lost"))
			case 5:
				f.roll()
			case 6:
				f.rewind(rapid.Uint64Range(0, f.step).Draw(t, "rewind"))
			case 7:
				d.write(rapid.IntRange(1, 5).Draw(t, "batches"))
			case 8:
				d.close()
				d = feed(f, leaf)
			default:
				check(t, q.Refresh(f.ctx()))
				f.ask(t, q)
			}
		}
		check(t, q.Refresh(f.ctx()))
		f.ask(t, q)
		f.roll()
		d.write(100)
		again := f.open(leaf)
		defer again.Close()
		f.ask(t, again)
		if again.Extent().Segments != len(f.pieces) {
			t.Fatalf("%+v of %d segments", again.Extent(), len(f.pieces))
		}
		for _, p := range again.parts {
			if p.path == "" {
				t.Fatalf("segment %s has no file", p.info.Name)
			}
		}
	})
}

// ask compares some ranges.
func (f *fixture) ask(t *rapid.T, q *Query) {
	rows := f.effective()
	top := uint64(1)
	for _, p := range f.pieces {
		for _, r := range p.rows {
			top = max(top, r.words[0])
		}
	}
	for range 3 {
		field := rapid.SampledFrom(fields()).Draw(t, "field")
		from := rapid.Uint64Range(0, top).Draw(t, "from")
		until := rapid.Uint64Range(from, top+1).Draw(t, "until")
		columns := rapid.SampledFrom([]int{1, 2, 7, 30, 1000}).Draw(t, "columns")
		compare(t, q, f, rows, field, from, until, columns)
		compare(t, q, f, rows, field, 0, 1<<64-1, columns)
	}
}
