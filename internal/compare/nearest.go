package compare

import (
	"cmp"
	"context"
	"crypto/sha256"
	"io"
	"os"
	"slices"

	"github.com/usp-project/usp/digestlog"
)

// Snapshot is a saved state from which the way to the first divergent step can be computed again.
type Snapshot struct {
	Name       string `json:"name"`
	Step       uint64 `json:"step"`
	Generation uint32 `json:"generation"`
}

// nearest finds on each side that has snapshots the newest one before the first divergent step that is what the log says.
func (c *comparison) nearest(ctx context.Context) error {
	var err error
	if c.A.Nearest, err = c.a.log.nearest(ctx, c.First.Step); err != nil {
		return err
	}
	c.B.Nearest, err = c.b.log.nearest(ctx, c.First.Step)
	return err
}

func (l *Log) nearest(ctx context.Context, before uint64) (*Snapshot, error) {
	list := slices.DeleteFunc(slices.Clone(l.snapshots), func(e digestlog.Entry) bool {
		g := l.generations[e.Generation]
		return l.Tiles || g == nil || !g.effective(e.Step) || e.Step >= before || l.pruned[e.Name]
	})
	slices.SortStableFunc(list, func(a, b digestlog.Entry) int { return -cmp.Compare(a.Step, b.Step) })
	for _, e := range list {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		sum, err := l.hash(l.dir.Snapshot(e.Name))
		if err == nil && sum == e.SHA256 {
			return &Snapshot{Name: e.Name, Step: e.Step, Generation: e.Generation}, nil
		}
	}
	return nil, nil
}

// hash is of a whole file. One that cannot be read is none to begin from; usp verify says what is wrong with it.
func (l *Log) hash(path string) (sum [32]byte, err error) {
	f, err := l.fsys.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return sum, err
	}
	defer f.Close()
	h := sha256.New()
	if _, err = io.Copy(h, f); err == nil {
		h.Sum(sum[:0])
	}
	return sum, err
}
