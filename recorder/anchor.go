package recorder

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"golang.org/x/mod/sumdb/note"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/vfs"
)

const anchorName = "anchor" // of the outlet

const (
	anchorMode    = 0o644
	anchorDirMode = 0o755
)

// openAnchor makes the outlet for the anchor and returns the head that is there, for the log to be held against. A run
// without one goes on: its anchor was configured later, or somebody has taken it away, which the log cannot tell apart.
func (r *Recorder) openAnchor(verifiers note.Verifiers) ([]digestlog.KeptHead, error) {
	if r.opts.AnchorDir == "" {
		return nil, nil
	}
	path := rundir.AnchorPath(r.opts.AnchorDir, r.header.RunID)
	r.outlets = append(r.outlets, newOutlet(anchorName, path, 0, func(_ context.Context, h *digestlog.SignedTreeHead) error {
		return writeAnchor(r.fs(), path, h.Note)
	}))
	h, err := digestlog.ReadHead(r.fs(), path, verifiers)
	switch {
	case err == nil:
		return []digestlog.KeptHead{{Name: "the anchor " + path, Head: h}}, nil
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case errors.Is(err, digestlog.ErrHead), errors.Is(err, digestlog.ErrSignature), errors.Is(err, digestlog.ErrWrongKey), errors.Is(err, vfs.ErrTooLarge):
		return nil, fmt.Errorf("the anchor cannot vouch for the run: %w; find out why, then put a good copy there, or move it away to go on without it", err)
	}
	// A place that cannot be read must not keep a run from being recorded: the disk of the anchor may be gone.
	r.logger().Warn("the anchor cannot be read: the run goes on without having been compared with it", "run", r.header.RunID, "err", err)
	return nil, nil
}

// writeAnchor puts a head into the anchor, durably and at once.
func writeAnchor(fsys vfs.FS, path string, b []byte) error {
	err := vfs.Replace(fsys, path, b, anchorMode)
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := vfs.MkdirAll(fsys, filepath.Dir(path), anchorDirMode); err != nil {
		return err
	}
	return vfs.Replace(fsys, path, b, anchorMode)
}

// tidyAnchor removes what a recorder that was killed while it replaced the anchor has left. Others have their anchors in the same directory.
func (r *Recorder) tidyAnchor() {
	if r.opts.AnchorDir == "" {
		return
	}
	list, err := r.fs().ReadDir(r.opts.AnchorDir)
	if err != nil {
		return // there is none yet, or it cannot be read: then the next head says so
	}
	own := "." + filepath.Base(rundir.AnchorPath(r.opts.AnchorDir, r.header.RunID)) + "."
	for _, d := range list {
		if vfs.IsTemp(d.Name()) && strings.HasPrefix(d.Name(), own) {
			_ = r.fs().Remove(filepath.Join(r.opts.AnchorDir, d.Name())) // best effort: it is in nobody's way
		}
	}
}

// explainKept says what to do about a log that is not the one of a head that was kept elsewhere.
func explainKept(err error) error {
	if errors.Is(err, digestlog.ErrRollback) || errors.Is(err, digestlog.ErrHeadMismatch) {
		return fmt.Errorf("%w. The run directory was put back to an older state, or its log was cut off or written again: restore it from a newer copy, or begin a new run; `usp verify` says more", err)
	}
	return err
}
