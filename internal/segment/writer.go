package segment

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/usp-project/usp/internal/vfs"
)

const (
	// batchTarget is where a batch is closed and the next begun, in bytes of payload. Larger ones save
	// nothing, and damage to one costs all its frames.
	batchTarget = 1 << 20
	// keepBuffer is the capacity above which the buffer is given back after a Sync.
	keepBuffer = 32 << 20
)

// Options configure a Writer. The zero value of each field but Kind is usable.
type Options struct {
	FS    vfs.FS // nil = vfs.OS()
	Kind  Kind
	RunID string // at most MaxRunID bytes
	Meta  []byte // at most MaxMeta bytes, opaque
	// Size is the number of bytes to preallocate, 0 = DefaultSize, negative = none. The Writer may go
	// beyond it; a caller that begins a new segment before Size reaches it never meets a full disk here.
	Size int64
	// MinSize is what will do where there is no space for Size; 0 = nothing less than Size.
	MinSize int64
	Now     func() time.Time // nil = the header says 1970
	// NoSum leaves Sealed.SHA256 zero: for a stream whose frames something else vouches for.
	NoSum bool
	// Index makes the index of the segment, or is nil. It is given every frame at once, and is for this segment alone.
	Index Indexer
}

// Writer appends frames to one segment. It is not safe for concurrent use.
type Writer struct {
	fs   vfs.FS
	f    vfs.File
	path string
	base uint64
	room int64 // preallocated bytes
	tag  uint32
	sum  summer
	hash hash.Hash // of what was handed to the kernel; nil with NoSum
	idx  Indexer   // or nil

	// buf holds everything since the last Sync: closed batches and then the open one.
	// It lies at offset synced in the file.
	buf     []byte
	flushed int // bytes of buf that the kernel has
	open    int // where in buf the open batch begins; -1 = none is open
	first   uint64
	count   uint32 // frames in the open batch
	pending int    // frames not handed to the kernel

	next     uint64 // ordinal of the next frame
	synced   int64  // everything before this offset is durable
	syncNext uint64 // and so is every frame before this ordinal
	behind   behind // what of it the kernel need not keep in memory
	direct   direct // writes without that memory

	err error // ErrPoisoned with its cause, or ErrClosed
}

// Create makes the segment file in dir whose first frame will have ordinal base. When it returns, the
// file, its header and its name are durable and its space is reserved. An existing file of that name is
// an error that wraps fs.ErrExist, unless it is unsealed and holds nothing but a header: that is what a
// failed or interrupted Create leaves, and is replaced.
func Create(dir string, base uint64, o Options) (*Writer, error) {
	d, err := Prepare(dir, base, o)
	if err != nil {
		return nil, err
	}
	w, err := d.Place()
	if err != nil {
		_ = d.Discard() // best effort: the error that matters is the one returned
		return nil, err
	}
	return w, nil
}

// Draft is a segment that has everything but its name: its header is written and its space reserved. A
// writer that prepares the next segment before it seals the one it has learns of a full disk while it
// still has a file.
type Draft struct {
	draft  *vfs.Draft
	fs     vfs.FS
	path   string
	base   uint64
	room   int64
	header []byte
	tag    uint32
	index  Indexer
	noSum  bool
	memory []byte
}

