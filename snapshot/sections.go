package snapshot

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// The container that carries sections through a staging area of the ring:
//
//	header 32: magic "USPSECT1", version u32, count u32, total u64, crc32-IEEE u32, 0 u32
//	count × {name [64], offset u64, length u64}
//	data of each section, 64-aligned from the start of the container
//
// Its checksum covers header and table only: the data is checked by what carries
// it, and hashing it would cost the step loop a second pass. It is the IEEE
// polynomial because producers in other languages have that one at hand.
const (
	containerMagic  = "USPSECT1"
	containerHeader = 32
	containerRow    = 80
)

func containerTable(n int) int64 { return aligned(int64(containerHeader + n*containerRow)) }

// SectionsSize is the length of what AppendSections adds for s.
func SectionsSize(s []Section) int {
	n := containerTable(len(s))
	for i := range s {
		n += aligned(int64(len(s[i].Data)))
	}
	return int(n)
}

// AppendSections appends the container of s to dst. It does not allocate when
// dst has room for SectionsSize(s) bytes more. Names are as of Section; a
// container with other names is refused by ParseSections.
func AppendSections(dst []byte, s []Section) []byte {
	start := len(dst)
	size := SectionsSize(s)
	dst = appendContainerHead(dst, len(s), int64(size), func(i int) (string, int64) { return s[i].Name, int64(len(s[i].Data)) })
	for i := range s {
		dst = appendZeros(dst, int(aligned(int64(len(dst)-start)))-(len(dst)-start))
		dst = append(dst, s[i].Data...)
	}
	return appendZeros(dst, size-(len(dst)-start))
}

// appendContainerHead appends header and table of a container of size bytes with n
// sections, of which row gives name and length.
func appendContainerHead(dst []byte, n int, size int64, row func(i int) (name string, length int64)) []byte {
	le := binary.LittleEndian
	start := len(dst)
	dst = append(dst, containerMagic...)
	dst = le.AppendUint32(dst, version)
	dst = le.AppendUint32(dst, uint32(n))
	dst = le.AppendUint64(dst, uint64(size))
	dst = le.AppendUint64(dst, 0)
	off := containerTable(n)
	for i := range n {
		name, length := row(i)
		dst = append(dst, name...)
		dst = appendZeros(dst, nameLen-len(name))
		dst = le.AppendUint64(dst, uint64(off))
		dst = le.AppendUint64(dst, uint64(length))
		off += aligned(length)
	}
	le.PutUint32(dst[start+24:], containerCRC(dst[start:]))
	return dst
}

// containerCRC covers the header without its checksum and the table.
func containerCRC(b []byte) uint32 {
	return crc32.Update(crc32.ChecksumIEEE(b[:24]), crc32.IEEETable, b[containerHeader:])
}

func appendZeros(dst []byte, n int) []byte {
	var zeros [alignment]byte
	for n > 0 {
		k := min(n, len(zeros))
		dst = append(dst, zeros[:k]...)
		n -= k
	}
	return dst
}

// ParseSections reads a container. The sections' data are views into b, not
// copies: they are valid while b is. Everything but the data is checked, so that
// there is one container for each list of sections.
func ParseSections(b []byte) ([]Section, error) {
	sections, err := parseContainer(b)
	if err == nil {
		err = checkSections(sections)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSections, err)
	}
	return sections, nil
}

func parseContainer(b []byte) ([]Section, error) {
	le := binary.LittleEndian
	if len(b) < containerHeader || string(b[:8]) != containerMagic {
		return nil, ErrNotSnapshot
	}
	if le.Uint32(b[8:]) != version {
		return nil, ErrVersion
	}
	count := int64(le.Uint32(b[12:]))
	if count > MaxSections || containerTable(int(count)) > int64(len(b)) {
		return nil, fmt.Errorf("%d sections do not fit %d bytes", count, len(b))
	}
	if total := le.Uint64(b[16:]); total != uint64(len(b)) {
		return nil, fmt.Errorf("container says %d bytes, has %d", total, len(b))
	}
	table := b[:containerHeader+count*containerRow]
	if containerCRC(table) != le.Uint32(b[24:]) || le.Uint32(b[28:]) != 0 {
		return nil, errors.New("checksum of header and table differs")
	}
	sections := make([]Section, 0, count)
	next := containerTable(int(count))
	if i := firstNonZero(b[len(table):next]); i >= 0 {
		return nil, fmt.Errorf("padding at %d is not zero", len(table)+i)
	}
	for i := range count {
		row := table[containerHeader+i*containerRow:][:containerRow]
		name, err := parsePadded(row[:nameLen])
		if err != nil {
			return nil, fmt.Errorf("name of section %d: %w", i, err)
		}
		off, n := le.Uint64(row[64:]), le.Uint64(row[72:])
		if off != uint64(next) || off > uint64(len(b)) || n > uint64(len(b))-off {
			return nil, fmt.Errorf("section %q: %d bytes at %d do not fit %d", name, n, off, len(b))
		}
		sections = append(sections, Section{Name: name, Data: b[off : off+n : off+n]})
		next = aligned(int64(off + n))
		if i := firstNonZero(b[off+n : min(next, int64(len(b)))]); i >= 0 {
			return nil, fmt.Errorf("padding at %d is not zero", int(off+n)+i)
		}
	}
	if next != int64(len(b)) {
		return nil, fmt.Errorf("sections end at %d, container at %d", next, len(b))
	}
	return sections, nil
}
