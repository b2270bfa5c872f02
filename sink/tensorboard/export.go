package tensorboard

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"path/filepath"

	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/sink"
)

// Exported says what Export has written.
type Exported struct {
	File      string    `json:"file"`
	Events    uint64    `json:"events"`
	Lost      uint64    `json:"lost"` // records that are not among the stored ones
	Bytes     int64     `json:"bytes"`
	Narrowing Narrowing `json:"narrowing"`
}

// Export writes the batches of a run to an event file, which appears when all is in it. One that is there already is left as it
// is; the error wraps fs.ErrExist.
func Export(ctx context.Context, o Options, run sink.Run, batches iter.Seq2[*sink.Batch, error]) (Exported, error) {
	if o.Dir == "" {
		return Exported{}, errors.New("tensorboard: no directory is given")
	}
	if err := o.check(run); err != nil {
		return Exported{}, err
	}
	dir := filepath.Join(o.Dir, run.ID)
	x := Exported{File: filepath.Join(dir, FileName(run.ID))}
	if _, err := o.fs().Stat(x.File); err == nil {
		return x, fmt.Errorf("tensorboard: %s: %w", x.File, fs.ErrExist) // before the work, not behind it
	}
	var made []string // directories that are not there yet, the innermost first
	for _, d := range []string{dir, o.Dir} {
		if _, err := o.fs().Stat(d); errors.Is(err, fs.ErrNotExist) {
			made = append(made, d)
		}
	}
	if err := vfs.MkdirAll(o.fs(), dir, dirMode); err != nil {
		return x, fmt.Errorf("tensorboard: %w", err)
	}
	err := vfs.Create(o.fs(), x.File, fileMode, func(f vfs.File) error {
		enc := o.encoder(func(b []byte) error {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			x.Bytes += int64(len(b))
			_, err := f.Write(b)
			return err
		})
		enc.out = appendHeader(nil, created(run.ID).UnixNano())
		for b, err := range batches {
			if err != nil {
				return err
			}
			if err := enc.write(b); err != nil {
				return err
			}
		}
		x.Events, x.Lost, x.Narrowing = enc.events, enc.Lost, enc.narrowing
		return enc.flush(1)
	})
	if err != nil {
		for _, d := range made {
			_ = o.fs().Remove(d) // if nobody has put anything there
		}
		return x, fmt.Errorf("tensorboard: %w", err)
	}
	return x, nil
}
