package snapshot

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"os"
	"runtime"
	"strings"
	"testing"

	"filippo.io/age"

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

// recheck makes the checksums of an encrypted file's chunk tables right again.
func recheck(b []byte) {
	end := b[len(b)-footerLen:]
	le := binary.LittleEndian
	index := b[le.Uint64(end[16:]):][:le.Uint64(end[24:])]
	for len(index) > 0 {
		at := le.Uint64(index[64:])
		rows := index[entryLen:][:le.Uint32(index[88:])*chunkLen]
		index = index[entryLen+len(rows):]
		for ; len(rows) > 0; rows = rows[chunkLen:] {
			n := uint64(le.Uint32(rows) &^ compressed)
			le.PutUint32(rows[4:], crc(b[at:at+n]))
			at += n
		}
	}
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
	return encodedTo(t, nil, codec, sections...)
}

func encodedTo(t testing.TB, to []age.Recipient, codec Codec, sections ...Section) []byte {
	t.Helper()
	mem := vfs.NewMem()
	info, err := Write("/", Meta{RunID: "r", Step: 1}, sections, Options{FS: mem, Codec: codec, Recipients: to})
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
	id, err := age.ParseX25519Identity("AGE-SECRET-KEY-1M7QNJULVTHRU6V5QSWGYR0JGL9HAY0E34XZDPKS98E4U7434XZUSDD77XS")
	if err != nil {
		f.Fatal(err)
	}
	for _, codec := range []Codec{None, Zstd} {
		for _, to := range [][]age.Recipient{nil, {id.Recipient()}} {
			f.Add(encodedTo(f, to, codec, Section{"zip", zip}, Section{"raw", []byte{1, 2, 3}}, Section{"empty", nil}))
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		b = bytes.Clone(b) // the engine's own
		reseal(b)
		fsys := put(t, b)
		_, sections, err := LoadWith(fsys, "/x.snap", nil, LoadOptions{Identities: []age.Identity{id}})
		if _, verr := Verify(fsys, "/x.snap", nil); verr != nil && err == nil {
			t.Fatalf("Verify says %v, LoadWith nothing", verr)
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

// FuzzLoadKept goes past the checksums of a snapshot that refers to another one, or of
// the one that it refers to.
func FuzzLoadKept(f *testing.F) {
	m := Meta{RunID: "r", Step: 6, Generation: 1}
	whole := assemble(m, nil, vectorState()...)
	m.Step = 7
	refers := assemble(m, fileBase(6, whole), vectorState()...)
	f.Add(refers, true)
	f.Add(whole, false)
	f.Add(assemble(Meta{RunID: "r", Step: 6, Generation: 1}, nil, changed(1)...), false)
	f.Fuzz(func(t *testing.T, b []byte, first bool) {
		b = bytes.Clone(b) // the engine's own
		reseal(b)
		files := map[string][]byte{"/" + FileName(6, 1): whole, "/x.snap": b}
		if !first {
			files = map[string][]byte{"/" + FileName(6, 1): b, "/x.snap": refers}
		}
		mem := vfs.NewMem()
		for name, data := range files {
			if err := vfs.Replace(mem, name, data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		_, sections, err := Load(mem, "/x.snap", nil)
		if _, verr := Verify(mem, "/x.snap", nil); (verr == nil) != (err == nil) && !errors.Is(err, ErrEncrypted) {
			t.Fatalf("Load says %v, Verify %v", err, verr)
		}
		total := 0
		for _, s := range sections {
			total += len(s.Data)
		}
		if total > maxRatio*(len(b)+len(whole)) {
			t.Fatalf("%d bytes of state from files of %d and %d", total, len(b), len(whole))
		}
		if err == nil && !first && !bytes.Equal(sections[1].Data, vectorState()[1].Data) {
			t.Fatal("another state than the one referred to")
		}
	})
}

// FuzzUnseal hands hostile contents to the reader behind a true encryption, as a
// recipient's public key allows anybody to do.
func FuzzUnseal(f *testing.F) {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte("\x05\x00\x00\x00state"), uint32(5))
	f.Add([]byte("\x05\x00\x00\x80state"), uint32(500))
	f.Add([]byte("\xff\xff\xff\xff"), uint32(1<<20))
	f.Fuzz(func(t *testing.T, inner []byte, raw uint32) {
		raw = max(raw%(3*ChunkSize), 1)
		b, err := forge(id.Recipient(), inner, int64(raw))
		if err != nil {
			t.Fatal(err)
		}
		_, sections, err := LoadWith(put(t, b), "/x.snap", nil, LoadOptions{Identities: []age.Identity{id}})
		var corrupt *CorruptError
		switch {
		case err != nil && !errors.As(err, &corrupt):
			t.Fatalf("%v, want a *CorruptError", err)
		case err == nil && len(sections[0].Data) != int(raw):
			t.Fatalf("%d bytes of state, want %d", len(sections[0].Data), raw)
		}
	})
}

// forge is a file with one section of raw bytes whose age file holds inner.
func forge(to age.Recipient, inner []byte, raw int64) ([]byte, error) {
	var sealed bytes.Buffer
	enc, err := age.Encrypt(&sealed, to)
	if err == nil {
		_, err = enc.Write(inner)
	}
	if err == nil {
		err = enc.Close()
	}
	if err != nil {
		return nil, err
	}
	b := appendHeader(nil, Meta{RunID: "r", Step: 1}, None, flagSealed)
	e := entry{name: "s", offset: headerLen, raw: raw, stored: int64(sealed.Len())}
	for rest := sealed.Bytes(); len(rest) > 0; {
		piece := rest[:min(len(rest), ChunkSize)]
		rest = rest[len(piece):]
		e.chunks = append(e.chunks, chunk{stored: uint32(len(piece)), crc: crc(piece)})
	}
	b = append(b, sealed.Bytes()...)
	b = append(b, make([]byte, aligned(int64(len(b)))-int64(len(b)))...)
	ft := footer{sections: 1, indexOffset: int64(len(b))}
	b = appendIndex(b, []entry{e}, nil)
	ft.indexLen = int64(len(b)) - ft.indexOffset
	ft.total = int64(len(b)) + footerLen
	b = appendFooter(b, ft)
	reseal(b)
	return b, nil
}

// TestForged opens what only a hostile writer would make.
func TestForged(t *testing.T) {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		inner string
		raw   int64
		want  string
	}{
		"right":          {"\x05\x00\x00\x00state", 5, ""},
		"longer":         {"\x05\x00\x00\x00state!", 5, "does not end after 5 bytes"},
		"shorter":        {"\x05\x00\x00\x00stat", 5, "unexpected EOF"},
		"no word":        {"\x05\x00", 5, "unexpected EOF"},
		"nothing":        {"", 5, "EOF"},
		"other size":     {"\x06\x00\x00\x00states", 5, "6 bytes stored for 5"},
		"no zstd":        {"\x05\x00\x00\x80state", 50, "zstd"},
		"expands":        {"\x05\x00\x00\x80state", 50000, "5 bytes stored for 50000"},
		"beyond 1/1024":  {"\x05\x00\x00\x00state", 1 << 30, "stored for 1073741824"},
		"chunk too many": {"\x05\x00\x00\x00state\x00\x00\x00\x00", 5, "does not end"},
	} {
		b, err := forge(id.Recipient(), []byte(tc.inner), tc.raw)
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = LoadWith(put(t, b), "/x.snap", nil, LoadOptions{Identities: []age.Identity{id}})
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
	// The flag over sections that are no age files.
	b := encoded(t, None, Section{"s", make([]byte, 100)})
	b[16] |= flagSealed
	reseal(b)
	var corrupt *CorruptError
	if _, err := Verify(put(t, b), "/x.snap", nil); !errors.As(err, &corrupt) || corrupt.Offset != headerLen {
		t.Errorf("plain sections called encrypted: %v", err)
	}
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
		if got := len(p.pack(nil, make([]byte, n))); got*maxRatio < n || got > n {
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
		_, _, err := parseChunks(entry{raw: ChunkSize, stored: int64(stored)}, row, false)
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

// changed is the state of the vectors with a bit of one section flipped.
func changed(i int) []Section {
	s := vectorState()
	s[i].Data = bytes.Clone(s[i].Data)
	s[i].Data[0] ^= 1
	return s
}

// TestBaseChecks: each thing that can be wrong with a base, all checksums right, is
// said as what it is.
func TestBaseChecks(t *testing.T) {
	m := Meta{RunID: "r", Step: 6, Generation: 1}
	own := Meta{RunID: "r", Step: 7, Generation: 1}
	whole := assemble(m, nil, vectorState()...)
	refers := assemble(own, fileBase(6, whole), vectorState()...)
	mem := vfs.NewMem()
	_, err := Write("/", m, vectorState(), Options{FS: mem, Recipients: []age.Recipient{vectorKey(t, "identity.txt").Recipient()}})
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := vfs.ReadFile(mem, "/"+FileName(6, 1), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	m.RunID = "s"
	otherRun := assemble(m, nil, vectorState()...)
	m.RunID, m.Step = "r", 5
	otherStep := assemble(m, nil, vectorState()...)
	m.Step = 6
	chain := assemble(m, fileBase(5, whole), vectorState()...)
	renamed := assemble(m, nil, vectorState()[0], Section{"zap", vectorState()[1].Data})
	moved := vectorState()
	moved[0], moved[1] = moved[1], moved[0]
	as := func(b []byte) []byte { return assemble(own, fileBase(6, b), vectorState()...) }
	edit := func(at int) []byte { // of a row of the bases
		b := bytes.Clone(refers)
		b[len(b)-footerLen-baseLen+at] ^= 1
		reseal(b)
		return b
	}
	row := bytes.Clone(refers[len(refers)-footerLen-baseLen : len(refers)-footerLen])
	row[0]--
	unused := append(append(bytes.Clone(refers[:len(refers)-footerLen]), row...), refers[len(refers)-footerLen:]...)
	end := unused[len(unused)-footerLen:]
	binary.LittleEndian.PutUint64(end[24:], binary.LittleEndian.Uint64(end[24:])+baseLen)
	binary.LittleEndian.PutUint64(end[32:], uint64(len(unused)))
	reseal(unused)
	for _, tc := range []struct {
		name      string
		file, in  []byte
		want      string
		ofTheBase bool
	}{
		{"none", refers, nil, "which cannot be used: file does not exist", true},
		{"no snapshot", refers, []byte("something else, and long enough to be read as a file"), "not a usp snapshot", true},
		{"cut", refers, whole[:400], "file ends before its footer", true},
		{"other run", as(otherRun), otherRun, "it is of run s, step 6", true},
		{"other step", as(otherStep), otherStep, "it is of run r, step 5", true},
		{"other size", refers, assemble(m, nil, append(vectorState(), Section{"more", []byte{1}})...), "bytes (encrypted: false), want", true},
		{"encrypted", as(sealed), sealed, "(encrypted: true)", true},
		{"chain", as(chain), chain, "it does not hold the section either, but refers to " + FileName(5, 1), true},
		{"no such section", as(renamed), renamed, "it has no section of that name", true},
		{"elsewhere", as(assemble(m, nil, moved...)), assemble(m, nil, moved...), "it has a section of that name elsewhere", true},
		{"other bytes", refers, assemble(m, nil, changed(1)...), `SHA-256 of section "zip" differs`, true},
		{"reserved", edit(12), whole, "reserved bytes of base 0", false},
		{"reserved", edit(24), whole, "reserved bytes of base 0", false},
		{"unused", unused, whole, "no section is kept in base 1", false},
	} {
		mem := vfs.NewMem()
		for name, data := range map[string][]byte{"/x.snap": tc.file, "/" + FileName(6, 1): tc.in} {
			if data != nil {
				if err := vfs.Replace(mem, name, data, 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
		_, _, err := Load(mem, "/x.snap", nil)
		var corrupt *CorruptError
		var base *BaseError
		if !errors.As(err, &corrupt) || corrupt.File != "/x.snap" || errors.As(err, &base) != tc.ofTheBase || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
	}
	mem = put(t, refers).(*vfs.Mem)
	if err := vfs.Replace(mem, "/"+FileName(6, 1), assemble(m, nil, changed(0)...), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, got, err := Load(mem, "/x.snap", nil); err != nil || !bytes.Equal(got[0].Data, vectorState()[0].Data) {
		t.Errorf("a section of the base that is not needed differs: %v", err)
	}
}
