package tensorboard

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"

	"github.com/usp-project/usp/record"
)

// layout is the summary of a record of one schema, whose bytes are always the same but for the numbers in it.
type layout struct {
	columns   []column
	flags     []int  // words that are joined over the records that have no event of their own
	plain     []byte // the summary field of an Event
	described []byte // the same with a description of each value, for the first of a generation
	held      []uint64
}

// column is one number of the summary.
type column struct {
	word      int // of the stored record
	typ       record.Type
	flag      int // index in layout.flags, or -1
	plain     int // offset of the number in layout.plain
	described int
}

// maxFlags bounds what a cursor must hold. Flags beyond it are shown as they are in the records that have an event.
const maxFlags = 512

// newLayout lays out the fields of that name that s has, or all.
func newLayout(s *record.Schema, fields []string) *layout {
	l := &layout{}
	var plain, described []byte // the values
	for i := range s.Len() {
		f := s.Field(i)
		if f.Class == record.Digest || fields != nil && !slices.Contains(fields, f.Name) {
			continue
		}
		text := describe(&f)
		for j := range f.Len {
			tag := f.Name
			if f.Len > 1 {
				tag = fmt.Sprintf("%s/%d", f.Name, j)
			}
			c := column{word: s.Offset(i) + j, typ: f.Type, flag: -1}
			if f.Class == record.Flag && len(l.flags) < maxFlags {
				c.flag = len(l.flags)
				l.flags = append(l.flags, c.word)
			}
			plain = appendMessage(plain, summaryValue, scalar(tag, "", 0))
			described = appendMessage(described, summaryValue, scalar(tag, text, 0))
			c.plain, c.described = len(plain)-simpleValueBytes, len(described)-simpleValueBytes
			l.columns = append(l.columns, c)
		}
	}
	l.plain = appendMessage(nil, eventSummary, plain)
	l.described = appendMessage(nil, eventSummary, described)
	for i := range l.columns {
		l.columns[i].plain += len(l.plain) - len(plain)
		l.columns[i].described += len(l.described) - len(described)
	}
	l.held = make([]uint64, len(l.flags))
	return l
}

// describe says what a field is and what its charts do not show.
func describe(f *record.Field) string {
	text := fmt.Sprintf("%s, %s", f.Class, f.Type)
	if f.Unit != "" {
		text += ", unit " + f.Unit
	}
	switch {
	case f.Class == record.Flag:
		text += "; bits, as an integer"
	case f.Type == record.Int64 || f.Type == record.Uint64:
		text += "; exact up to 2^24, rounded to float32 beyond"
	case f.Type == record.Float64:
		text += "; rounded to float32"
	}
	return text
}

// Narrowing counts what the numbers of an event file do not say of the record, because TensorBoard's scalars are float32.
type Narrowing struct {
	Rounded  uint64 `json:"rounded"`  // floats that are not the same any more
	Infinite uint64 `json:"infinite"` // of those: finite, and too large
	Zero     uint64 `json:"zero"`     // of those: not 0, and too small
	Integers uint64 `json:"integers"` // integers and flags, beyond 2^24, that are not the same any more
}

// narrow is a stored word as float32.
func (n *Narrowing) narrow(w uint64, t record.Type) float32 {
	switch t {
	case record.Int64:
		x := float32(int64(w))
		// 2^63 is no int64; what is rounded up to it is changed.
		if x >= 1<<63 || int64(x) != int64(w) {
			n.Integers++
		}
		return x
	case record.Uint64:
		x := float32(w)
		if x >= 1<<64 || uint64(x) != w {
			n.Integers++
		}
		return x
	}
	f := math.Float64frombits(w)
	x := float32(f)
	if float64(x) != f && f == f {
		n.Rounded++
		switch {
		case math.IsInf(float64(x), 0):
			n.Infinite++
		case x == 0:
			n.Zero++
		}
	}
	return x
}

// hold joins the flags of a record to those that are held.
func (l *layout) hold(row []uint64) {
	for i, w := range l.flags {
		l.held[i] |= row[w]
	}
}

// appendEvent is the event of a record, with the flags that were held.
func (l *layout) appendEvent(dst []byte, row []uint64, described bool, n *Narrowing) []byte {
	at := len(dst)
	dst = appendHead(open(dst), int64(row[1]), row[0])
	begin := len(dst)
	if described {
		dst = append(dst, l.described...)
	} else {
		dst = append(dst, l.plain...)
	}
	b := dst[begin:]
	for i := range l.columns {
		c := &l.columns[i]
		w, off := row[c.word], c.plain
		if c.flag >= 0 {
			w |= l.held[c.flag]
		}
		if described {
			off = c.described
		}
		binary.LittleEndian.PutUint32(b[off:], math.Float32bits(n.narrow(w, c.typ)))
	}
	clear(l.held)
	return seal(dst, at)
}
