package rundir

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/usp-project/usp/internal/vfs"
)

// ErrNotFound is wrapped by every *NotFoundError.
var ErrNotFound = errors.New("run not found")

// NotFoundError says that there is no such run and which ones are close to it.
type NotFoundError struct {
	Arg     string   // what was asked for
	RunsDir string   // where it was looked for
	Close   []string // ids of similar runs, best first
}

func (e *NotFoundError) Error() string {
	msg := fmt.Sprintf("run %q not found in %s", e.Arg, e.RunsDir)
	switch {
	case e.Arg == Latest:
		return fmt.Sprintf("there is no run in %s yet", e.RunsDir)
	case len(e.Close) > 0:
		msg += "; did you mean " + strings.Join(e.Close, ", ") + "?"
	}
	return msg
}

func (e *NotFoundError) Unwrap() error { return ErrNotFound }

// Resolve finds the run directory that arg means: "latest", a run id in runsDir,
// or the path of a run directory. A run that was only just begun counts even if
// it has no manifest yet. The error is a *NotFoundError or from the file system.
func Resolve(fsys vfs.FS, runsDir, arg string) (Dir, error) {
	if arg == Latest {
		return latest(fsys, runsDir)
	}
	candidates := []string{arg}
	if ValidID(arg) {
		candidates = []string{filepath.Join(runsDir, arg), arg}
	}
	for _, path := range candidates {
		info, err := fsys.Stat(path)
		switch {
		case path == "" || errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return "", fmt.Errorf("finding run %q: %w", arg, err)
		case info.IsDir():
			return At(path), nil
		}
	}
	ids, err := runIDs(fsys, runsDir)
	if err != nil {
		return "", err
	}
	return "", &NotFoundError{Arg: arg, RunsDir: runsDir, Close: closest(filepath.Base(arg), ids)}
}

// latest follows the symbolic link and, where there is none or it leads nowhere,
// takes the newest run that has a manifest.
func latest(fsys vfs.FS, runsDir string) (Dir, error) {
	if l, ok := links(fsys); ok {
		target, err := l.Readlink(filepath.Join(runsDir, Latest))
		if id := filepath.Base(target); err == nil && ValidID(id) {
			path := filepath.Join(runsDir, id)
			if info, err := fsys.Stat(path); err == nil && info.IsDir() {
				return At(path), nil
			}
		}
	}
	ids, err := runIDs(fsys, runsDir)
	if err != nil {
		return "", err
	}
	for _, id := range slices.Backward(ids) {
		dir := At(filepath.Join(runsDir, id))
		if _, err := fsys.Stat(dir.Manifest(0)); err == nil {
			return dir, nil
		}
	}
	return "", &NotFoundError{Arg: Latest, RunsDir: runsDir}
}

// runIDs are the directories of runsDir whose names can be run ids, sorted. A
// runsDir that is not there has none.
func runIDs(fsys vfs.FS, runsDir string) ([]string, error) {
	list, err := fsys.ReadDir(runsDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("listing runs: %w", err)
	}
	var ids []string
	for _, d := range list {
		if d.IsDir() && ValidID(d.Name()) {
			ids = append(ids, d.Name())
		}
	}
	return ids, nil
}

const maxClose = 5

// closest are the ids that contain arg or differ from it in a few letters.
func closest(arg string, ids []string) []string {
	type match struct {
		id   string
		cost int
	}
	var found []match
	for _, id := range ids {
		switch d := distance(arg, id); {
		case arg != "" && strings.HasPrefix(id, arg):
			found = append(found, match{id, 0})
		case arg != "" && strings.Contains(id, arg):
			found = append(found, match{id, 1})
		case d <= max(2, len(id)/4):
			found = append(found, match{id, 1 + d})
		}
	}
	slices.SortStableFunc(found, func(a, b match) int {
		return cmp.Or(cmp.Compare(a.cost, b.cost), -strings.Compare(a.id, b.id)) // newer first
	})
	var out []string
	for _, m := range found[:min(len(found), maxClose)] {
		out = append(out, m.id)
	}
	return out
}

// distance is Levenshtein's, in bytes.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// Run is one entry of List.
type Run struct {
	ID         string    `json:"run_id"`
	Dir        Dir       `json:"dir"`
	Created    time.Time `json:"created"`    // of generation 0
	Generation uint32    `json:"generation"` // newest
	Recording  bool      `json:"recording"`  // a recorder holds the directory's lock
	Manifest   *Manifest `json:"-"`          // of the newest generation; nil with Err
	Err        error     `json:"-"`          // why a manifest cannot be read
}

// List returns the runs in a directory, oldest first by id. What has no manifest
// is not a run and is passed over; a run whose manifest cannot be read is listed
// with Err. It says nothing about what the run's files hold.
func List(fsys vfs.FS, runsDir string) ([]Run, error) {
	ids, err := runIDs(fsys, runsDir)
	if err != nil {
		return nil, err
	}
	var runs []Run
	for _, id := range ids {
		dir := At(filepath.Join(runsDir, id))
		last, err := LastGeneration(fsys, dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		r := Run{ID: id, Dir: dir, Generation: last, Err: err, Recording: Locked(fsys, dir)}
		if err == nil {
			r.read(fsys)
		}
		runs = append(runs, r)
	}
	return runs, nil
}

func (r *Run) read(fsys vfs.FS) {
	first, _, err := ReadManifest(fsys, r.Dir, 0)
	if err == nil {
		r.Created = first.Created
		r.Manifest, _, err = ReadManifest(fsys, r.Dir, r.Generation)
	}
	r.Err = err
}

// Locked says whether a recorder holds the run. It takes the lock for an instant
// to find out, so a recorder should try more than once before it gives up.
func Locked(fsys vfs.FS, dir Dir) bool {
	l, err := fsys.Lock(dir.Path())
	if err != nil {
		return errors.Is(err, vfs.ErrLocked)
	}
	// Closing the lock only releases it; the directory was opened for reading.
	_ = l.Close()
	return false
}

// symlinker is what a file system can do about symbolic links.
type symlinker interface {
	Symlink(oldname, newname string) error
	Readlink(name string) (string, error)
}

type hostLinks struct{}

func (hostLinks) Symlink(oldname, newname string) error { return os.Symlink(oldname, newname) }
func (hostLinks) Readlink(name string) (string, error)  { return os.Readlink(name) }

// links finds out what fsys can do. Symbolic links are not part of vfs.FS
// because nothing that must survive rests on them.
func links(fsys vfs.FS) (symlinker, bool) {
	if fsys == vfs.OS() {
		return hostLinks{}, true
	}
	l, ok := fsys.(symlinker)
	return l, ok
}

// SetLatest points runsDir/latest at a run, replacing the link in one step. It is
// a convenience: without it, or on a file system without symbolic links, where it
// does nothing, Resolve takes the newest run.
func SetLatest(fsys vfs.FS, runsDir, id string) error {
	l, ok := links(fsys)
	if !ok {
		return nil
	}
	link := filepath.Join(runsDir, Latest)
	temp := filepath.Join(runsDir, "."+Latest+".tmp-0")
	err := l.Symlink(id, temp)
	if errors.Is(err, fs.ErrExist) {
		if err = fsys.Remove(temp); err == nil {
			err = l.Symlink(id, temp)
		}
	}
	if err == nil {
		err = fsys.Rename(temp, link)
	}
	if err == nil {
		err = fsys.SyncDir(runsDir)
	}
	if err != nil {
		return fmt.Errorf("pointing %s at run %s: %w", link, id, err)
	}
	return nil
}
