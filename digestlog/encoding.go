package digestlog

import (
	"encoding/binary"
	"fmt"

	"github.com/usp-project/usp/record"
)

// entryHeader is the length of what every entry begins with: version, kind, flags, generation, step, seq.
const entryHeader = 1 + 1 + 2 + 4 + 8 + 8

// Append appends the encoding of e, which must pass [Entry.Validate], to dst. There is exactly one encoding of an entry.
func (e *Entry) Append(dst []byte) []byte {
	le := binary.LittleEndian
	dst = append(dst, EntryVersion, byte(e.Kind))
	dst = le.AppendUint16(dst, e.Flags)
	dst = le.AppendUint32(dst, e.Generation)
	dst = le.AppendUint64(dst, e.Step)
	dst = le.AppendUint64(dst, e.Seq)
	switch e.Kind {
	case KindOpen:
		dst = append(dst, e.Manifest[:]...)
		dst = append(dst, e.Schema[:]...)
		dst = appendBool(dst, e.Resumed)
		dst = appendBytes(dst, e.Ext)
	case KindStep:
		dst = le.AppendUint32(dst, e.Nonfinite)
		dst = le.AppendUint32(dst, uint32(len(e.Digests)))
		for i := range e.Digests {
			dst = append(dst, e.Digests[i][:]...)
		}
		dst = appendBytes(dst, e.Ext)
	case KindLost:
		dst = le.AppendUint64(dst, e.From)
		dst = le.AppendUint64(dst, e.To)
		dst = append(dst, byte(e.Reason))
	case KindSnapshot:
		dst = append(dst, e.SHA256[:]...)
		dst = le.AppendUint64(dst, e.Size)
		dst = appendBytes(dst, e.Name)
	case KindRewind:
		dst = le.AppendUint64(dst, e.Target)
		dst = le.AppendUint32(dst, e.FromGeneration)
		dst = append(dst, e.SHA256[:]...)
	case KindSeal:
		dst = append(dst, e.Stream)
		dst = le.AppendUint64(dst, e.Base)
		dst = le.AppendUint64(dst, e.Count)
		dst = le.AppendUint64(dst, e.Size)
		dst = append(dst, e.SHA256[:]...)
		dst = appendBytes(dst, e.Name)
	case KindEnd:
		dst = append(dst, byte(e.Status))
		dst = le.AppendUint64(dst, e.Emitted)
		dst = le.AppendUint64(dst, e.Stored)
		dst = le.AppendUint64(dst, e.Lost)
		dst = appendBool(dst, e.EmittedKnown)
	case KindPrune:
		dst = le.AppendUint64(dst, e.Target)
		dst = appendBytes(dst, e.Name)
		dst = append(dst, e.SHA256[:]...)
	case KindEvent:
		dst = le.AppendUint16(dst, uint16(e.Code))
		dst = appendBytes(dst, e.Text)
	}
	return dst
}

func appendBool(dst []byte, b bool) []byte {
	if b {
		return append(dst, 1)
	}
	return append(dst, 0)
}

// appendBytes appends a u16 length and the bytes.
func appendBytes[T string | []byte](dst []byte, b T) []byte {
	dst = binary.LittleEndian.AppendUint16(dst, uint16(len(b)))
	return append(dst, b...)
}

