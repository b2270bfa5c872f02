package pyramid

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/segment"
	"github.com/usp-project/usp/internal/vfs"
)

// ErrFull is wrapped by the error of Cache.Build for a run whose files do not fit into the cache, though all others were removed.
var ErrFull = errors.New("the cache of aggregates is full")

const (
	usedFile  = "used"           // when a run was looked at last
	usedEvery = 30 * time.Second // its time is no more exact
	mostUsed  = 64               // bytes of that file
	forgotten = 2 * time.Minute  // a run that was looked at since is not removed for another
)

// Cache keeps the files of runs that have none beside their segments, in a directory of the user's: a directory for each run, a
// file for each segment. It holds nothing that cannot be made again, and believes nothing that it finds: a file has its
// checksums, and a name that is made from what the ends of its segment say, so that one of a segment that was replaced
// is not found. Several processes may use one directory.
type Cache struct {
	fs  vfs.FS
	dir string
	max int64 // bytes
	now func() time.Time

	mu    sync.Mutex
	bytes int64 // in all files, as far as is known
}

// CacheOptions say where a Cache is. Dir is needed.
type CacheOptions struct {
	Dir string
	Max int64            // bytes of all files; 0: no limit
	FS  vfs.FS           // nil: the real file system
	Now func() time.Time // nil: time.Now
}

// OpenCache makes the directory if it is not there, and tries whether files can be made in it. What is in it that others could
// read or write is an error: aggregates tell what a run recorded.
func OpenCache(o CacheOptions) (*Cache, error) {
	c := &Cache{fs: vfs.Unsynced(cmp.Or[vfs.FS](o.FS, vfs.OS())), dir: o.Dir, max: o.Max, now: o.Now}
	if c.now == nil {
		c.now = time.Now
	}
	if c.max <= 0 {
		c.max = math.MaxInt64
	}
	if err := vfs.MkdirAll(c.fs, c.dir, dirMode); err != nil {
		return nil, fmt.Errorf("cache of aggregates: %w", err)
	}
	info, err := c.fs.Stat(c.dir)
	if err == nil && info.Mode().Perm()&0o077 != 0 {
		err = fmt.Errorf("others may enter %s: chmod 700 it, or name another directory", c.dir)
	}
	if err == nil {
		err = c.tryWrite()
	}
	if err != nil {
		return nil, fmt.Errorf("cache of aggregates: %w", err)
	}
	return c, nil
}

// tryWrite makes a file and removes it.
func (c *Cache) tryWrite() error {
	w, err := vfs.Begin(c.fs, filepath.Join(c.dir, usedFile), fileMode)
	if err != nil {
		return err
	}
	return w.Discard()
}

// identity tells runs apart: by the manifest of the first generation, which has the run's id, its beginning and the key of its log,
// and never changes.
type identity struct {
	id  string
	sum rundir.Hash
}

func identify(fsys vfs.FS, dir rundir.Dir) (identity, error) {
	m, sum, err := rundir.ReadManifest(fsys, dir, 0)
	if err != nil {
		return identity{}, fmt.Errorf("run %s: %w", dir, err)
	}
	key := sha256.Sum256(fmt.Appendf(nil, "usp aggregates %d\n%s\n%s\n%v\n", version, m.RunID, m.Signer, sum))
	return identity{m.RunID, key}, nil
}

// shelf is the directory of a run's files.
func (c *Cache) shelf(id identity) string {
	return filepath.Join(c.dir, fmt.Sprintf("%s-%.16x", id.id, id.sum[:8]))
}

