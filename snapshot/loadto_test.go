package snapshot_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"

	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/snapshot"
)

// mem is memory that can be written anywhere in. It refuses the write that reaches byte full, if that is not 0.
type mem struct {
	b    []byte
	full int64
}

var errFull = errors.New("no room")

func (m *mem) WriteAt(p []byte, off int64) (int, error) {
	if m.full != 0 && off+int64(len(p)) > m.full {
		return 0, errFull
	}
	return copy(m.b[off:], p), nil
}

func loadTo(fsys vfs.FS, info snapshot.Info, o snapshot.LoadOptions, full int64, names ...string) (snapshot.Meta, []byte, error) {
	m := &mem{full: full}
	meta, err := snapshot.LoadTo(fsys, "/"+info.Name, &info.SHA256, o, names, func(_ snapshot.Meta, size int64) (io.WriterAt, error) {
		m.b = make([]byte, size)
		return m, nil
	})
	return meta, m.b, err
}

// TestLoadTo wants the container of what LoadWith returns, of all kinds of snapshots, whole and in part.
func TestLoadTo(t *testing.T) {
	const c = snapshot.ChunkSize
	id := identity(t)
	state := []snapshot.Section{
		{Name: "noise", Data: noise(2*c + 7)}, {Name: "empty"}, {Name: "zeros", Data: make([]byte, c+1)},
		{Name: "one", Data: []byte{7}}, {Name: "whole", Data: noise(c)},
	}
	for _, codec := range []snapshot.Codec{snapshot.None, snapshot.Zstd} {
		for _, kind := range []string{"plain", "kept", "encrypted"} {
			t.Run(fmt.Sprint(codec, "/", kind), func(t *testing.T) {
				fsys := vfs.NewMem()
				o := snapshot.Options{FS: fsys, Codec: codec}
				if kind == "encrypted" {
					o.Recipients = append(o.Recipients, id.Recipient())
				}
				if kind == "kept" {
					o.Reuse = &snapshot.Reuse{Limit: 7}
					reused(t, fsys, 1, state, o)
				}
				info := reused(t, fsys, 2, state, o)
				if kind == "kept" && len(info.Bases) == 0 {
					t.Fatal("nothing is kept elsewhere")
				}
				for _, names := range [][]string{nil, {"one"}, {"whole", "empty"}, {"zeros", "noise", "zeros"}} {
					want := slices.DeleteFunc(slices.Clone(state), func(s snapshot.Section) bool {
						return names != nil && !slices.Contains(names, s.Name)
					})
					m, got, err := loadTo(fsys, info, with(id), 0, names...)
					if err != nil || m.Step != 2 || !bytes.Equal(got, snapshot.AppendSections(nil, want)) {
						t.Errorf("sections %v: step %d, %d bytes, %v", names, m.Step, len(got), err)
					}
				}
				if _, _, err := loadTo(fsys, info, with(id), 0, "one", "two"); !errors.Is(err, snapshot.ErrNoSection) {
					t.Error("a section that is not there:", err)
				}
				var corrupt *snapshot.CorruptError
				if _, _, err := loadTo(fsys, info, with(id), c, "noise"); !errors.Is(err, errFull) || errors.As(err, &corrupt) {
					t.Error("a destination that is full:", err)
				}
			})
		}
	}
}

// TestLoadToDamage flips each byte of a snapshot: all of it is checked, whatever is asked for.
func TestLoadToDamage(t *testing.T) {
	state := []snapshot.Section{{Name: "a", Data: noise(90)}, {Name: "b", Data: noise(70)}}
	fsys := vfs.NewMem()
	info := write(t, fsys, meta(3), state, snapshot.None)
	good, err := vfs.ReadFile(fsys, "/"+info.Name, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	other := info
	other.SHA256[0] ^= 1
	if _, _, err := loadTo(fsys, other, snapshot.LoadOptions{}, 0); !errors.Is(err, snapshot.ErrMismatch) {
		t.Error("not the one in the digest log:", err)
	}
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 4
		put(t, fsys, "/x.snap", bad)
		if _, _, err := loadTo(fsys, snapshot.Info{Name: "x.snap", SHA256: info.SHA256}, snapshot.LoadOptions{}, 0, "a"); err == nil {
			t.Fatalf("byte %d flipped: loaded", i)
		}
	}
}
