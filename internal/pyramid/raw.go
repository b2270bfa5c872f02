package pyramid

import (
	"context"
	"errors"
	"io"
	"math"

	"github.com/usp-project/usp/internal/segment"
	"github.com/usp-project/usp/record"
)

// rows reads the records of one segment from an ordinal on, and counts what is missing in front of each.
type rows struct {
	p        *part
	r        *segment.Reader
	damaged  func(error)
	frame    record.Frame
	expected uint64
	gap      gap
	from     uint64 // the least step that the next can have
	end      bool   // the last had the greatest step of all
	len      int    // bytes of a frame of a record
	head     uint64 // and its first word
}

// read adds the records of a cut. s is the stretch with the first of them.
func (q *Query) read(ctx context.Context, gs []*gather, c *cut, s *stretch) error {
	r, err := segment.Open(q.opts.FS, c.p.info.Path)
	if err != nil {
		return err
	}
	defer r.Close() // only read
	r.Limit(c.p.bound)
	r.SkipTo(s.ordinal)
	w := &rows{
		p: c.p, r: r, damaged: q.opts.Damaged, expected: s.ordinal, from: s.first,
		len: 16 + 8*(headWords+len(c.p.kinds)), head: c.p.recordHead(),
	}
	taken := false
	for n := 1; ; n++ {
		if n%4096 == 0 {
			if err := context.Cause(ctx); err != nil {
				return err
			}
		}
		b, err := w.next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		step := le.Uint64(b[16:])
		if step > c.to {
			return nil
		}
		if step >= c.from {
			one := stretch{first: step, last: step, time: le.Uint64(b[24:]), count: 1, lost: w.gap.lost, unread: uint32(w.gap.unread)}
			for i, e := range c.elements {
				k := c.p.kinds[e]
				a := k.none()
				k.take(&a, le.Uint64(b[16+8*(headWords+e):]))
				gs[i].take(c, k, &one, &a)
			}
			taken = true
		}
		w.gap = gap{}
	}
	for i := 0; taken && i < len(gs); i++ { // what is missing at the end belongs to the last record
		gs[i].behind(w.gap)
	}
	return nil
}

// next returns the frame of the next record whose step is above the last.
func (w *rows) next() ([]byte, error) {
	for {
		b, ordinal, err := w.r.Next()
		var corrupt *segment.CorruptError
		var torn *segment.TornError
		switch {
		case errors.As(err, &corrupt):
			w.damaged(err)
			continue
		case errors.Is(err, io.EOF), errors.As(err, &torn):
			w.finish()
			return nil, io.EOF
		case err != nil:
			return nil, err
		}
		w.gap.unread += ordinal - w.expected
		w.expected = ordinal + 1
		if len(b) == w.len && le.Uint64(b) == w.head {
			if step := le.Uint64(b[16:]); step >= w.from && !w.end {
				w.from, w.end = step+1, step == math.MaxUint64
				return b, nil
			}
			continue
		}
		if err := record.DecodeFrame(b, &w.frame); err == nil && w.frame.Generation == w.p.generation && w.frame.Kind == record.KindLost {
			w.gap.lost += w.frame.To - w.frame.Seq
		} else {
			w.gap.unread++
		}
	}
}

// finish counts the frames that are missing at the end of a segment.
func (w *rows) finish() {
	end := w.r.Ordinal()
	if w.p.next > end {
		end = w.p.next
	}
	if end > w.expected {
		w.gap.unread += end - w.expected
	}
}
