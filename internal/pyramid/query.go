package pyramid

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/usp-project/usp/internal/audit"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/segment"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/record"
)

// maxMemory bounds the aggregates of segments without a file, those of the newest not counted. It is enough for some
// gigabytes of telemetry.
const maxMemory = 64 << 20

// QueryOptions say what a Query reads. Dir is needed.
type QueryOptions struct {
	Dir     rundir.Dir
	FS      vfs.FS      // nil: the real file system
	Damaged func(error) // what cannot be read is told; the same may come again; nil: not told
	Cache   *Cache      // where files are looked for that are not in the run directory; nil: nowhere

	// Partial has a long run answered at once, though files are missing: of the segments without one some records are read, until
	// there is one. Where a Range has few enough records to read them all, it is exact all the same.
	Partial bool
	AtOnce  int64            // bytes of all segments of a run that is read whole even so; 0: the default
	Now     func() time.Time // bounds the time for such records in each Refresh; nil: all are read in the first
}

// Query answers what is in ranges of steps of one run, on the effective timeline. It may be used by several goroutines, holds
// no file open but the newest segment, and sees what Refresh has found.
type Query struct {
	opts QueryOptions
	leaf uint32 // of what is made in memory
	room int    // bytes of memory for that

	mu     sync.RWMutex
	line   *audit.Timeline
	parts  []*part
	bases  []uint64 // of the segments for which line was read
	known  schemas
	id     identity
	cases  *bookcase // nil: no cache
	little bool      // the run is so short that it is read at once

	damaged sync.Map // bases of segments whose files were found to be damaged
}

// part is one segment.
type part struct {
	info   segment.Info
	bound  uint64 // ordinal at which the next segment begins
	header        // of the file, or as it would be
	path   string // of the file; empty: in memory
	limit  uint64 // steps from here on are of a later generation
	fill   *filler
	low    *level // in memory
	none   bool   // there is nothing in it, or it cannot be read
	absent bool   // it has no file, and there is no room for it in memory

	stamp   string // its name in the cache; empty: it may still grow, or nothing is known of it
	stamped ending // what that was made from
	cached  bool   // path is in the cache
	sampled bool   // header is what the ends of the segment say, low some of its records
	looked  bool   // and these were read
}

// ending is where a segment ends, as its directory has it.
type ending struct {
	size  int64
	bound uint64
}

// Open reads which aggregates there are. A run without any files can be opened while it is short; of a longer one each Range is
// an ErrUnbuilt.
func Open(ctx context.Context, o QueryOptions) (*Query, error) {
	if o.FS == nil {
		o.FS = vfs.OS()
	}
	if o.Damaged == nil {
		o.Damaged = func(error) {}
	}
	if o.AtOnce == 0 {
		o.AtOnce = atOnce
	}
	q := &Query{opts: o, leaf: defaultLeaf, room: maxMemory, known: schemas{}}
	return q, q.Refresh(ctx)
}

// Close closes the newest segment.
func (q *Query) Close() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, p := range q.parts {
		p.close()
	}
	q.parts = nil
	return nil
}

func (p *part) close() {
	if p.fill != nil {
		p.fill.close()
	}
}

// Refresh looks what has come since, in files and segments.
func (q *Query) Refresh(ctx context.Context) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if err := q.recognise(); err != nil {
		return err
	}
	infos, err := list(q.opts.FS, q.opts.Dir)
	if err != nil {
		return err
	}
	if err := q.readLine(infos); err != nil {
		return err
	}
	bytes := int64(0)
	for i := range infos {
		bytes += infos[i].Size
	}
	q.little = bytes <= q.opts.AtOnce
	old := map[uint64]*part{}
	for _, p := range q.parts {
		old[p.info.Base] = p
	}
	parts, room := make([]*part, 0, len(infos)), q.room
	for i, info := range infos {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		p := old[info.Base]
		if p == nil {
			p = &part{}
			old[info.Base] = p
		}
		p.info, p.bound = info, math.MaxUint64
		if i+1 < len(infos) {
			p.bound = infos[i+1].Base
		}
		if err := q.load(ctx, p, infos, i, &room); err != nil {
			return err
		}
		p.limit = math.MaxUint64
		if p.schema != nil {
			p.limit = q.limit(p.generation)
		}
		parts = append(parts, p)
	}
	for base, p := range old {
		if !slices.ContainsFunc(parts, func(p *part) bool { return p.info.Base == base }) {
			p.close()
		}
	}
	q.parts = parts
	return q.takeSamples(ctx)
}

