package pyramid

import (
	"context"
	"errors"
	"io"
	"math"
	"math/bits"
	"sort"
	"time"

	"github.com/usp-project/usp/internal/segment"
	"github.com/usp-project/usp/record"
)

// What a partial Query reads of a run at once.
const (
	atOnce      = 48 << 20 // bytes of all segments of a run that is read whole
	mostSamples = 512      // of all segments together
	eachSamples = 8        // of one segment, at most
	sampleFor   = 100 * time.Millisecond
)

// outline makes of a part what the ends of its segment say, without reading its records: which steps it has and how many. It is
// false for a segment that says nothing of itself, or not all: such a one must be read.
func (q *Query) outline(p *part) bool {
	if p.sampled {
		return true
	}
	ends, err := segment.ReadEnds(q.opts.FS, p.info.Path)
	if err != nil || !ends.Sealed || p.bound != math.MaxUint64 && ends.Next != p.bound {
		return false
	}
	sum, err := record.ParseSummary(ends.Index)
	if err != nil || sum.Stored == 0 {
		return false
	}
	meta, err := record.ParseStreamMeta(ends.Header.Meta)
	if err != nil || meta.Generation != sum.Generation {
		return false
	}
	schema, err := q.known.parse(meta.Schema.Text())
	if err != nil {
		return false
	}
	*p = part{info: p.info, bound: p.bound, stamp: p.stamp, stamped: p.stamped, sampled: true, low: &level{}}
	p.header = header{
		base: p.info.Base, next: ends.Next, generation: sum.Generation, leaf: q.leaf, records: sum.Stored, lost: sum.Lost,
		first: sum.FirstStep, last: sum.LastStep, schema: schema, kinds: kindsOf(schema),
	}
	p.low.aggs = make([][]agg, len(p.kinds))
	return true
}

// takeSamples reads some records of the segments that are only known by their ends: first of few that lie far from each other, then of those between
// them, for some time; the next call goes on.
func (q *Query) takeSamples(ctx context.Context) error {
	var list []*part
	for _, p := range q.parts {
		if p.sampled {
			list = append(list, p)
		}
	}
	if len(list) == 0 {
		return nil
	}
	each, least := min(eachSamples, max(1, mostSamples/len(list))), (len(list)+mostSamples-1)/mostSamples
	began := time.Time{}
	if q.opts.Now != nil {
		began = q.opts.Now()
	}
	for stride := 1 << bits.Len(uint(len(list)-1)); stride >= least && stride > 0; stride /= 2 {
		for i := 0; i < len(list); i += stride {
			p := list[i]
			if p.looked {
				continue
			}
			if err := context.Cause(ctx); err != nil {
				return err
			}
			if q.opts.Now != nil && q.opts.Now().Sub(began) >= sampleFor {
				return nil
			}
			p.looked = true
			if err := q.sample(p, each); err != nil {
				q.opts.Damaged(err) // it is drawn without
			}
		}
	}
	return nil
}

// sample reads so many aggregates of a part, as far from each other as can be.
func (q *Query) sample(p *part, each int) error {
	r, err := segment.Open(q.opts.FS, p.info.Path)
	if err != nil {
		return err
	}
	defer r.Close() // only read
	r.Limit(p.bound)
	low := &level{aggs: make([][]agg, len(p.kinds))}
	from := uint64(0) // the least step that the next sample can have
	for j := range each {
		s, aggs, err := q.sampleAt(p, r, p.base+uint64(j)*(p.next-p.base)/uint64(each), from)
		if err != nil {
			return err
		}
		if s.count == 0 {
			continue
		}
		low.stretches = append(low.stretches, s)
		for i := range aggs {
			low.aggs[i] = append(low.aggs[i], aggs[i])
		}
		if from = s.last + 1; s.last == math.MaxUint64 {
			break
		}
	}
	p.low = low
	return nil
}

// sampleAt aggregates the records from an ordinal on, as many as of the lowest level.
func (q *Query) sampleAt(p *part, r *segment.Reader, ordinal, from uint64) (s stretch, aggs []agg, err error) {
	r.SkipTo(ordinal)
	w := &rows{p: p, r: r, damaged: q.opts.Damaged, expected: ordinal, from: from, len: 16 + 8*(headWords+len(p.kinds)), head: p.recordHead()}
	aggs = make([]agg, len(p.kinds))
	for i, k := range p.kinds {
		aggs[i] = k.none()
	}
	for s.count < q.leaf {
		b, err := w.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return s, nil, err
		}
		if s.count == 0 {
			s.first, s.time, s.ordinal = le.Uint64(b[16:]), le.Uint64(b[24:]), ordinal
		}
		s.last = le.Uint64(b[16:])
		s.count++
		for i, k := range p.kinds {
			k.take(&aggs[i], le.Uint64(b[16+8*(headWords+i):]))
		}
	}
	return s, aggs, nil
}

// recordHead is the first word of a frame of a record in this part.
func (p *part) recordHead() uint64 { return uint64(p.generation)<<32 | uint64(record.KindRecord) }

// before is a stretch of a sampled part from which its records can be read to have all from a step on.
func (p *part) before(step uint64) *stretch {
	ss := p.low.stretches
	i := sort.Search(len(ss), func(i int) bool { return ss[i].first > step })
	if i == 0 {
		return &stretch{ordinal: p.base} // of no sample: the segment's beginning
	}
	return &ss[i-1]
}

// Missing says of how many segments there are no files yet, though they have come to their end, and stands for which those are.
func (q *Query) Missing() (segments int, which uint64) {
	q.mu.RLock()
	defer q.mu.RUnlock()
	for _, p := range q.parts {
		if p.path == "" && p.stamp != "" {
			segments++
			which = which*31 + p.info.Base + 1
		}
	}
	return segments, which
}
