package bench

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/ring"
	"github.com/usp-project/usp/snapshot"
)

// SnapshotFigures says what a snapshot of a state of that size costs: medians over rounds, in nanoseconds.
type SnapshotFigures struct {
	Size   int   `json:"bytes"`
	Rounds int   `json:"rounds"`
	Stall  int64 `json:"stall_ns"` // the step loop is held up for
	Copy   int64 `json:"copy_ns"`  // the same state copied to memory of this process
	Write  int64 `json:"persist_ns"`
	Plain  int64 `json:"plain_persist_ns"` // write, fsync, rename, fsync of the directory
	Load   int64 `json:"load_ns"`          // with verification
	Read   int64 `json:"read_ns"`          // the file read and its SHA-256

	ToCopy  float64 `json:"stall_to_copy"`    // Stall / Copy: at best 1
	ToPlain float64 `json:"persist_to_plain"` // Plain / Write: the share of the plain speed, at best 1
	ToRead  float64 `json:"load_to_read"`     // Read / Load: the share of the plain speed
}

// How much is staged and copied, and how much is loaded, in a round: what is soon done is done more than once.
const (
	stallBytes = 64 << 20
	loadBytes  = 16 << 20
)

// CompareSnapshot measures rounds of each, in turn. ringDir is memory-backed, "" = ring.DefaultDir().
func CompareSnapshot(ctx context.Context, dir, ringDir string, size, rounds int) (f SnapshotFigures, err error) {
	f = SnapshotFigures{Size: size, Rounds: rounds}
	work, err := os.MkdirTemp(dir, "usp-bench-")
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work), syncDir(dir)) }()
	s := &snapshotBench{dir: work, sections: []snapshot.Section{{Name: "state", Data: noise(size)}}}
	closeRing, err := s.openRing(ringDir)
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, closeRing()) }()
	s.copied = make([]byte, size)
	copy(s.copied, s.sections[0].Data) // its pages are there, as those of a staging area are
	steps := []struct {
		do   func() error
		to   *int64
		each int // operations in a round
	}{
		{s.copy, &f.Copy, max(1, stallBytes/size)}, {s.stage, &f.Stall, max(1, stallBytes/size)},
		{s.writePlain, &f.Plain, 1}, {s.write, &f.Write, 1}, {s.read, &f.Read, max(1, loadBytes/size)}, {s.load, &f.Load, max(1, loadBytes/size)},
	}
	times := make([][]time.Duration, len(steps))
	for range rounds {
		for i, step := range steps {
			for range step.each {
				if ctx.Err() != nil {
					return f, context.Cause(ctx)
				}
				if err := step.do(); err != nil {
					return f, err
				}
				times[i] = append(times[i], s.took)
			}
		}
		if err := s.settle(); err != nil {
			return f, err
		}
	}
	for i, step := range steps {
		*step.to = Median(times[i]).Nanoseconds()
	}
	f.ToCopy, f.ToPlain, f.ToRead = float64(f.Stall)/float64(f.Copy), float64(f.Plain)/float64(f.Write), float64(f.Read)/float64(f.Load)
	return f, nil
}

// snapshotBench holds what the operations work on. Each leaves the time of what counts in took.
type snapshotBench struct {
	dir      string
	sections []snapshot.Section
	copied   []byte
	producer *ring.Producer
	consumer *ring.Consumer
	info     snapshot.Info
	took     time.Duration
}

// openRing makes a ring whose staging areas take the state; the returned function removes it.
func (s *snapshotBench) openRing(dir string) (func() error, error) {
	if dir == "" {
		dir, _ = ring.DefaultDir()
	}
	if err := ring.PrepareDir(dir); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(dir, "bench-")
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, "bench.ring")
	s.producer, err = ring.Create(ring.Config{
		Path: path, RunID: "bench", Schema: []byte("bench"), PayloadLen: 8, Slots: 2,
		StagingAreas: 1, StagingCapacity: int64(snapshot.SectionsSize(s.sections)),
	})
	if err == nil {
		s.consumer, err = ring.Open(path)
	}
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return func() error {
		return errors.Join(s.consumer.Close(), s.producer.Close(true), os.RemoveAll(dir))
	}, nil
}

func (s *snapshotBench) stage() error {
	begun := time.Now()
	ok := s.producer.Stage(1, 0, snapshot.SectionsSize(s.sections), func(dst []byte) {
		snapshot.AppendSections(dst[:0], s.sections)
	})
	s.took = time.Since(begun)
	staged, there := s.consumer.Staged()
	if !ok || !there {
		return errors.New("the state was not staged")
	}
	return staged.Release()
}

func (s *snapshotBench) copy() error {
	begun := time.Now()
	copy(s.copied, s.sections[0].Data)
	s.took = time.Since(begun)
	return nil
}

func (s *snapshotBench) write() (err error) {
	begun := time.Now()
	s.info, err = snapshot.Write(s.dir, snapshot.Meta{RunID: "bench", Step: 1}, s.sections, snapshot.Options{})
	s.took = time.Since(begun)
	return err
}

func (s *snapshotBench) writePlain() error {
	begun := time.Now()
	err := vfs.Replace(vfs.OS(), filepath.Join(s.dir, "plain"), s.sections[0].Data, 0o600)
	s.took = time.Since(begun)
	return err
}

func (s *snapshotBench) load() error {
	begun := time.Now()
	_, _, err := snapshot.Load(vfs.OS(), filepath.Join(s.dir, s.info.Name), &s.info.SHA256)
	s.took = time.Since(begun)
	return err
}

func (s *snapshotBench) read() error {
	begun := time.Now()
	f, err := os.Open(filepath.Join(s.dir, s.info.Name))
	if err != nil {
		return err
	}
	defer f.Close()
	data := make([]byte, s.info.Size)
	if _, err := io.ReadFull(f, data); err != nil {
		return err
	}
	if sha256.Sum256(data) != s.info.SHA256 {
		return fmt.Errorf("snapshot %s is not what was written", s.info.Name)
	}
	s.took = time.Since(begun)
	return nil
}

// settle removes the files and waits until they are gone.
func (s *snapshotBench) settle() error {
	for _, name := range []string{"plain", s.info.Name} {
		if err := os.Remove(filepath.Join(s.dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return syncDir(s.dir)
}

// noise is a state that cannot be compressed.
func noise(size int) []byte {
	b := make([]byte, size)
	rand.NewChaCha8([32]byte{1}).Read(b) // never fails
	return b
}
