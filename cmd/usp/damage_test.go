package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/usp-project/usp/internal/audit"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/recorder"
	"github.com/usp-project/usp/snapshot"
)

// smallRun has the real recorder make a run that is small and has everything in it: two generations, rolls of both
// kinds of segments, a prune, snapshots with and without compression. It returns the run directory.
func (w *world) smallRun() string {
	w.t.Helper()
	_, b := w.newStage("small", 2)
	for generation, codec := range []snapshot.Codec{snapshot.None, snapshot.Zstd} {
		l := left{generation: uint32(generation), records: 32, state: 300}
		if generation > 0 {
			l.resumed = b.newestSnapshot(w.t)
		}
		b.leaveRing(w.t, l)
		// Segments smaller than the settings allow: as a library hands them over.
		options, err := json.Marshal(recorder.Options{
			Runs: b.runs(), KeyFile: b.key(), SegmentSize: 9 << 10, CommitBytes: 512, DigestInterval: 2,
			Snapshot: recorder.SnapshotOptions{Codec: codec, Retention: snapshot.Retention{KeepLast: 2 + generation}},
		})
		if err != nil {
			w.t.Fatal(err)
		}
		cmd := w.command("record", "--options-on-stdin", b.ring())
		cmd.Stdin = strings.NewReader(string(options))
		if out, err := cmd.CombinedOutput(); err != nil {
			w.t.Fatalf("%v\n%s", err, out)
		}
	}
	v, err := verify(b.run())
	if err != nil {
		w.t.Fatal(err)
	}
	if c := v.Completeness; v.Exit != 0 || !c.Closed || len(c.Generations) != 2 || c.Snapshots != 3 || v.Files.Telemetry < 4 || v.Files.Digests < 4 {
		w.t.Fatalf("not the run that was to be damaged: %s", v.text)
	}
	return b.run()
}

// memRun is a copy of a run directory in memory, where one thing at a time is damaged.
type memRun struct {
	fs     *vfs.Mem
	dir    string
	writes int
}

func loadRun(dir string) (*memRun, error) {
	m := &memRun{fs: vfs.NewMem(), dir: "/runs/" + filepath.Base(dir)}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		name := filepath.Join(m.dir, rel)
		if d.IsDir() {
			return vfs.MkdirAll(m.fs, name, 0o755)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return vfs.Replace(m.fs, name, b, 0o644)
	})
	return m, err
}

// verify judges the copy. What is an error there is none of the directory.
func (m *memRun) verify() (*audit.Report, error) {
	return audit.Verify(context.Background(), m.fs, m.dir, audit.Options{})
}

// damaged verifies with a file changed, and puts it right again.
func (m *memRun) damaged(name string, good []byte, d damage) (r *audit.Report, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%s, %v: verify panics: %v", name, d, p)
		}
	}()
	f, err := m.fs.OpenFile(filepath.Join(m.dir, name), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if d.cut {
		err = f.Truncate(int64(d.at))
	} else {
		_, err = f.WriteAt([]byte{good[d.at] ^ 1<<d.bit}, int64(d.at))
	}
	if err != nil {
		return nil, err
	}
	if r, err = m.verify(); err != nil {
		return nil, err
	}
	if d.cut {
		_, err = f.WriteAt(good[d.at:], int64(d.at))
	} else {
		_, err = f.WriteAt(good[d.at:d.at+1], int64(d.at))
	}
	if m.writes++; err == nil && m.writes%100 == 0 {
		err = f.Sync() // the memory file system keeps what was not synced
	}
	return r, err
}

// damage is a flipped bit, or a file cut to its first bytes.
type damage struct {
	cut bool
	at  int
	bit int
}

func (d damage) String() string {
	if d.cut {
		return fmt.Sprintf("cut to %d bytes", d.at)
	}
	return fmt.Sprintf("bit %d of byte %d flipped", d.bit, d.at)
}

// accept wants the verdict that the damage deserves, and the file named. There is one exception: a file that is cut to
// nothing where its absence means something of its own. It has none among the files of a run: an empty head is a broken
// head, an empty segment one without its header.
func accept(name string, d damage, r *audit.Report) error {
	if r.Verdict != audit.Failed || r.Exit != 20 {
		return fmt.Errorf("%s, %v: verdict %v, tail %v", name, d, r.Verdict, r.Completeness.Tail)
	}
	if !slices.ContainsFunc(r.Integrity.Problems, func(p audit.Problem) bool { return p.File == name }) {
		return fmt.Errorf("%s, %v: the file is not named in %v", name, d, r.Integrity.Problems)
	}
	return nil
}

// TestEveryByte flips bits of every file of a small real run, and cuts every file short. Verify must never pass it, never
// panic, and name the file. A sample in the normal run; with TORTURE=1 every bit of every byte, and every length.
func TestEveryByte(t *testing.T) {
	if raceDetector {
		t.Skip("NOT CHECKED: this test verifies thousands of times and runs no two things on one memory: without -race")
	}
	w := newWorld(t)
	dir := w.smallRun()
	reference, err := loadRun(dir)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	if err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		files[name], err = vfs.ReadFile(reference.fs, filepath.Join(reference.dir, name), math.MaxInt32)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	seed := uint64(time.Now().UnixNano())
	rnd := rand.New(rand.NewPCG(seed, 6))
	type task struct {
		name string
		d    damage
	}
	var tasks []task
	bytes := 0
	for name, b := range files {
		bytes += len(b)
		for at := range b {
			edge := at == 0 || at == len(b)-1
			for bit := range 8 {
				if torture() || edge || rnd.IntN(1800) == 0 {
					tasks = append(tasks, task{name, damage{at: at, bit: bit}})
				}
			}
			if torture() || edge || rnd.IntN(300) == 0 {
				tasks = append(tasks, task{name, damage{cut: true, at: at}})
			}
		}
	}
	t.Logf("seed %d: %d files with %d bytes, damaged in %d ways", seed, len(files), bytes, len(tasks))
	var next atomic.Int64
	var wg sync.WaitGroup
	for range max(2, runtime.GOMAXPROCS(0)) {
		wg.Go(func() {
			m, err := loadRun(dir)
			if err != nil {
				t.Error(err)
				return
			}
			for !t.Failed() {
				i := int(next.Add(1)) - 1
				if i >= len(tasks) {
					break
				}
				if i%50_000 == 49_999 {
					t.Logf("%d of %d", i+1, len(tasks))
				}
				r, err := m.damaged(tasks[i].name, files[tasks[i].name], tasks[i].d)
				if err == nil {
					err = accept(tasks[i].name, tasks[i].d, r)
				}
				if err != nil {
					t.Error(err)
				}
			}
			if r, err := m.verify(); !t.Failed() && (err != nil || r.Verdict != audit.OK) {
				t.Errorf("with all put right: %v, %v: the damage was not what it was meant to be", r.Verdict, err)
			}
		})
	}
	wg.Wait()
	// A head that is not there at all is another thing than a broken one: as if nothing had ever been signed.
	if err := reference.fs.Remove(filepath.Join(reference.dir, rundir.HeadFile)); err != nil {
		t.Fatal(err)
	}
	if r, err := reference.verify(); err != nil || r.Verdict != audit.CrashTail {
		t.Errorf("without a head: %v, %v", r.Verdict, err)
	}
}
