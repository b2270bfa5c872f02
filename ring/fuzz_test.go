//go:build unix

package ring

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash/crc32"
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

// FuzzSlot puts any bytes into one slot of a ring whose producer has ended. A
// record is delivered if and only if its slot holds, to the byte, what the format
// says of that record; every other one is reported lost, alone, and the records in
// the other slots are not touched by it.
func FuzzSlot(f *testing.F) {
	clean := image(f)
	h, x, err := decodeFixed(clean, int64(len(clean)))
	if err != nil {
		f.Fatal(err)
	}
	const first = 2 // 6 records were emitted into 4 slots
	at := func(n uint64) int { return int(x.headerLen) + int(n)%h.Slots*h.SlotSize }
	size := slotHeaderLen + h.PayloadLen
	for n := uint64(first); n < first+4; n++ {
		f.Add(clean[at(n):at(n)+size], uint8(n), false)
	}
	for _, off := range []int{slotLenCRC, slotLenCRC + 4, slotHeaderLen, size - 1} { // length, checksum, payload: a bit is wrong, the number right
		b := bytes.Clone(clean[at(first) : at(first)+size])
		b[off] ^= 1
		f.Add(b, uint8(0), false)
	}
	f.Add(encodeSlot(6, make([]byte, h.PayloadLen)), uint8(2), false) // published, and its producer died before it moved on
	f.Add([]byte{13}, uint8(2), false)                                // begun
	f.Add([]byte{5}, uint8(2), false)                                 // never finished
	f.Add([]byte("any payload goes with the right header"), uint8(3), true)
	f.Fuzz(func(t *testing.T, slot []byte, which uint8, fix bool) {
		ring := bytes.Clone(clean)
		n := first + uint64(which)%4
		copy(ring[at(n):at(n)+size], slot)
		if fix {
			copy(ring[at(n):], encodeSlot(n, ring[at(n)+slotHeaderLen:at(n)+size]))
		}
		c, err := Open(writeFile(t, ring))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.Seek(first)
		whole := func(n uint64) bool {
			b := ring[at(n) : at(n)+size]
			return bytes.Equal(b, encodeSlot(n, b[slotHeaderLen:]))
		}
		w, next := make([]uint64, h.Words()), uint64(first)
		for idle := 0; idle < 3; { // the second look decides about a record that was begun
			seq, st := c.Next(w)
			switch st {
			case Got:
				if seq != next || !bytes.Equal(encodeSlot(seq, payloadBytes(w)), ring[at(seq):at(seq)+size]) {
					t.Fatalf("record %d is delivered as %x, %d was next and the slot is %x", seq, w, next, ring[at(seq):at(seq)+size])
				}
				next++
			case Lost:
				from, to, _ := c.LostRange()
				if from != next || to != next+1 || whole(from) {
					t.Fatalf("[%d, %d) is lost, %d was next, and its slot is %x", from, to, next, ring[at(next):at(next)+size])
				}
				next++
			case Empty:
				idle++
			default:
				t.Fatalf("%v: %v", st, c.Err())
			}
		}
		if next < first+4 || next > first+5 || next == first+4 && whole(next) {
			t.Fatalf("the ring ends at record %d", next)
		}
	})
}

// encodeSlot is what doc/format/ring.md says of the slot of record n, with the library's CRC.
func encodeSlot(n uint64, payload []byte) []byte {
	le := binary.LittleEndian
	length := le.AppendUint32(nil, uint32(len(payload)))
	done := le.AppendUint64(nil, 2*n+2)
	sum := crc32.NewIEEE()
	for _, part := range [][]byte{done, length, payload} {
		sum.Write(part) // never fails
	}
	b := append(done, length...)
	b = le.AppendUint32(b, sum.Sum32())
	return append(b, payload...)
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
	if d := c.Durations(); d.Longest < 0 || d.Sum < 0 || d.Quantile(.5) < 0 {
		t.Fatalf("durations %+v", d)
	}
}
