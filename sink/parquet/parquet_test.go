package parquet_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	pq "github.com/parquet-go/parquet-go"

	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/sink"
	"github.com/usp-project/usp/sink/parquet"
	"github.com/usp-project/usp/sink/sinktest"
)

type row struct {
	Step       uint64 `parquet:"step"`
	Generation uint32 `parquet:"generation"`
	Seq        uint64 `parquet:"seq"`
}

// files are the Parquet files below dir, in the order of a reader.
func files(t *testing.T, dir string) []string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(dir, "run=*", "part-*.parquet"))
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(list)
	return list
}

// held is what is in the files: each name, each value as text and as bytes, and what stands beside them.
func held(t *testing.T, dir string) (all [][]byte) {
	t.Helper()
	for _, name := range files(t, dir) {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		file, err := pq.OpenFile(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, b, []byte(file.Schema().String()))
		for _, kv := range file.Metadata().KeyValueMetadata {
			all = append(all, []byte(kv.Key+"="+kv.Value))
		}
		reader := pq.NewReader(file)
		rows, n := make([]pq.Row, 512), 0
		for err == nil {
			if n, err = reader.ReadRows(rows); err != nil && !errors.Is(err, io.EOF) {
				t.Fatal(err)
			}
			for _, r := range rows[:n] {
				for _, v := range r {
					all = append(all, append(v.Bytes(), []byte(" "+v.String())...))
				}
			}
		}
	}
	return all
}

func TestConformance(t *testing.T) {
	sinktest.Test(t, func(t *testing.T) sinktest.Destination {
		dir := filepath.Join(t.TempDir(), "lake")
		disk := sinktest.NewDisk()
		return sinktest.Destination{
			Open:  func() sink.Sink { return parquet.New(parquet.Options{Dir: dir, FS: disk}) },
			Fault: disk.Fault, Blocks: true,
			Held: func(t *testing.T) [][]byte { return held(t, dir) },
			Rows: func(t *testing.T) (all []sinktest.Row) {
				for _, name := range files(t, dir) {
					rows, err := pq.ReadFile[row](name)
					if err != nil {
						t.Fatal(err)
					}
					for _, r := range rows {
						all = append(all, sinktest.Row{Generation: r.Generation, Seq: r.Seq, Step: r.Step})
					}
				}
				return all
			},
			Lost: func(t *testing.T) (n uint64) {
				for _, name := range files(t, dir) {
					f, err := os.Open(name)
					if err != nil {
						t.Fatal(err)
					}
					defer f.Close()
					info, err := f.Stat()
					if err != nil {
						t.Fatal(err)
					}
					file, err := pq.OpenFile(f, info.Size())
					if err != nil {
						t.Fatal(err)
					}
					text, _ := file.Lookup("usp.lost")
					lost, err := strconv.ParseUint(text, 10, 64)
					if err != nil {
						t.Fatal(err)
					}
					n += lost
				}
				return n
			},
		}
	})
}

// TestFiles: a file for each sealed segment, whole when it is there, and none of a digest field.
func TestFiles(t *testing.T) {
	dir := t.TempDir()
	r := sinktest.Record(t)
	r.Emit(10)
	r.Roll()
	r.Emit(5)
	o := sink.Options{Dir: r.Dir, Name: "parquet"}
	bring := func() sink.Status {
		t.Helper()
		if err := sink.Bring(t.Context(), o, parquet.New(parquet.Options{Dir: dir})); err != nil {
			t.Fatal(err)
		}
		s, err := sink.ReadStatus(vfs.OS(), r.Dir, "parquet")
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	if s := bring(); s.Next != 10 {
		t.Errorf("the cursor is at %d, want the end of the sealed segment", s.Next)
	}
	base := filepath.Join(dir, "run="+r.Dir.ID())
	first := filepath.Join(base, "part-00000000000000000000.parquet")
	if got := files(t, dir); !slices.Equal(got, []string{first}) {
		t.Errorf("files %v", got)
	}
	before, err := os.ReadFile(first)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range sinktest.Canaries() {
		if c != "rho" && bytes.Contains(before, []byte(c)) {
			t.Errorf("%s is in the file", c)
		}
	}
	if err := os.WriteFile(filepath.Join(base, ".part-00000000000000000010.parquet.tmp-0"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.Roll()
	if s := bring(); s.Next != 15 {
		t.Errorf("the cursor is at %d", s.Next)
	}
	if err := os.Remove(r.Dir.Sink("parquet")); err != nil {
		t.Fatal(err)
	}
	bring()
	after, err := os.ReadFile(first)
	if err != nil || !bytes.Equal(before, after) {
		t.Errorf("the same segment gave %d and %d bytes, %v", len(before), len(after), err)
	}
	entries, err := os.ReadDir(base)
	if err != nil || len(entries) != 2 {
		t.Errorf("%d files in the directory: %v, %v", len(entries), entries, err)
	}
}

// TestFaults fails each system call of a destination once: the run comes there all the same, each record once.
func TestFaults(t *testing.T) {
	for _, kind := range []vfs.OpKind{vfs.OpCreate, vfs.OpWrite, vfs.OpSync, vfs.OpRename, vfs.OpOpen} {
		for nth := 1; nth <= 3; nth++ {
			dir := filepath.Join(t.TempDir(), "lake")
			r := sinktest.Record(t)
			for range 3 {
				r.Emit(10)
				r.Roll()
			}
			fsys := vfs.Inject(vfs.OS(), vfs.Rule{Op: kind, Nth: nth, Err: syscall.ENOSPC})
			o := sink.Options{Dir: r.Dir, Name: "parquet", Pace: sink.Pace{RetryFirst: time.Millisecond}}
			if err := sink.Bring(t.Context(), o, parquet.New(parquet.Options{Dir: dir, FS: fsys})); err != nil {
				t.Fatal(err)
			}
			n := 0
			for _, name := range files(t, dir) {
				rows, err := pq.ReadFile[row](name)
				if err != nil {
					t.Fatal(err)
				}
				n += len(rows)
			}
			entries, err := os.ReadDir(filepath.Join(dir, "run="+r.Dir.ID()))
			if n != 30 || err != nil || len(entries) != 3 {
				t.Errorf("%v, call %d: %d records, %d files, %v", kind, nth, n, len(entries), err)
			}
			if len(fsys.Fired()) == 0 && nth == 1 {
				t.Errorf("%v was never called", kind)
			}
		}
	}
}

func TestNoDirectory(t *testing.T) {
	_, err := parquet.New(parquet.Options{}).Begin(context.Background(), sink.Run{ID: "x"}, sink.Cursor{})
	if !errors.Is(err, sink.ErrRefused) || !strings.Contains(err.Error(), "no directory") {
		t.Errorf("got %v", err)
	}
}
