package vfs_test

import (
	"io"
	"os"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/usp-project/usp/internal/vfs"
)

// fileSystems are those that know where nothing was ever written, or may know it.
func fileSystems(t *testing.T) map[string]vfs.FS {
	return map[string]vfs.FS{
		"os": below{vfs.OS(), t.TempDir()}, "mem": vfs.NewMem(), "inject": vfs.Inject(below{vfs.OS(), t.TempDir()}),
	}
}

// Nothing that is not zero lies before the offset that NextData returns, synced or not, whatever was written and cut off.
func TestNextDataPassesZerosOnly(t *testing.T) {
	const size = 1 << 20
	for name, fsys := range fileSystems(t) {
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				f, err := fsys.OpenFile("/f", os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
				check(t, err)
				defer f.Close()
				if rapid.Bool().Draw(t, "preallocated") {
					check(t, f.Preallocate(size))
				} else {
					check(t, f.Truncate(size))
				}
				for range rapid.IntRange(0, 4).Draw(t, "writes") {
					b := make([]byte, rapid.IntRange(1, 40_000).Draw(t, "bytes"))
					b[rapid.IntRange(0, len(b)-1).Draw(t, "where")] = 1
					_, err := f.WriteAt(b, int64(rapid.IntRange(0, size-len(b)).Draw(t, "at")))
					check(t, err)
					if rapid.Bool().Draw(t, "synced") {
						check(t, f.Datasync())
					}
				}
				check(t, f.Truncate(int64(rapid.IntRange(size/2, size).Draw(t, "cut"))))
				content, err := io.ReadAll(io.NewSectionReader(f, 0, size))
				check(t, err)
				for range 10 {
					off := rapid.IntRange(0, len(content)-1).Draw(t, "off")
					first := slices.IndexFunc(content[off:], func(b byte) bool { return b != 0 })
					next, err := vfs.NextData(f, int64(off))
					switch {
					case err == io.EOF && first >= 0, err == nil && first >= 0 && next > int64(off+first):
						t.Fatalf("from %d on there are data at %d, it says %d, %v", off, off+first, next, err)
					case err != nil && err != io.EOF:
						t.Fatal(err)
					case err == nil && next < int64(off):
						t.Fatalf("%d is before %d", next, off)
					}
				}
			})
		})
	}
}

// What was reserved and not written is passed over, and a closed file is an error.
func TestNextDataKnowsWhatIsReserved(t *testing.T) {
	for name, fsys := range fileSystems(t) {
		t.Run(name, func(t *testing.T) {
			f, err := fsys.OpenFile("/f", os.O_RDWR|os.O_CREATE, 0o600)
			check(t, err)
			check(t, f.Preallocate(8<<20))
			for _, at := range []int64{100, 4 << 20} {
				_, err = f.WriteAt([]byte("data"), at)
				check(t, err)
			}
			if next, err := vfs.NextData(f, 2<<20); err == nil && next == 2<<20 {
				t.Skip("NOT CHECKED: this file system does not tell where nothing was written")
			} else if err != nil || next > 4<<20 || next < 3<<20 {
				t.Errorf("behind the first data it says %d, %v", next, err)
			}
			if next, err := vfs.NextData(f, 6<<20); err != io.EOF {
				t.Errorf("behind the last data it says %d, %v", next, err)
			}
			if next, err := vfs.NextData(f, 9<<20); err != io.EOF {
				t.Errorf("behind the end it says %d, %v", next, err)
			}
			check(t, f.Close())
			if _, err := vfs.NextData(f, 0); err == nil || err == io.EOF {
				t.Errorf("no error on a closed file: %v", err)
			}
		})
	}
}

// What is read and written in pieces is what was asked for, to the byte, at whatever offset, with what the end of a file means.
func TestPieces(t *testing.T) {
	fsys := below{vfs.OS(), t.TempDir()}
	rapid.Check(t, func(t *rapid.T) {
		f, err := fsys.OpenFile("/f", os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
		check(t, err)
		defer f.Close()
		sizes := rapid.SampledFrom([]int{0, 1, 16<<10 - 1, 16 << 10, 16<<10 + 1, 32 << 10, 50_000})
		want := make([]byte, sizes.Draw(t, "written"))
		for i := range want {
			want[i] = byte(i*7 + i>>8)
		}
		n, err := f.Write(want)
		check(t, err)
		at := int64(len(want)) + int64(rapid.IntRange(0, 10).Draw(t, "gap"))
		m, err := f.WriteAt(want, at)
		check(t, err)
		if n != len(want) || m != len(want) {
			t.Fatalf("%d and %d bytes written of %d", n, m, len(want))
		}
		if pos, err := f.(io.Seeker).Seek(0, io.SeekCurrent); err != nil || pos != int64(len(want)) {
			t.Fatalf("the position is %d after %d bytes, %v", pos, len(want), err)
		}
		for _, from := range []int64{0, at} {
			got := make([]byte, len(want))
			if n, err := f.ReadAt(got, from); err != nil || n != len(got) || !slices.Equal(got, want) {
				t.Fatalf("at %d: %d bytes of %d, %v", from, n, len(got), err)
			}
		}
		beyond := make([]byte, len(want)+sizes.Draw(t, "beyond")+1)
		if n, err := f.ReadAt(beyond, at); err != io.EOF || n != len(want) || !slices.Equal(beyond[:n], want) {
			t.Fatalf("beyond the end: %d bytes of %d, %v", n, len(want), err)
		}
	})
}