// stamp is what a segment's file is called in the cache, made from its ends: whose run it is, when it was begun, where it ends and
// what is in it. bound is where the next segment begins. It is empty for one that may still grow.
func stamp(e *segment.Ends, bound uint64) string {
	next := e.Next
	switch {
	case bound != math.MaxUint64:
		next = bound
	case !e.Sealed:
		return ""
	}
	h := sha256.New()
	fmt.Fprintf(h, "%q %d %d %d %d %v %x %x", e.Header.RunID, e.Header.Created.UnixNano(), e.Header.Base, next, e.Size, e.Sealed, e.Header.Meta, e.Index)
	return fmt.Sprintf("%020d-%.8x%s", e.Header.Base, h.Sum(nil)[:8], suffix)
}

// use notes that a run is looked at.
func (c *Cache) use(shelf string) {
	at := c.usedAt(shelf)
	if now := c.now(); at.IsZero() || now.Sub(at) >= usedEvery || at.After(now) {
		_ = vfs.Replace(c.fs, filepath.Join(shelf, usedFile), strconv.AppendInt(nil, now.UnixNano(), 10), fileMode) // then it goes sooner
	}
}

// usedAt is when a run was looked at last; zero if that cannot be told.
func (c *Cache) usedAt(shelf string) time.Time {
	b, err := vfs.ReadFile(c.fs, filepath.Join(shelf, usedFile), mostUsed)
	if err != nil {
		return time.Time{}
	}
	ns, err := strconv.ParseInt(string(b), 10, 64)
	if err != nil {
		return time.Time{}
	}
	return time.Unix(0, ns)
}

// shelved is a run in the cache.
type shelved struct {
	shelf string
	bytes int64
	used  time.Time
}

// list are the runs in the cache, the one that was not looked at for longest first. What is no run's is not touched.
func (c *Cache) list() ([]shelved, error) {
	entries, err := c.fs.ReadDir(c.dir)
	if err != nil {
		return nil, err
	}
	var all []shelved
	for _, e := range entries {
		if !e.IsDir() || !isShelf(e.Name()) {
			continue
		}
		s := shelved{shelf: filepath.Join(c.dir, e.Name())}
		files, err := c.fs.ReadDir(s.shelf)
		if err != nil {
			continue // another process has just removed it
		}
		for _, f := range files {
			if info, err := f.Info(); err == nil {
				s.bytes += info.Size()
			}
		}
		s.used = c.usedAt(s.shelf)
		all = append(all, s)
	}
	slices.SortStableFunc(all, func(a, b shelved) int { return a.used.Compare(b.used) })
	return all, nil
}

func isShelf(name string) bool {
	at := strings.LastIndexByte(name, '-')
	return at > 0 && rundir.ValidID(name[:at]) && len(name) == at+17 && strings.Trim(name[at+1:], "0123456789abcdef") == ""
}

// room removes runs until so many bytes more fit, the one not looked at for longest first. The one that they are for stays, and so do
// those that are looked at by somebody now.
func (c *Cache) room(n int64, shelf string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.bytes > 0 && c.bytes <= c.max-n {
		c.bytes += n
		return nil
	}
	all, err := c.list()
	if err != nil {
		return err
	}
	c.bytes = 0
	for i := range all {
		c.bytes += all[i].bytes
	}
	for i := 0; i < len(all) && c.bytes > c.max-n; i++ {
		if s := &all[i]; s.shelf != shelf && c.now().Sub(s.used) >= forgotten && c.remove(s.shelf) {
			c.bytes -= s.bytes
		}
	}
	if c.bytes > c.max-n {
		return fmt.Errorf("%w: %d of %d bytes are in use in %s", ErrFull, c.bytes, c.max, c.dir)
	}
	c.bytes += n
	return nil
}

// remove removes a run's files, unless another process is just making some.
func (c *Cache) remove(shelf string) bool {
	lock, err := c.fs.Lock(shelf)
	if err != nil {
		return false
	}
	defer lock.Close() // a lock alone
	files, err := c.fs.ReadDir(shelf)
	if err != nil {
		return false
	}
	for _, f := range files {
		if err := c.fs.Remove(filepath.Join(shelf, f.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false
		}
	}
	return c.fs.Remove(shelf) == nil
}