// recognise finds out whose run it is. Where another one has the directory now, all that was read is forgotten.
func (q *Query) recognise() error {
	id, err := identify(q.opts.FS, q.opts.Dir)
	if err != nil {
		return err
	}
	if id != q.id {
		for _, p := range q.parts {
			p.close()
		}
		q.parts, q.line, q.bases, q.known, q.cases, q.id = nil, nil, nil, schemas{}, nil, id
		q.damaged.Clear()
		if q.opts.Cache != nil {
			q.cases = &bookcase{cache: q.opts.Cache, shelf: q.opts.Cache.shelf(id)}
		}
	}
	if q.cases != nil {
		q.cases.use()
	}
	return nil
}

// Run stands for the run that was read last: another run in the same directory has another.
func (q *Query) Run() [32]byte {
	q.mu.RLock()
	defer q.mu.RUnlock()
	return q.id.sum
}

// readLine reads where generations begin, if there may be new ones: each begins a segment.
func (q *Query) readLine(infos []segment.Info) error {
	bases := make([]uint64, len(infos))
	for i := range infos {
		bases[i] = infos[i].Base
	}
	last, err := rundir.LastGeneration(q.opts.FS, q.opts.Dir)
	if err != nil {
		return fmt.Errorf("run %s: %w", q.opts.Dir, err)
	}
	if q.line != nil && slices.Equal(bases, q.bases) && q.line.Manifests[len(q.line.Manifests)-1].Generation == last {
		return nil
	}
	if q.line, err = audit.Open(q.opts.FS, q.opts.Dir.Path()); err != nil {
		return err
	}
	q.bases = bases
	return nil
}

// limit is the first step of a generation that a later one overrides, or the largest number.
func (q *Query) limit(generation uint32) uint64 {
	if q.line.Schema(generation) == nil {
		return 0
	}
	lo, hi := uint64(0), uint64(math.MaxUint64)
	for lo < hi {
		if mid := lo + (hi-lo)/2; q.line.Superseded(generation, mid) {
			hi = mid
		} else {
			lo = mid + 1
		}
	}
	return lo
}

// load makes a part of the file of a segment, or of the segment itself.
func (q *Query) load(ctx context.Context, p *part, infos []segment.Info, i int, room *int) error {
	last := i+1 == len(infos)
	_, damaged := q.damaged.Load(p.info.Base)
	if p.path != "" && (last || p.next == p.bound) && !damaged {
		return nil
	}
	f, cached, err := q.openFile(p, infos, i)
	if err == nil && damaged {
		if err = f.check(); err != nil {
			f.close()
			if cached {
				q.cases.drop(f.path)
			}
		} else {
			q.damaged.Delete(p.info.Base) // it was made again
		}
	}
	if err == nil {
		p.close()
		*p = part{info: p.info, bound: p.bound, header: f.header, path: f.path, cached: cached, stamp: p.stamp, stamped: p.stamped}
		f.close()
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		q.opts.Damaged(err)
	}
	p.path, p.cached = "", false
	if q.opts.Partial && p.fill == nil && !q.little && q.outline(p) {
		return nil
	}
	if err := q.inMemory(ctx, p, last, room); err != nil || !p.absent || !q.opts.Partial {
		return err
	}
	p.close()
	p.fill, p.low = nil, nil
	p.absent = !q.outline(p)
	return nil
}

// openFile opens the file of a segment, beside it or in the cache.
func (q *Query) openFile(p *part, infos []segment.Info, i int) (f *file, cached bool, err error) {
	f, err = openFor(q.opts.FS, fileOf(q.opts.Dir, infos[i].Base), q.line.RunID, infos, i, q.known)
	if err == nil || q.cases == nil {
		return f, false, err
	}
	if p.fill != nil && !p.fill.ended && p.bound == math.MaxUint64 {
		return nil, false, err // it is just being recorded
	}
	if now := (ending{p.info.Size, p.bound}); p.stamp == "" || p.stamped != now {
		ends, endErr := segment.ReadEnds(q.opts.FS, p.info.Path)
		if endErr != nil {
			return nil, false, err
		}
		p.stamp, p.stamped = stamp(&ends, p.bound), now
	}
	if p.stamp == "" {
		return nil, false, err
	}
	f, cachedErr := q.cases.open(p.stamp, q.line.RunID, infos, i, q.known)
	if cachedErr != nil && !errors.Is(cachedErr, fs.ErrNotExist) {
		err = cachedErr
	}
	if cachedErr == nil {
		return f, true, nil
	}
	return nil, false, err
}

