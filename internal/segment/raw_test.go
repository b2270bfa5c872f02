package segment_test

import (
	"encoding/binary"
	"hash/crc32"
	"testing"

	"github.com/usp-project/usp/internal/segment"
	"github.com/usp-project/usp/internal/vfs"
)

// raw builds segment files from doc/format/segment.md alone, well formed or not. It shares no code with
// the package, so that a mistake in one is not repeated in the other.
type raw struct {
	data []byte
	tag  uint32
	next uint64 // ordinal for the next batch
	at   []int  // where the batches begin
}

var le = binary.LittleEndian

func crc(parts ...[]byte) uint32 {
	h := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	for _, p := range parts {
		h.Write(p)
	}
	return h.Sum32()
}

func newRaw(base uint64, meta string, length int) *raw {
	b := make([]byte, length)
	copy(b, "USPSEGM1")
	le.PutUint32(b[8:], 2)
	le.PutUint32(b[12:], 1)
	le.PutUint32(b[16:], uint32(length))
	le.PutUint64(b[24:], base)
	copy(b[32:], "20261122T201833-9f3kq")
	le.PutUint64(b[64:], 1_800_000_000_000_000_005)
	le.PutUint32(b[72:], uint32(len(meta)))
	copy(b[128:], meta)
	r := &raw{data: b, next: base}
	return r.sign()
}

// sign renews the header's checksum.
func (r *raw) sign() *raw {
	n := len(r.data)
	r.tag = crc(r.data[:n-4])
	le.PutUint32(r.data[n-4:], r.tag)
	return r
}

// fields are those of a batch header that a test may want to be wrong.
type fields struct {
	flags, count, payload uint32
	first, synced         uint64
}

// batch appends a batch of frames first to first+n-1; edit may change the header before it is signed.
func (r *raw) batch(n int, synced int, edit func(*fields)) *raw {
	var payload []byte
	for i := range uint64(n) {
		data := frame(r.next + i)
		payload = le.AppendUint32(payload, uint32(len(data)))
		payload = append(payload, data...)
	}
	f := fields{count: uint32(n), payload: uint32(len(payload)), first: r.next, synced: uint64(synced)}
	if n == 0 {
		f.flags = 1
	}
	if edit != nil {
		edit(&f)
	}
	r.next += uint64(n)
	return r.put(f, payload)
}

// seal appends an index, and the footer that points to it.
func (r *raw) seal(index string) *raw {
	start := r.len()
	r.put(fields{flags: 2, payload: uint32(len(index)), first: r.next, synced: uint64(start)}, []byte(index))
	return r.batch(0, r.len(), func(f *fields) { f.count = uint32(r.len() - start) })
}

func (r *raw) put(f fields, payload []byte) *raw {
	off := len(r.data)
	r.at = append(r.at, off)
	for len(payload)%8 != 0 {
		payload = append(payload, 0)
	}
	b := make([]byte, 40)
	le.PutUint32(b, 0x54414255)
	le.PutUint32(b[4:], f.flags)
	le.PutUint64(b[8:], f.first)
	le.PutUint32(b[16:], f.count)
	le.PutUint32(b[20:], f.payload)
	le.PutUint64(b[24:], f.synced)
	le.PutUint32(b[32:], crc(le.AppendUint64(le.AppendUint32(nil, r.tag), uint64(off)), b[:32]))
	le.PutUint32(b[36:], crc(b[:36], payload))
	r.data = append(append(r.data, b...), payload...)
	return r
}

func (r *raw) zeros(n int) *raw {
	r.data = append(r.data, make([]byte, n)...)
	return r
}

// len is the offset of the next batch.
func (r *raw) len() int { return len(r.data) }

// write puts the bytes in a file and returns its path.
func write(t testing.TB, fsys vfs.FS, data []byte) string {
	t.Helper()
	path := dir + "/" + segment.FileName(100)
	check(t, vfs.Replace(fsys, path, data, 0o600))
	return path
}
