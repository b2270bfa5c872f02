package remote

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/vfs"
)

// Name is that of this destination among the sinks.
const Name = "remote"

// maxStatus bounds the status file.
const maxStatus = 64 << 10

// Status is how far the snapshots of a run are in the remote store, and what is wrong. It lies beside the cursors of the sinks.
type Status struct {
	To      string    `json:"to"`               // address
	Next    uint64    `json:"next"`             // entries of the log before it are settled: sent, or counted below
	Sent    uint64    `json:"sent"`             // snapshots that were brought there, with their proofs
	Waiting uint64    `json:"waiting"`          // that the log has and that are not there yet
	Missed  uint64    `json:"missed,omitempty"` // pruned here, or left behind by a resume, before they could be sent
	Refused uint64    `json:"refused,omitempty"`
	Pruned  uint64    `json:"pruned,omitempty"` // removed there by retention
	Newest  string    `json:"newest,omitempty"` // name of the newest one there
	Step    uint64    `json:"step,omitempty"`   // its step
	Updated time.Time `json:"updated"`
	Oldest  time.Time `json:"oldest,omitzero"` // since when the oldest one that waits does, as far as this process has seen
	Fault   string    `json:"fault,omitempty"` // why nothing is taken, or the last refusal
	Since   time.Time `json:"since,omitzero"`  // of the fault
	Tries   int       `json:"tries,omitempty"` // since then
}

func statusFile(dir rundir.Dir) string { return filepath.Join(dir.Sinks(), Name+".status") }

// ReadStatus reads the status of a run; ok is false where nothing was ever sent.
func ReadStatus(fsys vfs.FS, dir rundir.Dir) (s Status, ok bool, err error) {
	b, err := vfs.ReadFile(fsys, statusFile(dir), maxStatus)
	if errors.Is(err, fs.ErrNotExist) {
		return s, false, nil
	}
	if err != nil {
		return s, false, err
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return Status{}, false, fmt.Errorf("%s is no status: remove it, and the remote store is looked through again", statusFile(dir))
	}
	return s, true, nil
}

func (s *Status) write(fsys vfs.FS, dir rundir.Dir) error {
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if err := vfs.MkdirAll(fsys, dir.Sinks(), 0o700); err != nil {
		return fmt.Errorf("make the place for the status: %w", err)
	}
	if err := vfs.Replace(fsys, statusFile(dir), append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("save the status of the remote store: %w", err)
	}
	return nil
}
