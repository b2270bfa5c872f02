package sink

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"time"
	"unicode"

	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/vfs"
)

// maxState bounds what a sink keeps in its cursor.
const maxState = 64 << 10

// Status is what the cursor file of a sink says: how far its destination has the run, and what is wrong with it.
type Status struct {
	Name    string    `json:"sink"`
	Next    uint64    `json:"next"`            // ordinal of the first frame that is not there for good
	State   []byte    `json:"state,omitempty"` // the sink's own
	Records uint64    `json:"records"`         // brought there, by all processes so far; those brought twice count twice
	Updated time.Time `json:"updated"`
	Fault   string    `json:"fault,omitempty"` // why the destination takes nothing
	Since   time.Time `json:"since,omitzero"`  // of the fault
	Tries   int       `json:"tries,omitempty"` // since then
}

// Cursor is the place that the status tells of.
func (s *Status) Cursor() Cursor { return Cursor{Next: s.Next, State: s.State} }

// ReadStatus reads the cursor file of a sink; a sink that has none yet has the zero Cursor.
func ReadStatus(fsys vfs.FS, dir rundir.Dir, name string) (Status, error) {
	path := dir.Sink(name)
	b, err := vfs.ReadFile(fsys, path, 2*maxState)
	if errors.Is(err, fs.ErrNotExist) {
		return Status{Name: name}, nil
	}
	if err != nil {
		return Status{}, err
	}
	var s Status
	if err := json.Unmarshal(b, &s); err != nil || s.Name != name || len(s.State) > maxState {
		return Status{}, fmt.Errorf("%s is no cursor of a sink: remove it, and %s gets the run once more from its beginning", path, name)
	}
	s.Fault = printable(s.Fault)
	return s, nil
}

// printable is a text on one line that moves no cursor: a fault may be in the words of a stranger's server, and a run directory come
// from anywhere.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s)
}

// isName says whether a sink can be called so.
func isName(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' && r != '_' })
}

// Statuses reads the cursor files of a run, by name. One that is damaged, or of no sink, is left out.
func Statuses(fsys vfs.FS, dir rundir.Dir) ([]Status, error) {
	list, err := fsys.ReadDir(dir.Sinks())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []Status
	for _, d := range list {
		name, ok := strings.CutSuffix(d.Name(), rundir.CursorSuffix)
		if !ok || vfs.IsTemp(d.Name()) || !isName(name) {
			continue
		}
		if s, err := ReadStatus(fsys, dir, name); err == nil {
			all = append(all, s)
		}
	}
	return all, nil
}

func (s *Status) write(fsys vfs.FS, dir rundir.Dir) error {
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	path := dir.Sink(s.Name)
	if err := vfs.MkdirAll(fsys, filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("make the place for cursors: %w", err)
	}
	if err := vfs.Replace(fsys, path, append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("save the cursor of %s: %w", s.Name, err)
	}
	return nil
}
