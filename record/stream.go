package record

import (
	"bytes"
	"fmt"
	"strconv"
)

// StreamMeta heads every telemetry segment, so that a segment can be read, and its run accounted for, without any
// other file: the schema of its records and what was counted in the generation before the segment began.
type StreamMeta struct {
	Generation uint32
	Stored     uint64 // records of this generation stored before this segment
	Lost       uint64 // records of this generation lost before this segment
	Schema     *Schema
}

const streamHeader = "usp-telemetry v1\n"

// Append appends the text form of m to dst: a header line, three counts, then the schema text.
func (m *StreamMeta) Append(dst []byte) []byte {
	dst = fmt.Appendf(dst, "%sgeneration %d\nstored %d\nlost %d\n", streamHeader, m.Generation, m.Stored, m.Lost)
	return append(dst, m.Schema.text...)
}

// ParseStreamMeta reads the text form. It accepts exactly what Append writes; the error wraps ErrSchema.
func ParseStreamMeta(b []byte) (StreamMeta, error) {
	var m StreamMeta
	rest, ok := bytes.CutPrefix(b, []byte(streamHeader))
	if !ok {
		return m, fmt.Errorf("%w: telemetry segment header begins %.30q, want %q", ErrSchema, b, streamHeader)
	}
	var generation uint64
	for _, f := range []struct {
		key string
		dst *uint64
	}{{"generation ", &generation}, {"stored ", &m.Stored}, {"lost ", &m.Lost}} {
		var line []byte
		line, rest, _ = bytes.Cut(rest, []byte("\n"))
		value, ok := bytes.CutPrefix(line, []byte(f.key))
		n, err := strconv.ParseUint(string(value), 10, 64)
		if !ok || err != nil {
			return m, fmt.Errorf("%w: telemetry segment header has %.40q, want %q and a number", ErrSchema, line, f.key)
		}
		*f.dst = n
	}
	m.Generation = uint32(generation)
	var err error
	if m.Schema, err = ParseSchema(rest); err != nil {
		return m, err
	}
	if !bytes.Equal(m.Append(nil), b) {
		return m, fmt.Errorf("%w: telemetry segment header is not in canonical form", ErrSchema)
	}
	return m, nil
}
