package pyramid

import (
	"context"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"time"

	"github.com/usp-project/usp/internal/segment"
	"github.com/usp-project/usp/internal/vfs"
)

// ErrBusy is wrapped by the error of Cache.Build for a run whose files another process is making.
var ErrBusy = errors.New("another process makes the aggregates of the run")

// Build makes the files of a run that are neither in its directory nor in the cache. It reads one segment at a time and holds a
// twentieth of it. After an error, or when ctx has ended, what was made stays, and the next Build goes on there.
func (c *Cache) Build(ctx context.Context, o BuildOptions) (Built, error) {
	if o.FS == nil {
		o.FS = vfs.OS()
	}
	if o.leaf == 0 {
		o.leaf = defaultLeaf
	}
	id, err := identify(o.FS, o.Dir)
	if err != nil {
		return Built{}, err
	}
	b := &cacheBuild{c: c, o: o, id: id, shelf: c.shelf(id), known: schemas{}}
	if err := vfs.MkdirAll(c.fs, b.shelf, dirMode); err != nil {
		return Built{}, fmt.Errorf("cache of aggregates: %w", err)
	}
	lock, err := c.fs.Lock(b.shelf)
	if errors.Is(err, vfs.ErrLocked) {
		err = fmt.Errorf("%w: %w", ErrBusy, err)
	}
	if err != nil {
		return Built{}, err
	}
	defer lock.Close() // a lock alone
	c.use(b.shelf)
	c.mu.Lock()
	c.bytes = 0 // others may have made files, too
	c.mu.Unlock()
	if err = b.run(ctx); err != nil {
		err = fmt.Errorf("run %s: %w", o.Dir, err)
	}
	return b.done, err
}

// cacheBuild is one call of Cache.Build.
type cacheBuild struct {
	c     *Cache
	o     BuildOptions
	id    identity
	shelf string
	known schemas
	names []string // that the segments' files have
	done  Built
}

func (b *cacheBuild) run(ctx context.Context) error {
	if _, err := vfs.RemoveTemps(b.c.fs, b.shelf); err != nil {
		return err
	}
	infos, err := list(b.o.FS, b.o.Dir)
	if err != nil {
		return err
	}
	total, read := uint64(0), uint64(0)
	for i := range infos {
		total += uint64(infos[i].Size)
	}
	for i := range infos {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if b.o.Stop != nil && b.o.Stop() {
			b.done.Left = len(infos) - i
			return nil
		}
		if err := b.segment(ctx, infos, i); err != nil {
			return fmt.Errorf("aggregates of segment %s: %w", infos[i].Name, err)
		}
		if read += uint64(infos[i].Size); b.o.Progress != nil {
			b.o.Progress(read, total)
		}
	}
	return b.tidy()
}

// segment makes the file of one segment, if that is needed.
func (b *cacheBuild) segment(ctx context.Context, infos []segment.Info, i int) error {
	if p, err := openFor(b.o.FS, fileOf(b.o.Dir, infos[i].Base), b.id.id, infos, i, b.known); err == nil {
		p.close()
		b.done.Kept++
		return nil
	}
	bound := uint64(math.MaxUint64)
	if i+1 < len(infos) {
		bound = infos[i+1].Base
	}
	ends, err := segment.ReadEnds(b.o.FS, infos[i].Path)
	if err != nil {
		b.o.tell(err) // it has nothing that could be aggregated, or is being made
		b.done.Open++
		return nil
	}
	name := stamp(&ends, bound)
	if name == "" {
		b.done.Open++
		return nil
	}
	b.names = append(b.names, name)
	path := filepath.Join(b.shelf, name)
	p, err := openFor(b.c.fs, path, b.id.id, infos, i, b.known)
	if err == nil {
		p.close()
		b.done.Kept++
		return nil
	}
	b.o.tell(err)
	return b.make(ctx, infos[i].Base, bound, path)
}

// make reads a segment and writes its file.
func (b *cacheBuild) make(ctx context.Context, base, bound uint64, path string) error {
	r := newFiller(b.o.FS, b.o.Dir, base, b.o.leaf, b.o.Damaged)
	defer r.close()
	if err := r.fill(ctx); err != nil {
		return err
	}
	if !r.ended || r.builder == nil || r.builder.next == r.builder.base {
		b.done.Open++
		return nil
	}
	data, err := r.builder.encode(b.id.id)
	if err != nil {
		return err
	}
	if ends, err := segment.ReadEnds(b.o.FS, filepath.Join(b.o.Dir.Telemetry(), segment.FileName(base))); err != nil || stamp(&ends, bound) != filepath.Base(path) {
		return errors.Join(err, errors.New("it was replaced while it was read"))
	}
	if err := b.c.room(int64(len(data)), b.shelf); err != nil {
		return err
	}
	b.done.Made++
	b.done.Records += r.builder.records
	b.done.Bytes += uint64(len(data))
	return vfs.Replace(b.c.fs, path, data, fileMode)
}

// tidy removes the files of segments that are not there any more, or are others now.
func (b *cacheBuild) tidy() error {
	if again, err := identify(b.o.FS, b.o.Dir); err != nil || again != b.id {
		return err // what was read was two runs'; the shelf is the first one's
	}
	files, err := b.c.fs.ReadDir(b.shelf)
	if err != nil {
		return err
	}
	for _, f := range files {
		if name := f.Name(); filepath.Ext(name) == suffix && !slices.Contains(b.names, name) {
			if err := b.c.fs.Remove(filepath.Join(b.shelf, name)); err != nil {
				return err
			}
		}
	}
	return nil
}

// bookcase is where a Query looks for the files of its run that are not beside the segments.
type bookcase struct {
	cache *Cache
	shelf string
	used  time.Time // when that was noted
}

// use notes that the run is looked at.
func (k *bookcase) use() {
	if now := k.cache.now(); k.used.IsZero() || now.Sub(k.used) >= usedEvery {
		k.used = now
		k.cache.use(k.shelf)
	}
}

// open opens the file of segment i. fs.ErrNotExist: there is none.
func (k *bookcase) open(name, runID string, infos []segment.Info, i int, known schemas) (*file, error) {
	return openFor(k.cache.fs, filepath.Join(k.shelf, name), runID, infos, i, known)
}

// drop removes a file that turned out to be damaged, so that it is made again.
func (k *bookcase) drop(path string) { _ = k.cache.fs.Remove(path) } // where that is not allowed it is passed over

// Holds says how many runs a cache has files of, and how many bytes those are.
func (c *Cache) Holds() (runs int, bytes int64, err error) {
	all, err := c.list()
	for i := range all {
		bytes += all[i].bytes
	}
	return len(all), bytes, err
}

// Dir is the cache's directory.
func (c *Cache) Dir() string { return c.dir }
