package digestlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
)

// The Ext of an entry is a list of blocks, each with a tag, in ascending order of the tags. A reader passes over blocks whose tag it does
// not know. doc/format/digestlog.md has what is in them.
type Tag uint8

// The tags of an OPEN entry.
const (
	TagPlan        Tag = 1 // record.Plan as text: what the STEP entries of the generation hold
	TagEnvironment Tag = 2 // what the producer computes with, as text, see package environ
)

// The tags of a STEP entry.
const (
	TagLadder     Tag = 1 // the precision ladders of the digest fields, see record.Plan
	TagInvariants Tag = 2 // whether weights are weights, and the flags, see record.Plan
)

// ErrExt is wrapped by the error of an Ext that is not a list of blocks. The entry itself is valid: its digests do not depend on it.
var ErrExt = errors.New("digestlog: malformed extension of an entry")

const blockHeader = 1 + 2 // tag u8, length u16

// AppendBlock appends a block to the Ext dst. Blocks must be appended in ascending order of their tags.
func AppendBlock(dst []byte, tag Tag, data []byte) []byte {
	dst = append(dst, byte(tag))
	return appendBytes(dst, data)
}

// OpenBlock appends the beginning of a block whose data the caller appends himself before he calls [CloseBlock] with what OpenBlock returned
// as at.
func OpenBlock(dst []byte, tag Tag) (ext []byte, at int) {
	return append(dst, byte(tag), 0, 0), len(dst)
}

// CloseBlock writes down how long the block begun at at is; a block of more than 65,535 bytes is cut off there.
func CloseBlock(ext []byte, at int) []byte {
	n := min(len(ext)-at-blockHeader, 1<<16-1)
	binary.LittleEndian.PutUint16(ext[at+1:], uint16(n))
	return ext[:at+blockHeader+n]
}

// Blocks goes through the blocks of an Ext. An error, which wraps [ErrExt], is the last element.
func Blocks(ext []byte) iter.Seq2[Block, error] {
	return func(yield func(Block, error) bool) {
		d, last := decoder{rest: ext}, Tag(0)
		for len(d.rest) > 0 {
			b := Block{Tag: Tag(d.u8()), Data: d.bytes()}
			if d.short || b.Tag <= last {
				yield(Block{}, fmt.Errorf("%w: block with tag %d behind %d, %d bytes left", ErrExt, b.Tag, last, len(d.rest)))
				return
			}
			if last = b.Tag; !yield(b, nil) {
				return
			}
		}
	}
}

// Block is one block of an Ext. Data lies in it.
type Block struct {
	Tag  Tag
	Data []byte
}

// FindBlock returns the data of the block with that tag, nil if there is none; the error wraps [ErrExt].
func FindBlock(ext []byte, tag Tag) ([]byte, error) {
	var found []byte
	for b, err := range Blocks(ext) {
		if err != nil {
			return nil, err
		}
		if b.Tag == tag {
			found = b.Data
		}
	}
	return found, nil
}
