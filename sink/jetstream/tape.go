package jetstream

import (
	"crypto/sha256"
	"encoding"
	"encoding/json"
	"fmt"
	"hash"

	"github.com/usp-project/usp/record"
)

// tape is how far one has come in what a subject holds, and the SHA-256 of the run's name and everything before, as it is
// in payloads. It depends on the frames and not on how they were cut into messages, so two ends that have the same sum
// at an ordinal have the same history.
type tape struct {
	next uint64
	hash hash.Hash
	tally
}

// place is a tape as it is written down.
type place struct {
	Next uint64 `json:"next"`
	Hash []byte `json:"hash"` // state of the SHA-256
	tally
}

// newTape is the beginning of a subject.
func newTape(subject string) *tape {
	t := &tape{hash: sha256.New()}
	t.hash.Write([]byte("usp stream 1\n" + subject + "\n")) // a hash takes everything
	return t
}

// add takes a frame, with its length in front.
func (t *tape) add(counted []byte) {
	t.hash.Write(counted) // a hash takes everything
	t.next++
}

// count takes a frame that is a record or a loss into the counts.
func (t *tape) count(f *record.Frame) {
	if f.Kind == record.KindLost {
		t.Lost += f.To - f.Seq
		return
	}
	t.Records++
	t.Step, t.Time = f.Step(), f.Time()
}

// sum is the SHA-256 of everything so far.
func (t *tape) sum() (s [32]byte) {
	t.hash.Sum(s[:0])
	return s
}

func (t *tape) place() place {
	state, err := t.hash.(encoding.BinaryMarshaler).MarshalBinary()
	if err != nil {
		panic(err) // package sha256 promises that it can be marshalled
	}
	return place{Next: t.next, Hash: state, tally: t.tally}
}

// tape is the reverse of place.
func (p *place) tape() (*tape, error) {
	t := &tape{next: p.Next, hash: sha256.New(), tally: p.tally}
	if err := t.hash.(encoding.BinaryUnmarshaler).UnmarshalBinary(p.Hash); err != nil {
		return nil, fmt.Errorf("state of a cursor: %w", err)
	}
	return t, nil
}

// state is what the sink keeps in its cursor.
type state struct {
	Telemetry place `json:"telemetry"`
	Audit     place `json:"audit,omitzero"`
}

func (s *state) encode() []byte {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err) // numbers and bytes
	}
	return b
}

// tapes reads a state. What is missing, or cannot be read, begins anew: that costs time and nothing else.
func tapes(b []byte, run string) (telemetry, audit *tape) {
	telemetry, audit = newTape(telemetryPrefix+token(run)), newTape(auditPrefix+token(run))
	var s state
	if json.Unmarshal(b, &s) != nil {
		return telemetry, audit
	}
	if t, err := s.Telemetry.tape(); err == nil {
		telemetry = t
	}
	if t, err := s.Audit.tape(); err == nil {
		audit = t
	}
	return telemetry, audit
}
