package jetstream

import (
	"context"
	"errors"
	"fmt"

	"github.com/usp-project/usp/record"
)

// Description is what a run says of the frames of a generation.
type Description struct {
	Schema  *record.Schema // of the stored fields; nil: there are none beside step and time
	Host    string         // where it is recorded, and by what; "": it does not say
	Program string
}

// Words is how many words a record has.
func (d *Description) Words() int {
	if d.Schema == nil {
		return 2
	}
	return d.Schema.StoredWords()
}

// ErrNoSchema is wrapped by the error for frames in front of which no message says how they are to be read.
var ErrNoSchema = errors.New("the stream does not say how they are to be read")

// Describe finds the message that describes the frames of another one: the schema stands in front of the first frames of a
// generation, which is looked for in about as many steps as the stream's length has binary digits. That the schema is the one that the
// frames were made with cannot be checked: its sum goes over the digest fields too, which are not in the stream. An error that
// does not wrap ErrNoSchema is of reading.
func (r *Reader) Describe(ctx context.Context, m *Message) (Description, error) {
	if m.kind == kindSchema {
		return m.describes()
	}
	o, err := r.Behind(ctx, m.Run, false, 0)
	if o == nil && err != nil {
		return Description{}, err
	}
	if err == nil && o != nil && o.kind == kindSchema && o.Schema == m.Schema && o.Generation == m.Generation {
		return o.describes() // as of most runs
	}
	for _, like := range []func(*Message) bool{
		func(o *Message) bool { return o.Generation >= m.Generation && o.Schema == m.Schema },
		func(o *Message) bool { return o.Schema == m.Schema }, // a sink of an earlier version describes a schema once, though a later generation has it too
	} {
		before, err := r.search(ctx, m, like)
		if err != nil {
			return Description{}, err
		}
		o, err := r.Behind(ctx, m.Run, false, before)
		switch {
		case o == nil && err != nil:
			return Description{}, err
		case o != nil && err == nil && o.kind == kindSchema && o.Schema == m.Schema:
			return o.describes()
		}
	}
	return Description{}, fmt.Errorf("frames %d to %d of run %s: %w", m.First, m.Next, m.Run, ErrNoSchema)
}

// Describes reads a message that is the description of the frames behind it; ok is false for another one.
func (m *Message) Describes() (d Description, ok bool, err error) {
	if m.kind != kindSchema {
		return d, false, nil
	}
	d, err = m.describes()
	return d, true, err
}

func (m *Message) describes() (Description, error) {
	d := Description{Host: m.host, Program: m.program}
	if len(m.Payload) == 0 {
		return d, nil
	}
	var err error
	if d.Schema, err = record.ParseSchema(m.Payload); err != nil {
		return Description{}, fmt.Errorf("message %d of the stream: %w: %w", m.Sequence, ErrNoSchema, err)
	}
	return d, nil
}
