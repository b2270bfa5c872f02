package digestlog

import (
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/usp-project/usp/internal/vfs"
)

// TestTilesEntriesFrom reads from anywhere in an export.
func TestTilesEntriesFrom(t *testing.T) {
	m := bigLog(t, 600)
	mustExport(t, m)
	x, err := OpenTiles(m, testTiles)
	must(t, err)
	for _, from := range []uint64{0, 1, 255, 256, 599, 600, 1000} {
		next := from
		for it, err := range x.Entries(from) {
			must(t, err)
			if it.Index != next || it.Entry.Step != next {
				t.Fatalf("from %d: entry %d is %+v", from, next, it)
			}
			next++
			if next == from+300 {
				break
			}
		}
		if want := max(from, min(from+300, 600)); next != want {
			t.Errorf("from %d: read up to %d, want %d", from, next, want)
		}
	}
}

// TestTilesHugeSize: a checkpoint that promises more than there can be does not keep its reader for ever.
func TestTilesHugeSize(t *testing.T) {
	m := bigLog(t, 300)
	mustExport(t, m)
	signer, _, _ := testKey(t, 1)
	h, err := signHead(signer, testRun, maxSize, [32]byte{})
	must(t, err)
	must(t, vfs.Replace(m, testTiles+"/"+HeadName, h.Note, 0o644))
	r := verifyTiles(t, m)
	if r.Err() == nil || !r.Has(ClassMissing) || r.Dropped == 0 {
		t.Errorf("%d faults, want missing", len(r.Faults))
	}
	last := Fault{}
	for _, err := range TileEntries(m, testTiles) {
		if f, ok := err.(*Fault); ok {
			last = *f
		}
	}
	if last.Class != ClassMissing || last.To != maxSize {
		t.Errorf("the last fault is %v, want all of the rest to be missing", &last)
	}
}

// FuzzTiles reads any bytes as a bundle, under a head of any small size.
func FuzzTiles(f *testing.F) {
	var good []byte
	for i := range 3 {
		raw := step(i).Append(nil)
		good = append(binary.BigEndian.AppendUint16(good, uint16(len(raw))), raw...)
	}
	f.Add(uint8(3), good)
	f.Add(uint8(2), good)
	f.Add(uint8(4), good)
	f.Add(uint8(1), []byte{0, 0})
	signer, verifiers, _ := testKey(f, 1)
	f.Fuzz(func(t *testing.T, size uint8, bundle []byte) {
		m := vfs.NewMem()
		h, err := signHead(signer, testRun, uint64(size), [32]byte{})
		must(t, err)
		path := fmt.Sprintf("%s/tile/entries/000.p", testTiles)
		must(t, vfs.MkdirAll(m, path, 0o755))
		must(t, vfs.Replace(m, testTiles+"/"+HeadName, h.Note, 0o644))
		must(t, vfs.Replace(m, fmt.Sprintf("%s/%d", path, size), bundle, 0o644))
		items, faults := uint64(0), 0
		var again []byte
		for it, err := range TileEntries(m, testTiles) {
			if it.Raw != nil {
				again = append(binary.BigEndian.AppendUint16(again, uint16(len(it.Raw))), it.Raw...)
				if it.Index != items {
					t.Fatalf("item %d has index %d", items, it.Index)
				}
				items++
			}
			if err != nil {
				faults++
			}
		}
		if items > uint64(size) || string(again) != string(bundle[:len(again)]) || faults == 0 && size > 0 && (items != uint64(size) || len(again) != len(bundle)) {
			t.Fatalf("%d items of %d, %d faults, %d bytes of %d", items, size, faults, len(again), len(bundle))
		}
		r, err := VerifyTiles(TilesOptions{FS: m, Dir: testTiles, Verifiers: verifiers})
		if err != nil || r.Err() == nil {
			t.Fatalf("a head over a root that nothing has: %v, %v", err, r.Faults)
		}
	})
}
