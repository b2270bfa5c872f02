package jetstream

import (
	"bytes"
	"context"
	"errors"
	"io/fs"

	"github.com/usp-project/usp/internal/segment"
	"github.com/usp-project/usp/record"
)

// check checks the telemetry.
func (c *checker) check(ctx context.Context) error {
	defer func() {
		if c.local != nil {
			c.local.close()
		}
	}()
	var frame record.Frame
	var meta metas
	return c.messages(ctx, func(sequence uint64, h header, err error, payload []byte) error {
		switch {
		case err != nil:
			c.problem(Malformed, sequence, c.want, c.want, "%v", err)
			return nil
		case h.kind != kindFrames && h.kind != kindSchema:
			c.problem(Malformed, sequence, h.first, h.next, "a message of kind %s", h.kind)
			return nil
		}
		inOrder := c.place(sequence, &h)
		if c.local != nil {
			if err := c.described(sequence, &h, payload, &meta); err != nil {
				return err
			}
		}
		if h.kind == kindFrames {
			list, ok := c.frames(sequence, &h, payload)
			if !ok {
				c.want = max(c.want, h.next)
				return nil
			}
			if err := c.compare(sequence, &h, list, inOrder); err != nil {
				return err
			}
			if h.first >= c.want {
				c.listen(sequence, &h, list, &frame)
			}
		}
		if inOrder {
			c.tape.next = h.next
			c.chained(sequence, &h)
		}
		if !c.broken && c.tape.tally != h.tally {
			c.problem(Forged, sequence, h.first, h.next, "its headers have other counts than what is there")
		}
		c.want = max(c.want, h.next)
		c.report.Records, c.report.Lost = c.tape.Records, c.tape.Lost
		return nil
	})
}

// listen takes frames into the tape.
func (c *checker) listen(sequence uint64, h *header, list [][]byte, frame *record.Frame) {
	for i, f := range list {
		if err := record.DecodeFrame(f[4:], frame); err != nil || frame.Generation != h.generation {
			at := h.first + uint64(i)
			c.problem(Malformed, sequence, at, at+1, "no frame of generation %d: %v", h.generation, err)
			continue
		}
		c.tape.add(f)
		c.tape.count(frame)
	}
}

// metas is what the segment says that was asked for last.
type metas struct {
	base  uint64
	known bool
	meta  record.StreamMeta
	text  []byte // of the stored fields
}

// read reads the header of the segment that begins at base; known is false if there is none.
func (m *metas) read(f *frames, base uint64) error {
	if m.known && m.base == base {
		return nil
	}
	*m = metas{base: base}
	infos, err := segment.List(f.fsys, f.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, info := range infos {
		if info.Base != base {
			continue
		}
		r, err := segment.Open(f.fsys, info.Path)
		if err != nil {
			return nil // its frames are not read either
		}
		defer r.Close()
		if m.meta, err = record.ParseStreamMeta(r.Header().Meta); err == nil {
			m.known, m.text = true, stored(m.meta.Schema)
		}
	}
	return nil
}

// described holds what a message says of its frames against the segment that has them.
func (c *checker) described(sequence uint64, h *header, payload []byte, m *metas) error {
	base := h.segment
	if h.kind == kindSchema {
		base = h.first // a schema stands in front of a segment, but for the one behind a hole
	}
	if err := m.read(c.local, base); err != nil {
		return err
	}
	switch {
	case !m.known && h.kind == kindFrames:
		c.problem(Differs, sequence, h.first, h.next, "the run directory has no segment that begins at %d", base)
	case !m.known:
	case m.meta.Generation != h.generation || m.meta.Schema.Sum() != h.schema:
		c.problem(Differs, sequence, h.first, h.next, "its generation or schema is not the one of the segment that begins at %d", base)
	case h.kind == kindSchema && !bytes.Equal(payload, m.text):
		c.problem(Differs, sequence, h.first, h.next, "the run directory has another schema")
	}
	return nil
}