// inMemory makes the aggregates of a segment here, as far as it is written.
func (q *Query) inMemory(ctx context.Context, p *part, last bool, room *int) error {
	if p.absent = !last && *room <= 0; p.absent {
		return nil
	}
	if z := p.fill; z == nil || z.builder != nil && z.builder.next > p.bound {
		p.close() // a crash took frames from it that were read already
		p.fill = newFiller(q.opts.FS, q.opts.Dir, p.info.Base, q.leaf, q.opts.Damaged)
	}
	if err := p.fill.fill(ctx); err != nil {
		return err
	}
	z := p.fill.builder
	if p.none = z == nil; p.none {
		p.header = header{base: p.info.Base, next: p.info.Base}
		if p.bound != math.MaxUint64 {
			p.unread = p.bound - p.info.Base
		}
		return nil
	}
	p.low = z.level()
	n := len(p.low.stretches)
	p.header = header{
		base: z.base, next: z.next, generation: z.generation, leaf: z.leaf, leaves: uint32(n), records: z.records, leftOut: z.leftOut,
		schema: z.schema, kinds: z.kinds, first: p.low.stretches[0].first, last: p.low.stretches[n-1].last,
	}
	for i := range p.low.stretches {
		p.lost += p.low.stretches[i].lost
		p.unread += uint64(p.low.stretches[i].unread)
	}
	if !last {
		*room -= n * (stretchLen + 40*len(z.kinds))
	}
	return nil
}

// top is the highest level that a part has.
func (p *part) top() int {
	if p.path == "" {
		return 0
	}
	return len(p.levels()) - 1
}

// width is how many records an aggregate of a level is of.
func (p *part) width(level int) uint64 {
	w := uint64(p.leaf)
	for range level {
		w *= factor
	}
	return w
}

// view reads the aggregates of a part. What it has read of a level it does not read again.
type view struct {
	p      *part
	f      *file
	fields int            // that are wanted: of many, a level is read at once
	levels map[int]*level // aggs may be nil
}

func (q *Query) view(p *part, fields int) (*view, error) {
	v := &view{p: p, fields: fields, levels: map[int]*level{}}
	if p.path == "" {
		return v, nil
	}
	fsys := q.opts.FS
	if p.cached {
		fsys = q.cases.cache.fs
	}
	var err error
	v.f, err = reopen(fsys, p.path, &p.header)
	return v, err
}

func (v *view) close() {
	if v.f != nil {
		v.f.close()
	}
}

func (v *view) stretches(l int) ([]stretch, error) {
	if v.f == nil {
		return v.p.low.stretches, nil
	}
	if known := v.levels[l]; known != nil {
		return known.stretches, nil
	}
	if v.fields > 2 && 2*v.fields >= len(v.p.kinds) {
		v.f.ahead(l)
	}
	ss, err := v.f.stretches(l)
	v.levels[l] = &level{stretches: ss, aggs: make([][]agg, len(v.p.kinds))}
	return ss, err
}

// aggregates are those of a level whose stretches were asked for.
func (v *view) aggregates(l, element int) (as []agg, err error) {
	if v.f == nil {
		return v.p.low.aggs[element], nil
	}
	known := v.levels[l]
	if known.aggs[element] == nil {
		known.aggs[element], err = v.f.aggregates(l, element)
	}
	return known.aggs[element], err
}

// Extent is how far the effective timeline goes.
type Extent struct {
	Records           uint64 // stored; of the superseded ones too
	Lost              uint64 // records, in all generations
	Unread            uint64 // damaged frames, in all generations
	FromStep, ToStep  uint64 // the first and the last; 0 without records
	Segments, Unbuilt int    // all, and those that have no file and are not in memory
}

// Extent says how far the run goes.
func (q *Query) Extent() Extent {
	q.mu.RLock()
	defer q.mu.RUnlock()
	var e Extent
	any := false
	for _, p := range q.parts {
		e.Segments++
		if p.absent || p.sampled {
			e.Unbuilt++
		}
		if p.absent {
			continue
		}
		e.Records += p.records
		e.Lost += p.lost
		e.Unread += p.unread
		if p.records == 0 || p.first >= p.limit {
			continue
		}
		if !any {
			e.FromStep, any = p.first, true
		}
		to := p.last
		if p.limit != math.MaxUint64 {
			to = min(to, p.limit-1)
		}
		e.ToStep = max(e.ToStep, to)
	}
	return e
}

// Field names one stored element.
type Field struct {
	Name    string
	Element int // of a vector; 0 of a single value
}

// Schema is that of the newest generation.
func (q *Query) Schema() *record.Schema {
	q.mu.RLock()
	defer q.mu.RUnlock()
	return q.line.Schema(q.line.Manifests[len(q.line.Manifests)-1].Generation)
}

// element is the place of a field among the stored elements of a schema.
func element(s *record.Schema, f Field) (i int, ok bool) {
	at, ok := s.Index(f.Name)
	if !ok || s.Field(at).Class == record.Digest || f.Element < 0 || f.Element >= s.Field(at).Len {
		return 0, false
	}
	return s.Offset(at) + f.Element - headWords, true
}
