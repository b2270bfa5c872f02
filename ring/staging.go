//go:build unix

package ring

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"strconv"

	"golang.org/x/sys/unix"
)

// Layout of a staging area's file, doc/format/ring.md.
const (
	areaMagic     = "USPSTAG1"
	areaHeaderLen = 4096

	areaIndex      = 12
	areaCapacity   = 16
	areaRunID      = 24
	areaGeneration = 56
	areaCRC        = 60 // over the 60 bytes before it

	areaState   = 128 // alone on 128 bytes
	areaStep    = 256
	areaSeq     = 264
	areaTicket  = 272
	areaLength  = 280
	areaReason  = 288 // u32 generation below, u32 reason above
	areaContent = 296 // u32 flags below, u32 crc above

	areaHasCRC = 1 // flag: the content has a crc

	areaFree    = 0
	areaFilling = 1
	areaReady   = 2
	areaTaken   = 3
)

func areaPath(path string, i int) string { return path + ".stage" + strconv.Itoa(i) }

func areaSize(capacity int64) int64 { return areaHeaderLen + roundUp(capacity, pageSize) }

func encodeArea(h *Header, i int) []byte {
	le := binary.LittleEndian
	b := make([]byte, areaCRC+4)
	copy(b, areaMagic)
	le.PutUint32(b[offVersion:], version)
	le.PutUint32(b[areaIndex:], uint32(i))
	le.PutUint64(b[areaCapacity:], uint64(h.StagingCapacity))
	copy(b[areaRunID:areaRunID+MaxRunID], h.RunID)
	le.PutUint32(b[areaGeneration:], h.Generation)
	le.PutUint32(b[areaCRC:], crc32.ChecksumIEEE(b[:areaCRC]))
	return b
}

// producerArea is the producer's side of a staging area. Its descriptor holds a
// lock too, so that a file left behind can be told from one in use.
type producerArea struct {
	m  mapping
	fd int
}

func (a *producerArea) close() error {
	return errors.Join(a.m.unmap(), unix.Close(a.fd))
}

func createArea(path string, h *Header, i int) (producerArea, *newFile, error) {
	name, size := areaPath(path, i), areaSize(h.StagingCapacity)
	f, err := create(name, size)
	if err != nil {
		return producerArea{}, nil, err
	}
	m, err := mapFile(f.fd, name, size)
	if err != nil {
		f.discard()
		return producerArea{}, nil, err
	}
	m.touch()
	copy(m.b, encodeArea(h, i))
	return producerArea{m, f.fd}, f, nil
}

// linkArea names a staging file. The ring of that name is ours by now, so a
// staging file that is in the way belongs to a ring that was removed by hand.
func linkArea(f *newFile) error {
	err := f.link()
	if errors.Is(err, unix.EEXIST) {
		if err = unix.Unlink(f.path); err == nil {
			err = f.link()
		}
	}
	if err != nil {
		return fmt.Errorf("ring: %s: link: %w", f.path, err)
	}
	return nil
}

// Stage hands a state of size bytes to the consumer: fill writes it, exactly
// size bytes, straight into shared memory, and must not keep dst. The state is
// that after every record emitted so far; step and reason travel with it.
//
// Stage never waits. It returns false, and counts the request as dropped, if
// every area is still with the consumer or size is beyond the capacity. It
// makes no system call. If fill panics the area is free again.
func (p *Producer) Stage(step uint64, reason uint32, size int, fill func(dst []byte)) bool {
	if p.words < 0 {
		return false
	}
	a := p.freeArea()
	if a == nil || size < 0 || int64(size) > p.header.StagingCapacity {
		p.drops++
		store(p.ring.at(offDrops), p.drops)
		return false
	}
	state := a.m.at(areaState)
	store(state, areaFilling)
	done := false
	defer func() {
		if !done {
			store(state, areaFree)
		}
	}()
	dst := a.m.b[areaHeaderLen : areaHeaderLen+size : areaHeaderLen+size]
	fill(dst)
	var flags, sum uint32
	if p.crcs {
		flags, sum = areaHasCRC, crc32.ChecksumIEEE(dst)
	}
	store(a.m.at(areaStep), step)
	store(a.m.at(areaSeq), p.next)
	store(a.m.at(areaTicket), p.ticket)
	store(a.m.at(areaLength), uint64(size))
	store(a.m.at(areaReason), uint64(p.header.Generation)|uint64(reason)<<32)
	store(a.m.at(areaContent), uint64(flags)|uint64(sum)<<32)
	store(state, areaReady)
	p.ticket++
	done = true
	return true
}

// CanStage reports whether Stage would find a free area now. It is for a producer
// that has nothing left to do but wait, and counts nothing.
func (p *Producer) CanStage() bool { return p.words >= 0 && p.freeArea() != nil }

func (p *Producer) freeArea() *producerArea {
	for i := range p.areas {
		if load(p.areas[i].m.at(areaState)) == areaFree {
			return &p.areas[i]
		}
	}
	return nil
}
