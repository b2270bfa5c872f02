package compare

import (
	"errors"
	"fmt"
	"io"
	"iter"
	"path/filepath"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/vfs"
)

// stepReader reads the STEP entries of a log, and may know stretches of them; see digestlog.StepReader.
type stepReader interface {
	Next() (digestlog.StepEntry, error)
	Stretch() (digestlog.Stretch, bool)
	Skip()
	Close() error
}

// steps opens the log's STEP entries.
func (l *Log) steps() stepReader {
	if l.Tiles {
		return newTileReader(l.fsys, l.Path)
	}
	return digestlog.NewStepReader(l.fsys, l.dir.Digests())
}

// isTiles says whether a directory is an export: there is a checkpoint, and entry bundles.
func isTiles(fsys vfs.FS, dir string) bool {
	for _, name := range []string{digestlog.HeadName, filepath.Join("tile", "entries")} {
		if _, err := fsys.Stat(filepath.Join(dir, name)); err != nil {
			return false
		}
	}
	return true
}

// tileSpans are the entries of an export, one for one.
func tileSpans(fsys vfs.FS, dir string) iter.Seq2[digestlog.Span, error] {
	return func(yield func(digestlog.Span, error) bool) {
		t, err := digestlog.OpenTiles(fsys, dir)
		if err != nil {
			yield(digestlog.Span{}, err)
			return
		}
		for s, err := range t.Spans() {
			if !yield(s, err) {
				return
			}
		}
	}
}

// tileReader reads the STEP entries of an export. It knows no stretches.
type tileReader struct {
	next func() (digestlog.Span, error, bool)
	stop func()
}

func newTileReader(fsys vfs.FS, dir string) *tileReader {
	next, stop := iter.Pull2(tileSpans(fsys, dir))
	return &tileReader{next, stop}
}

func (r *tileReader) Next() (digestlog.StepEntry, error) {
	for {
		it, err, ok := r.next()
		if !ok {
			return digestlog.StepEntry{}, io.EOF
		}
		if err != nil {
			return digestlog.StepEntry{}, err
		}
		if run := &it.Run; run.Count > 0 {
			return digestlog.StepEntry{Index: it.Index, Generation: run.Generation, Step: run.FirstStep, Seq: run.FirstSeq, Raw: it.Raw}, nil
		}
	}
}

func (r *tileReader) Stretch() (digestlog.Stretch, bool) { return digestlog.Stretch{}, false }
func (r *tileReader) Skip()                              {}

func (r *tileReader) Close() error {
	r.stop()
	return nil
}

// cursor goes through one side's effective timeline, by ascending step.
type cursor struct {
	Side
	log  *Log
	r    stepReader
	from uint64 // steps before it and behind to are passed
	to   uint64
	cur  digestlog.StepEntry
	gen  *generation // of cur
	have bool        // cur was read and not used
	done bool
	last uint64 // the step used last
	any  bool
	grew bool // there came entries of a generation that began after the log was opened
}

// counts says whether a step of a generation is on the way.
func (c *cursor) counts(g *generation, step uint64) bool {
	return g != nil && g.effective(step) && step >= c.from && step <= c.to && (!c.any || step > c.last)
}

// fill reads the next step that counts, unless there is one, or none.
func (c *cursor) fill() error {
	for !c.have && !c.done {
		s, err := c.r.Next()
		switch {
		case err == nil:
		case err == io.EOF:
			c.done = true
			return nil
		case benign(err):
			continue
		default:
			return err
		}
		if c.gen == nil || c.gen.number != s.Generation {
			if more, err := c.enter(&s); err != nil || !more {
				return err
			}
		}
		if c.any && s.Step <= c.last && c.gen.effective(s.Step) {
			return fmt.Errorf("%s: entry %d: %w: step %d behind step %d", c.Path, s.Index, ErrContradiction, s.Step, c.last)
		}
		c.cur, c.have = s, c.counts(c.gen, s.Step)
	}
	return nil
}

// enter goes on to the generation of an entry. False: it began while the log was read, and belongs to another timeline.
func (c *cursor) enter(s *digestlog.StepEntry) (more bool, err error) {
	g, newest := c.log.generations[s.Generation], c.log.last()
	switch {
	case g == nil && s.Generation > newest.number:
		c.grew, c.done = true, true
		return false, nil
	case g == nil:
		return false, fmt.Errorf("%s: entry %d: %w: generation %d was never opened", c.Path, s.Index, ErrContradiction, s.Generation)
	case c.gen != nil && g.number < c.gen.number:
		return false, fmt.Errorf("%s: entry %d: %w: generation %d behind generation %d", c.Path, s.Index, ErrContradiction, g.number, c.gen.number)
	}
	c.gen = g
	return true, nil
}

// benign is true of what a reader of an unfinished log goes past.
func benign(err error) bool {
	var f *digestlog.Fault
	return errors.As(err, &f) && f.Benign()
}

// use takes the step that fill has read.
func (c *cursor) use() {
	c.have = false
	c.advance(c.cur.Step, c.cur.Step, 1)
}

// advance counts steps as used, and goes on behind the last of them.
func (c *cursor) advance(first, last, count uint64) {
	if c.Steps == 0 {
		c.FirstStep = first
	}
	c.Steps += count
	c.LastStep, c.last, c.any = last, last, true
}

// stretch is the stretch that begins with the next step, if there is one and its steps all count. Those of which none counts are passed.
func (c *cursor) stretch() (digestlog.Stretch, *generation, bool) {
	for {
		s, ok := c.r.Stretch()
		if !ok || c.done {
			return s, nil, false
		}
		g := c.log.generations[s.Generation]
		if g == nil || c.gen != nil && g.number < c.gen.number {
			return s, nil, false
		}
		if !g.effective(s.FirstStep) || s.LastStep < c.from || s.FirstStep > c.to {
			c.r.Skip()
			continue
		}
		return s, g, c.counts(g, s.FirstStep) && c.counts(g, s.LastStep)
	}
}
