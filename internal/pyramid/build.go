package pyramid

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/usp-project/usp/internal/audit"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/segment"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/sink"
)

// BuildOptions say what is built. Dir is needed.
type BuildOptions struct {
	Dir      rundir.Dir
	FS       vfs.FS                   // nil: the real file system
	Progress func(done, total uint64) // bytes of segments; called after each segment; nil: not called
	Damaged  func(error)              // what cannot be read is told and left out; nil: not told
	Stop     func() bool              // asked by Cache.Build before each segment whether to leave the rest for later; nil: never

	leaf uint32 // records of an aggregate of the lowest level; 0: the default
}

// Built is what Build found and did.
type Built struct {
	Kept, Made int    // files
	Open       int    // segments that have not come to their end, and get no file
	Records    uint64 // in the files that were made
	Bytes      uint64 // of the files that were made
	Left       int    // segments that were left for later
}

// Build makes the file of each segment that has none, or a damaged one: it reads all of those that are there. It may go on
// while a run is recorded and a Sink makes files of the same segments. After an error, or when ctx has ended, what was made stays.
func Build(ctx context.Context, o BuildOptions) (Built, error) {
	if o.FS == nil {
		o.FS = vfs.OS()
	}
	if o.leaf == 0 {
		o.leaf = defaultLeaf
	}
	var done Built
	line, err := audit.Open(o.FS, o.Dir.Path())
	if err != nil {
		return done, err
	}
	infos, err := list(o.FS, o.Dir)
	if err != nil {
		return done, err
	}
	if err := prepare(o.FS, o.Dir); err != nil {
		return done, fmt.Errorf("pyramid: %w", err)
	}
	total, read := uint64(0), uint64(0)
	for _, info := range infos {
		total += uint64(info.Size)
	}
	known := schemas{}
	for i, info := range infos {
		if err := context.Cause(ctx); err != nil {
			return done, err
		}
		if err := o.build(ctx, &done, line.RunID, infos, i, known); err != nil {
			return done, fmt.Errorf("pyramid of segment %s: %w", info.Name, err)
		}
		if read += uint64(info.Size); o.Progress != nil {
			o.Progress(read, total)
		}
	}
	return done, nil
}

// build makes the file of one segment, if that is needed.
func (o *BuildOptions) build(ctx context.Context, done *Built, runID string, infos []segment.Info, i int, known schemas) error {
	if p, err := openFor(o.FS, fileOf(o.Dir, infos[i].Base), runID, infos, i, known); err == nil {
		err = p.check()
		p.close()
		if err == nil {
			done.Kept++
			return nil
		}
		o.tell(err)
	}
	r := newFiller(o.FS, o.Dir, infos[i].Base, o.leaf, o.Damaged)
	defer r.close()
	if err := r.fill(ctx); err != nil {
		return err
	}
	if !r.ended || r.builder == nil {
		done.Open++
		return nil
	}
	b, err := r.builder.encode(runID)
	if err != nil {
		return err
	}
	done.Made++
	done.Records += r.builder.records
	done.Bytes += uint64(len(b))
	return vfs.Replace(o.FS, fileOf(o.Dir, infos[i].Base), b, fileMode)
}

func (o *BuildOptions) tell(err error) {
	if o.Damaged != nil {
		o.Damaged(err)
	}
}

// filler reads one segment into a builder, as far as it is written.
type filler struct {
	follower *sink.Follower
	base     uint64
	leaf     uint32
	builder  *builder // nil: nothing was read yet
	ended    bool     // there will be no more of it
}

func newFiller(fsys vfs.FS, dir rundir.Dir, base uint64, leaf uint32, damaged func(error)) *filler {
	r := &filler{follower: sink.Follow(fsys, dir, base), base: base, leaf: leaf}
	r.follower.Damaged = damaged
	return r
}

// fill reads what there is now.
func (r *filler) fill(ctx context.Context) error {
	for !r.ended {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		b, err := r.follower.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if b.Segment != r.base { // it cannot be read at all
			r.end()
			return nil
		}
		if r.builder == nil {
			r.builder = newBuilder(b, r.leaf)
		}
		if err := r.builder.add(b); err != nil {
			return err
		}
		if b.End {
			r.end()
		}
	}
	return nil
}

func (r *filler) end() {
	r.ended = true
	r.close()
}

func (r *filler) close() { _ = r.follower.Close() } // only read
