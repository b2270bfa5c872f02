//go:build unix

package ring

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// image returns the bytes of a ring of 4 slots with 6 records emitted, closed.
func image(t testing.TB) []byte {
	t.Helper()
	p := mustCreate(t, Config{RunID: "run", Schema: []byte("schema text"), Meta: []byte("{}"), Slots: 4})
	emitN(p, 6)
	if err := p.Close(true); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(p.Path())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// reseal makes the header CRC right again after a change to the header.
func reseal(b []byte) {
	le := binary.LittleEndian
	part := func(off, length int) []byte {
		from, n := uint64(le.Uint32(b[off:])), uint64(le.Uint32(b[length:]))
		if from+n > uint64(len(b)) {
			return nil
		}
		return b[from : from+n]
	}
	le.PutUint32(b[offCRC:], headerCRC(b, part(offSchemaOff, offSchemaLen), part(offMetaOff, offMetaLen)))
}

func writeFile(t testing.TB, b []byte) string {
	t.Helper()
	path := filepath.Join(memoryDir(t), "x.ring")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestOpenRefuses(t *testing.T) {
	le := binary.LittleEndian
	for name, c := range map[string]struct {
		change func([]byte) []byte
		want   error
	}{
		"empty":           {func(b []byte) []byte { return nil }, ErrNotRing},
		"other magic":     {func(b []byte) []byte { b[0] = 'X'; return b }, ErrNotRing},
		"short":           {func(b []byte) []byte { return b[:100] }, ErrCorrupt},
		"header only":     {func(b []byte) []byte { return b[:4096] }, ErrCorrupt},
		"one byte short":  {func(b []byte) []byte { return b[:len(b)-1] }, ErrCorrupt},
		"one byte more":   {func(b []byte) []byte { return append(b, 0) }, ErrCorrupt},
		"newer":           {func(b []byte) []byte { le.PutUint32(b[offVersion:], 2); return b }, ErrVersion},
		"other endian":    {func(b []byte) []byte { le.PutUint32(b[offEndian:], 0x04030201); return b }, ErrCorrupt},
		"header bit":      {func(b []byte) []byte { b[offGeneration] ^= 1; return b }, ErrCorrupt},
		"reserved bit":    {func(b []byte) []byte { b[200] ^= 1; return b }, ErrCorrupt},
		"schema bit":      {func(b []byte) []byte { b[offText] ^= 1; return b }, ErrCorrupt},
		"other schema":    {func(b []byte) []byte { b[offText] ^= 1; reseal(b); return b }, ErrDigest},
		"no slots":        {func(b []byte) []byte { le.PutUint64(b[offSlotCount:], 0); reseal(b); return b }, ErrCorrupt},
		"3 slots":         {func(b []byte) []byte { le.PutUint64(b[offSlotCount:], 3); reseal(b); return b }, ErrCorrupt},
		"8 slots":         {func(b []byte) []byte { le.PutUint64(b[offSlotCount:], 8); reseal(b); return b }, ErrCorrupt},
		"2^63 slots":      {func(b []byte) []byte { le.PutUint64(b[offSlotCount:], 1<<63); reseal(b); return b }, ErrCorrupt},
		"slot size 0":     {func(b []byte) []byte { le.PutUint64(b[offSlotSize:], 0); reseal(b); return b }, ErrCorrupt},
		"slot too small":  {func(b []byte) []byte { le.PutUint64(b[offPayloadLen:], 64); reseal(b); return b }, ErrCorrupt},
		"header len 0":    {func(b []byte) []byte { le.PutUint64(b[offHeaderLen:], 0); reseal(b); return b }, ErrCorrupt},
		"header len huge": {func(b []byte) []byte { le.PutUint64(b[offHeaderLen:], 1<<40); reseal(b); return b }, ErrCorrupt},
		"schema outside":  {func(b []byte) []byte { le.PutUint32(b[offSchemaOff:], 1<<31); reseal(b); return b }, ErrCorrupt},
		"schema in words": {func(b []byte) []byte { le.PutUint32(b[offSchemaOff:], 1024); reseal(b); return b }, ErrCorrupt},
		"meta outside":    {func(b []byte) []byte { le.PutUint32(b[offMetaLen:], 1<<16); reseal(b); return b }, ErrCorrupt},
		"areas":           {func(b []byte) []byte { le.PutUint32(b[offAreas:], 1<<31); reseal(b); return b }, ErrCorrupt},
		"capacity":        {func(b []byte) []byte { le.PutUint64(b[offCapacity:], 1<<63); reseal(b); return b }, ErrCorrupt},
	} {
		r, err := Open(writeFile(t, c.change(image(t))))
		if err == nil {
			r.Close()
		}
		for _, class := range []error{ErrNotRing, ErrVersion, ErrCorrupt, ErrDigest} {
			if errors.Is(err, class) != (class == c.want) {
				t.Errorf("%s: error %v, want exactly %v", name, err, c.want)
			}
		}
	}
}

func TestOpenRefusesWhatIsNoFile(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(fifo); !errors.Is(err, ErrNotRing) {
		t.Errorf("a fifo: %v", err)
	}
	link := filepath.Join(dir, "link")
	symlink(t, writeFile(t, image(t)), link)
	for _, path := range []string{dir, link, filepath.Join(dir, "none")} {
		if _, err := Open(path); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", path, err)
		}
	}
	rings, err := List(dir)
	if err != nil || len(rings) != 0 {
		t.Errorf("list: %v %v", rings, err)
	}
}

// TestEveryBit flips each bit of a slot that is read and of the header: the one
// loses the record, the other the ring, and nothing is delivered changed.
func TestEveryBit(t *testing.T) {
	const slot = 4096 + 3*64 // record 3
	clean := image(t)
	for off := slot; off < slot+slotHeaderLen+24; off++ {
		for bit := range 8 {
			b := append([]byte(nil), clean...)
			b[off] ^= 1 << bit
			got := drain(t, mustOpen(t, writeFile(t, b)))
			if len(got.Got) != 3 || got.total() != 6 {
				t.Fatalf("byte %d bit %d: got %v lost %v", off-slot, bit, got.Got, got.Lost)
			}
		}
	}
	for off := range fixedHeaderLen {
		b := append([]byte(nil), clean...)
		b[off] ^= 1 << (off % 8)
		if c, err := Open(writeFile(t, b)); err == nil {
			c.Close()
			t.Fatalf("header byte %d: no error", off)
		}
	}
}

// TestEveryPrefix: a ring cut short anywhere is refused.
func TestEveryPrefix(t *testing.T) {
	clean := image(t)
	path := writeFile(t, clean)
	for n := len(clean) - 1; n >= 0; n -= 7 {
		truncate(t, path, int64(n))
		if c, err := Open(path); err == nil {
			c.Close()
			t.Fatalf("%d of %d bytes: no error", n, len(clean))
		}
	}
}

// largeRing has slots and a staged state of more than a page.
func largeRing(t *testing.T) (*Producer, *Consumer) {
	p := mustCreate(t, Config{PayloadLen: 4096, Slots: 16, StagingAreas: 1, StagingCapacity: 10 * 4096})
	emitN(p, 4)
	p.Stage(0, 0, 5*4096, func(b []byte) { clear(b) })
	return p, mustOpen(t, p.Path())
}

func TestTruncatedUnderReader(t *testing.T) {
	t.Run("slots", func(t *testing.T) {
		p, c := largeRing(t)
		truncate(t, p.Path(), 4096)
		w := make([]uint64, 512)
		_, st := c.Next(w)
		if st != Failed || !errors.Is(c.Err(), ErrTruncated) {
			t.Errorf("status %v, error %v", st, c.Err())
		}
		if _, st = c.Next(w); st != Failed {
			t.Errorf("and then %v", st)
		}
	})
	t.Run("batch", func(t *testing.T) {
		p, c := largeRing(t)
		truncate(t, p.Path(), 4096+2*4160) // the third record is cut
		w := make([]uint64, 4*512)
		if _, n, st := c.NextBatch(w); st != Got || n != 2 {
			t.Errorf("%d records, %v, want the 2 before the cut", n, st)
		}
		// The page with the cut reads as zeros to its end, the one after it faults.
		_, _, st := c.NextBatch(w)
		if from, to, reason := c.LostRange(); st != Lost || from != 2 || to != 3 || reason != Torn {
			t.Errorf("then %v [%d, %d) %v, want record 2 torn", st, from, to, reason)
		}
		if _, _, st := c.NextBatch(w); st != Failed {
			t.Errorf("then %v", st)
		}
	})
	t.Run("everything", func(t *testing.T) {
		for name, f := range map[string]func(*Consumer){
			"produced":  func(c *Consumer) { c.Produced() },
			"state":     func(c *Consumer) { c.State() },
			"publish":   func(c *Consumer) { c.Publish(ConsumerState{}) },
			"published": func(c *Consumer) { c.Published() },
			"durations": func(c *Consumer) { c.Durations() },
			"next":      func(c *Consumer) { c.Next(make([]uint64, 512)) },
		} {
			p, c := largeRing(t)
			truncate(t, p.Path(), 0)
			f(c)
			if !errors.Is(c.Err(), ErrTruncated) {
				t.Errorf("%s: error %v", name, c.Err())
			}
		}
	})
}

func TestTruncatedStaging(t *testing.T) {
	t.Run("untaken", func(t *testing.T) {
		p, c := largeRing(t)
		if _, ok := c.Untaken(); !ok {
			t.Fatal("no state")
		}
		truncate(t, p.Path()+".stage0", 0)
		for range 2 {
			if ticket, ok := c.Untaken(); ok {
				t.Errorf("ticket %d of a state that is gone", ticket)
			}
		}
	})
	t.Run("staged", func(t *testing.T) {
		p, c := largeRing(t)
		s, ok := c.Staged()
		if !ok {
			t.Fatal("no state")
		}
		truncate(t, p.Path()+".stage0", 4096)
		err := s.View(func(b []byte) error {
			sha256.Sum256(b)
			return nil
		})
		if !errors.Is(err, ErrTruncated) {
			t.Errorf("view: %v", err)
		}
		truncate(t, p.Path()+".stage0", 0)
		if err := s.Release(); !errors.Is(err, ErrTruncated) {
			t.Errorf("release: %v", err)
		}
	})
	t.Run("staging", func(t *testing.T) {
		p, c := largeRing(t)
		if err := c.areas[0].m.unmap(); err != nil || !c.mapArea(&c.areas[0], 0) {
			t.Fatal("area not mapped")
		}
		truncate(t, p.Path()+".stage0", 0)
		if _, ok := c.Staged(); ok || c.Discarded() != 1 || c.Err() != nil {
			t.Errorf("staged from a truncated file: %v, discarded %d, error %v", ok, c.Discarded(), c.Err())
		}
	})
	t.Run("other panics", func(t *testing.T) {
		p, c := largeRing(t)
		defer func() {
			if recover() == nil {
				t.Error("a panic of the caller's was swallowed")
			}
		}()
		_ = p
		s, _ := c.Staged()
		s.View(func([]byte) error { panic("mine") })
	})
}