// Prepare makes a draft of what Create makes. After a crash it is a temporary file.
func Prepare(dir string, base uint64, o Options) (*Draft, error) {
	path := filepath.Join(dir, FileName(base))
	if o.FS == nil {
		o.FS = vfs.OS()
	}
	h := Header{Kind: o.Kind, Base: base, RunID: o.RunID, Created: time.Unix(0, 0), Meta: o.Meta}
	if o.Now != nil {
		h.Created = o.Now()
	}
	header, tag, err := appendHeader(nil, h)
	if err != nil {
		return nil, fmt.Errorf("create segment %s: %w", path, err)
	}
	size := o.Size
	if size == 0 {
		size = DefaultSize
	}
	d := &Draft{fs: o.FS, path: path, base: base, header: header, tag: tag, index: o.Index, noSum: o.NoSum}
	d.draft, err = vfs.Prepare(o.FS, path, 0o600, func(f vfs.File) (err error) {
		if size > 0 {
			if d.room, err = preallocate(f, max(size, int64(len(header))), o.MinSize); err != nil {
				return err
			}
		}
		_, err = f.WriteAt(header, 0)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("segment: %w", err)
	}
	return d, nil
}

// preallocate reserves size bytes, or a part of it where there is no space for all, and returns how many it was.
func preallocate(f vfs.File, size, least int64) (int64, error) {
	for {
		err := f.Preallocate(size)
		if err == nil || !errors.Is(err, syscall.ENOSPC) || least <= 0 || size <= least {
			return size, err
		}
		if err := f.Truncate(0); err != nil { // what it may have got
			return 0, err
		}
		size = max(size/2, least)
	}
}

// Place gives the segment its name and opens it. As a complete file is put in place, no crash leaves a
// segment without header. A draft is placed once; after an error all that is left to do is to discard it.
func (d *Draft) Place() (*Writer, error) {
	err := d.draft.Place()
	if errors.Is(err, fs.ErrExist) && isEmpty(d.fs, d.path) {
		if err := d.fs.Remove(d.path); err != nil {
			return nil, fmt.Errorf("replace empty segment: %w", err)
		}
		err = d.draft.Place()
	}
	if err != nil {
		return nil, fmt.Errorf("segment: %w", err)
	}
	f, err := d.fs.OpenFile(d.path, os.O_RDWR, 0)
	if err != nil {
		_ = d.fs.Remove(d.path) // if it stays, the next Create replaces it
		return nil, fmt.Errorf("segment: %w", err)
	}
	w := &Writer{
		fs: d.fs, f: f, path: d.path, base: d.base, room: d.room, tag: d.tag, idx: d.index, open: -1, buf: d.memory[:0],
		next: d.base, synced: int64(len(d.header)), syncNext: d.base,
	}
	if !d.noSum {
		w.hash = sha256.New()
	}
	w.direct = openDirect(f, d.room, w.synced)
	w.sumUp(d.header)
	return w, nil
}

// Reuse gives the segment memory for what waits to be synced, until that needs more: what another Writer's Memory
// returned. It comes before Place.
func (d *Draft) Reuse(memory []byte) { d.memory = memory }

// Discard removes a draft that is not to be placed.
func (d *Draft) Discard() error { return d.draft.Discard() }

// isEmpty reports whether the file is an intact and unsealed segment that never held a frame.
func isEmpty(fsys vfs.FS, path string) bool {
	r, err := Open(fsys, path)
	if err != nil {
		return false
	}
	_, _, err = r.Next()
	empty := err == io.EOF && !r.sealed && r.off == int64(r.header.Len) && r.used <= r.off
	return r.Close() == nil && empty
}

// Path returns the file's path as it was created.
func (w *Writer) Path() string { return w.path }

// Base returns the ordinal of the segment's first frame.
func (w *Writer) Base() uint64 { return w.base }

// Next returns the ordinal that the next frame will get.
func (w *Writer) Next() uint64 { return w.next }

// Pending returns the frames, and the bytes they take in the file, that Flush has yet to write.
func (w *Writer) Pending() (frames, bytes int) { return w.pending, len(w.buf) - w.flushed }

// Size returns the bytes in use, pending ones included, without the footer that Seal will add.
func (w *Writer) Size() int64 { return w.synced + int64(len(w.buf)) }

// Room returns the preallocated size: what the file can hold whatever happens to the disk, where the file system can
// promise that at all.
func (w *Writer) Room() int64 { return w.room }

// Synced returns what is durable: every frame before ordinal, which end at offset.
func (w *Writer) Synced() (ordinal uint64, offset int64) { return w.syncNext, w.synced }

// Memory returns the memory of a Writer that was sealed, or closed with all of it synced, for the next one, which would
// grow its own anew, copying. Of any other Writer it returns nil: what is in it may still be asked for.
func (w *Writer) Memory() []byte {
	if !errors.Is(w.err, ErrClosed) || len(w.buf) > 0 {
		return nil
	}
	memory := w.buf
	w.buf = nil
	return memory
}

// Err returns the error that poisoned the Writer, or nil.
func (w *Writer) Err() error {
	if errors.Is(w.err, ErrPoisoned) {
		return w.err
	}
	return nil
}

// Append adds a frame to the pending batch. It copies the frame and touches only memory; what is not
// yet synced stays there, so the caller bounds memory by calling Sync.
func (w *Writer) Append(frame []byte) error {
	if w.err != nil {
		return w.err
	}
	if len(frame) > MaxFrame {
		return fmt.Errorf("append frame of %d bytes to %s: %w", len(frame), w.path, ErrFrameTooLarge)
	}
	if w.open >= 0 && len(w.buf)-w.open-batchHeader+frameHeader+len(frame) > batchTarget {
		w.closeBatch()
	}
	if w.open < 0 {
		w.open, w.first, w.count = len(w.buf), w.next, 0
		var empty [batchHeader]byte
		w.buf = append(w.buf, empty[:]...)
	}
	w.buf = binary.LittleEndian.AppendUint32(w.buf, uint32(len(frame)))
	w.buf = append(w.buf, frame...)
	if w.idx != nil {
		w.idx.Add(w.next, frame)
	}
	w.next++
	w.count++
	w.pending++
	return nil
}

// closeBatch pads the open batch and fills in its header.
func (w *Writer) closeBatch() {
	if w.open < 0 {
		return
	}
	payload := len(w.buf) - w.open - batchHeader
	var zeros [alignment]byte
	w.buf = append(w.buf, zeros[:pad(payload)-payload]...)
	x := batch{first: w.first, count: w.count, synced: w.synced}
	w.sum.seal(w.buf[w.open:], w.tag, w.synced+int64(w.open), x, payload)
	w.open = -1
}

// Flush hands the pending frames to the kernel. They survive the death of the process, not a loss of power.
func (w *Writer) Flush() error {
	if w.err != nil {
		return w.err
	}
	w.closeBatch()
	if w.flushed == len(w.buf) {
		return nil
	}
	b, off := w.buf[w.flushed:], w.synced+int64(w.flushed)
	directly, err := w.direct.write(w.f, b, off)
	if err != nil {
		return w.poison(err)
	}
	if !directly { // the device is at work while this is hashed; what the advice says is for Sync to find out
		_ = vfs.StartWriteback(w.f, off, int64(len(b)))
	}
	w.sumUp(b)
	w.flushed = len(w.buf)
	w.pending = 0
	return nil
}

// sumUp takes what the kernel was given into the file's SHA-256.
func (w *Writer) sumUp(b []byte) {
	if w.hash != nil {
		w.hash.Write(b) // never fails
	}
}

// Sync makes every frame appended so far durable: Flush and fdatasync. After the first error of Flush
// or Sync the Writer is poisoned; the kernel may have dropped the data, and to ask again proves nothing.
func (w *Writer) Sync() error {
	if err := w.Flush(); err != nil {
		return err
	}
	if len(w.buf) == 0 {
		return nil
	}
	if err := w.f.Datasync(); err != nil {
		return w.poison(err)
	}
	w.synced += int64(len(w.buf))
	w.syncNext = w.next
	w.behind.synced(w.f, w.synced, w.direct.f != nil)
	w.flushed = 0
	w.buf = w.buf[:0]
	if cap(w.buf) > keepBuffer {
		w.buf = nil
	}
	return nil
}

// poison latches the first error.
func (w *Writer) poison(err error) error {
	w.err = fmt.Errorf("segment %s: %w: %w", w.path, ErrPoisoned, err)
	return w.err
}

// Unsynced returns the frames, with their ordinals, that were appended and are not known to be durable.
// They can be read until the next Append, Flush or Sync, and also after an error, Abort or Close, so
// that the caller can append them to a new segment, whose base is then the ordinal from Synced.
func (w *Writer) Unsynced() iter.Seq2[uint64, []byte] {
	return func(yield func(uint64, []byte) bool) {
		ordinal := w.syncNext
		for at := 0; at < len(w.buf); {
			count, end := w.count, len(w.buf)
			rest := w.buf[at+batchHeader:]
			if at != w.open {
				n := int(binary.LittleEndian.Uint32(w.buf[at+20:]))
				count, end = binary.LittleEndian.Uint32(w.buf[at+16:]), at+batchHeader+pad(n)
			}
			for range count {
				var frame []byte
				frame, rest = split(rest)
				if !yield(ordinal, frame) {
					return
				}
				ordinal++
			}
			at = end
		}
	}
}
