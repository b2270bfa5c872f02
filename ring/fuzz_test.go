//go:build unix

package ring

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"os"
	"testing"
)

// FuzzOpen: no file, however made, makes Open, Next or Staged panic or fault,
// use memory by its say-so, or deliver a record whose CRC is wrong.
func FuzzOpen(f *testing.F) {
	clean := image(f)
	f.Add(clean, []byte(nil), false)
	f.Add(clean[:4096], []byte(nil), true)
	changed := append([]byte(nil), clean...)
	binary.LittleEndian.PutUint64(changed[offPosition:], 1<<63)
	changed[offState] = 1
	f.Add(changed, []byte(areaMagic), true)
	h, _, err := decodeFixed(clean, int64(len(clean)))
	if err != nil {
		f.Fatal(err)
	}
	h.StagingAreas, h.StagingCapacity, h.Schema, h.SchemaSum = 1, 8, nil, sha256.Sum256(nil)
	stage := make([]byte, areaSize(8))
	copy(stage, encodeArea(&h, 0))
	stage[areaState], stage[areaLength] = areaReady, 8
	f.Add(append(h.encode(), clean[4096:]...), stage, false)
	f.Fuzz(func(t *testing.T, ring, stage []byte, fix bool) {
		if fix && len(ring) >= fixedHeaderLen {
			reseal(ring)
		}
		exercise(t, ring, stage)
	})
}

// FuzzPatched is FuzzOpen on rings that are right but for a few words: each ten
// bytes of patches are an offset and what to put there.
func FuzzPatched(f *testing.F) {
	stagedRing := stagedVector(f, Config{RunID: "run", Slots: 4})
	f.Add([]byte{}, true)
	f.Add([]byte{0, 4, 255, 255, 255, 255, 255, 255, 255, 255}, true)
	f.Add([]byte{0, 4, 9, 0, 0, 0, 0, 0, 0, 0, 0x40, 0x10, 21, 0, 0, 0, 0, 0, 0, 0}, true)
	f.Fuzz(func(t *testing.T, patches []byte, fix bool) {
		ring, stage := bytes.Clone(stagedRing.content), bytes.Clone(stagedRing.areas[0])
		for ; len(patches) >= 10; patches = patches[10:] {
			at, file := int(binary.LittleEndian.Uint16(patches)), ring
			if at >= 1<<15 {
				at, file = at-1<<15, stage
			}
			copy(file[at%len(file):], patches[2:10])
		}
		if fix {
			reseal(ring)
		}
		exercise(t, ring, stage)
	})
}

// exercise reads all there is in a ring that may be anything.
func exercise(t *testing.T, ring, stage []byte) {
	t.Helper()
	path := writeFile(t, ring)
	if len(stage) > 0 {
		if err := os.WriteFile(path+".stage0", stage, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c, err := Open(path)
	if err != nil {
		return
	}
	defer c.Close()
	h := c.Header()
	w := make([]uint64, h.Words())
	last := c.Position()
	for range 2*h.Slots + 4 {
		_, st := c.Next(w)
		if st == Failed {
			if !errors.Is(c.Err(), ErrCorrupt) {
				t.Fatal(c.Err())
			}
			break
		}
		if st == Empty {
			if _, err := c.ProducerAlive(); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if c.Position() <= last {
			t.Fatalf("%v and position %d -> %d", st, last, c.Position())
		}
		last = c.Position()
	}
	for range 3 {
		if s, ok := c.Staged(); ok {
			if int64(len(s.Bytes())) > h.StagingCapacity {
				t.Fatal("more than the capacity")
			}
			s.Release()
		}
	}
	c.Produced()
	c.State()
	c.Published()
}