// ParseEntry decodes one entry that fills b exactly; the entry does not keep b. What it accepts, [Entry.Append] encodes to the same bytes.
//
// Of an entry with a version or a kind that it does not know it returns what the common header says, with [ErrEntryVersion] (nothing but the
// zero Entry) or [ErrUnknownKind] (header only); both stay valid leaves. Any other error wraps [ErrEntry].
func ParseEntry(b []byte) (Entry, error) {
	if len(b) == 0 || b[0] == 0 {
		return Entry{}, fmt.Errorf("%w: %d bytes without a version", ErrEntry, len(b))
	}
	if b[0] > EntryVersion {
		return Entry{}, fmt.Errorf("%w: version %d", ErrEntryVersion, b[0])
	}
	if len(b) > MaxEntrySize {
		return Entry{}, fmt.Errorf("%w: %d bytes, at most %d", ErrEntry, len(b), MaxEntrySize)
	}
	d := decoder{rest: b[1:]}
	e := Entry{Kind: Kind(d.u8()), Flags: d.u16(), Generation: d.u32(), Step: d.u64(), Seq: d.u64()}
	if d.short {
		return Entry{}, fmt.Errorf("%w: %d bytes, a header has %d", ErrEntry, len(b), entryHeader)
	}
	if e.Kind == 0 {
		return Entry{}, fmt.Errorf("%w: kind 0", ErrEntry)
	}
	if e.Kind > KindEvent {
		return e, fmt.Errorf("%w: %v", ErrUnknownKind, e.Kind)
	}
	d.body(&e)
	switch {
	case d.short:
		return Entry{}, fmt.Errorf("%w: %v ends early, at %d bytes", ErrEntry, e.Kind, len(b))
	case len(d.rest) > 0:
		return Entry{}, fmt.Errorf("%w: %v has %d bytes too many", ErrEntry, e.Kind, len(d.rest))
	case d.badBool:
		return Entry{}, fmt.Errorf("%w: %v has a truth value other than 0 and 1", ErrEntry, e.Kind)
	}
	if err := e.Validate(); err != nil {
		return Entry{}, err
	}
	return e, nil
}

// decoder takes values off the front of rest. It never fails in the middle: after the first value that is not there, short is set and all
// later ones are zero, so that the caller checks once.
type decoder struct {
	rest    []byte
	short   bool
	badBool bool
}

func (d *decoder) body(e *Entry) {
	switch e.Kind {
	case KindOpen:
		d.sum(&e.Manifest)
		d.sum(&e.Schema)
		e.Resumed = d.bool()
		e.Ext = append(e.Ext, d.bytes()...)
	case KindStep:
		e.Nonfinite = d.u32()
		d.digests(e)
		e.Ext = append(e.Ext, d.bytes()...)
	case KindLost:
		e.From, e.To = d.u64(), d.u64()
		e.Reason = record.LostReason(d.u8())
	case KindSnapshot:
		d.sum(&e.SHA256)
		e.Size = d.u64()
		e.Name = string(d.bytes())
	case KindRewind:
		e.Target, e.FromGeneration = d.u64(), d.u32()
		d.sum(&e.SHA256)
	case KindSeal:
		e.Stream, e.Base, e.Count, e.Size = d.u8(), d.u64(), d.u64(), d.u64()
		d.sum(&e.SHA256)
		e.Name = string(d.bytes())
	case KindEnd:
		e.Status = Status(d.u8())
		e.Emitted, e.Stored, e.Lost = d.u64(), d.u64(), d.u64()
		e.EmittedKnown = d.bool()
	case KindPrune:
		e.Target = d.u64()
		e.Name = string(d.bytes())
		d.sum(&e.SHA256)
	case KindEvent:
		e.Code = EventCode(d.u16())
		e.Text = string(d.bytes())
	}
}

// digests checks the count against what is there before it allocates.
func (d *decoder) digests(e *Entry) {
	count := d.u32()
	if count > MaxDigests || int(count)*32 > len(d.rest) {
		d.short = true
		return
	}
	if count > 0 {
		e.Digests = make([][32]byte, count)
	}
	for i := range e.Digests {
		d.sum(&e.Digests[i])
	}
}

func (d *decoder) take(n int) []byte {
	if d.short || len(d.rest) < n {
		d.short = true
		return nil
	}
	b := d.rest[:n:n]
	d.rest = d.rest[n:]
	return b
}

func (d *decoder) u8() uint8 {
	if b := d.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (d *decoder) u16() uint16 {
	if b := d.take(2); b != nil {
		return binary.LittleEndian.Uint16(b)
	}
	return 0
}

func (d *decoder) u32() uint32 {
	if b := d.take(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (d *decoder) u64() uint64 {
	if b := d.take(8); b != nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

func (d *decoder) bool() bool {
	b := d.u8()
	d.badBool = d.badBool || b > 1
	return b == 1
}

func (d *decoder) sum(dst *[32]byte) { copy(dst[:], d.take(32)) }

func (d *decoder) bytes() []byte { return d.take(int(d.u16())) }
