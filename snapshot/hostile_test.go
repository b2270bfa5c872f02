package snapshot

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"os"
	"runtime"
	"testing"

	"github.com/usp-project/usp/internal/vfs"
)

// reseal makes all checksums of a file right again, as a hostile writer would.
func reseal(b []byte) {
	if len(b) < headerLen+footerLen {
		return
	}
	le := binary.LittleEndian
	le.PutUint32(b[headerLen-4:], crc(b[:headerLen-4]))
	end := b[len(b)-footerLen:]
	off, n := le.Uint64(end[16:]), le.Uint64(end[24:])
	if size := uint64(len(b)); off <= size && n <= size-off {
		le.PutUint32(end[40:], crc(b[off:off+n]))
	}
	sealFooter(end, sha256.Sum256(b[:len(b)-footerLen+sumOffset]))
}

func put(t testing.TB, b []byte) vfs.FS {
	t.Helper()
	mem := vfs.NewMem()
	f, err := mem.OpenFile("/x.snap", os.O_WRONLY|os.O_CREATE, 0o600)
	if err == nil {
		_, err = f.Write(b)
	}
	if err != nil {
		t.Fatal(err)
	}
	return mem
}

func encoded(t testing.TB, codec Codec, sections ...Section) []byte {
	t.Helper()
	mem := vfs.NewMem()
	info, err := Write("/", Meta{RunID: "r", Step: 1}, sections, Options{FS: mem, Codec: codec})
	if err != nil {
		t.Fatal(err)
	}
	b, err := vfs.ReadFile(mem, "/"+info.Name, 1<<30)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// FuzzLoadResealed goes past the checksums to the checks behind them.
func FuzzLoadResealed(f *testing.F) {
	zip := make([]byte, 4000)
	copy(zip, "compressible")
	for _, codec := range []Codec{None, Zstd} {
		f.Add(encoded(f, codec, Section{"zip", zip}, Section{"raw", []byte{1, 2, 3}}, Section{"empty", nil}))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		b = bytes.Clone(b) // the engine's own
		reseal(b)
		fsys := put(t, b)
		_, sections, err := Load(fsys, "/x.snap", nil)
		if _, verr := Verify(fsys, "/x.snap", nil); (verr == nil) != (err == nil) {
			t.Fatalf("Load says %v, Verify %v", err, verr)
		}
		total := 0
		for _, s := range sections {
			total += len(s.Data)
		}
		if total > maxRatio*len(b) {
			t.Fatalf("%d bytes of state from a file of %d", total, len(b))
		}
	})
}

// TestHostileSizes claims more than the file holds in every field that sizes memory.
func TestHostileSizes(t *testing.T) {
	good := encoded(t, None, Section{"s", make([]byte, 100)})
	le := binary.LittleEndian
	index := int(le.Uint64(good[len(good)-footerLen+16:]))
	end := len(good) - footerLen
	for _, tc := range []struct {
		name string
		at   int
		wide bool
	}{
		{"raw length", index + 72, true}, {"stored length", index + 80, true}, {"chunk count", index + 88, false},
		{"chunk size", index + entryLen, false}, {"section count", end + 12, false},
		{"index offset", end + 16, true}, {"index length", end + 24, true}, {"total", end + 32, true},
	} {
		for _, v := range []uint64{0, 1, 1 << 20, 1<<31 - 1, 1 << 31, 1<<32 - 1, 1 << 40, 1<<63 - 1, 1 << 63, 1<<64 - 1} {
			b := append([]byte(nil), good...)
			if tc.wide {
				le.PutUint64(b[tc.at:], v)
			} else {
				le.PutUint32(b[tc.at:], uint32(v))
			}
			if string(b) == string(good) {
				continue
			}
			reseal(b)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, _, err := Load(put(t, b), "/x.snap", nil)
			runtime.ReadMemStats(&after)
			if err == nil {
				t.Errorf("%s = %#x loaded", tc.name, v)
			}
			if n := after.TotalAlloc - before.TotalAlloc; n > 4<<20 {
				t.Errorf("%s = %#x made Load allocate %d bytes", tc.name, v, n)
			}
		}
	}
}

// TestNewer wants what a later version may set to be told apart from damage.
func TestNewer(t *testing.T) {
	good := encoded(t, None, Section{"s", make([]byte, 100)})
	index := int(binary.LittleEndian.Uint64(good[len(good)-footerLen+16:]))
	for name, at := range map[string]int{"version": 8, "flags": 16, "codec": 60, "section flags": index + 92} {
		b := append([]byte(nil), good...)
		b[at] |= 0x40
		reseal(b)
		if _, _, err := Load(put(t, b), "/x.snap", nil); !errors.Is(err, ErrVersion) {
			t.Errorf("%s of a newer version: %v, want ErrVersion", name, err)
		}
	}
}

// TestExpansion wants 1 GiB of zeros to need at least 1/1024 of that in the file.
func TestExpansion(t *testing.T) {
	p, err := newPacker(3)
	if err != nil {
		t.Fatal(err)
	}
	defer p.enc.Close()
	for _, n := range []int{1, 100, 9000, 100000, ChunkSize - 1, ChunkSize} {
		if got := len(p.pack(make([]byte, n))); got*maxRatio < n || got > n {
			t.Errorf("%d zero bytes stored in %d", n, got)
		}
	}
	b := encoded(t, Zstd, Section{"zeros", make([]byte, 3*ChunkSize)})
	if len(b) > 8192 {
		t.Errorf("3 MiB of zeros in %d bytes", len(b))
	}
	if _, s, err := Load(put(t, b), "/x.snap", nil); err != nil || len(s[0].Data) != 3*ChunkSize {
		t.Errorf("load: %v", err)
	}
}

// TestExpansionRefused wants a reader to hold a file to the same bound.
func TestExpansionRefused(t *testing.T) {
	for stored, ok := range map[uint32]bool{1023: false, 1024: true, ChunkSize - 1: true, ChunkSize: false} {
		row := binary.LittleEndian.AppendUint32(nil, stored|compressed)
		row = binary.LittleEndian.AppendUint32(row, 0)
		_, _, err := parseChunks(entry{raw: ChunkSize, stored: int64(stored)}, row)
		if (err == nil) != ok {
			t.Errorf("1 MiB compressed to %d bytes: %v", stored, err)
		}
	}
}

// TestMemory writes and verifies a state of 32 MiB in a few chunks of memory.
func TestMemory(t *testing.T) {
	state := make([]byte, 32<<20)
	dir := t.TempDir()
	for _, codec := range []Codec{None, Zstd} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		info, err := Write(dir, Meta{RunID: "r", Step: uint64(codec)}, []Section{{"state", state}}, Options{Codec: codec})
		if err == nil {
			_, err = Verify(vfs.OS(), dir+"/"+info.Name, nil)
		}
		if err != nil {
			t.Fatal(err)
		}
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > 24<<20 {
			t.Errorf("codec %v: %d MiB allocated", codec, n>>20)
		}
	}
}
