package digestlog

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/usp-project/usp/record"
)

// Limits of an entry. MaxEntrySize is what a C2SP tlog-tiles entry bundle can hold, so that every log can be exported to one.
const (
	EntryVersion = 1
	MaxEntrySize = 1<<16 - 1        // bytes of one encoded entry
	MaxDigests   = record.MaxFields // digests of a STEP entry
	MaxExt       = 30 << 10         // bytes of Ext
	MaxName      = 255              // bytes of Name
	MaxText      = 256              // bytes of Text
)

// Kind says what an entry records.
type Kind uint8

// The kinds of version 1. A reader keeps an entry of a kind it does not know as a leaf and reports it with [ErrUnknownKind].
const (
	KindOpen     Kind = 1 // a recorder began a generation: Manifest, Schema, Resumed, Ext
	KindStep     Kind = 2 // the digests of one step: Nonfinite, Digests, Ext
	KindLost     Kind = 3 // records [From, To) were not stored: From, To, Reason
	KindSnapshot Kind = 4 // a snapshot is durable: SHA256, Size, Name
	KindRewind   Kind = 5 // the generation continues behind step Target: Target, FromGeneration, SHA256 of the snapshot
	KindSeal     Kind = 6 // a telemetry segment was sealed: Stream, Base, Count, Size, SHA256, Name
	KindEnd      Kind = 7 // the generation ended: Status, Emitted, Stored, Lost, EmittedKnown
	KindPrune    Kind = 8 // a snapshot is about to be removed: Target, Name, SHA256
	KindEvent    Kind = 9 // something an auditor should know: Code, Text
)

// String returns the kind's name in the format page, such as "STEP".
func (k Kind) String() string {
	names := [...]string{"", "OPEN", "STEP", "LOST", "SNAPSHOT", "REWIND", "SEAL", "END", "PRUNE", "EVENT"}
	if k == 0 || int(k) >= len(names) {
		return fmt.Sprintf("kind(%d)", uint8(k))
	}
	return names[k]
}

// Status says how a generation ended.
type Status uint8

// How a generation ended.
const (
	StatusClean   Status = 1 // the producer closed its ring
	StatusCrashed Status = 2 // the producer died
	StatusFailed  Status = 3 // the producer said that it failed
)

// String returns "clean", "crashed" or "failed".
func (s Status) String() string {
	names := [...]string{"", "clean", "crashed", "failed"}
	if s == 0 || int(s) >= len(names) {
		return fmt.Sprintf("status(%d)", uint8(s))
	}
	return names[s]
}

// EventCode says what kind of event an EVENT entry records.
type EventCode uint16

// The event codes of version 1.
const (
	EventPoisoned       EventCode = 1 // a write or fsync of a file failed; the stream went on in a new file
	EventStorage        EventCode = 2 // storage could not be written for a while
	EventRecovered      EventCode = 3 // an unacknowledged tail was cut from a file when it was opened again
	EventDigestsMissing EventCode = 4 // digests of stored records were lost: the recorder died before it logged them, and the ring moved on
)

// String returns "poisoned", "storage", "recovered" or "digests-missing".
func (c EventCode) String() string {
	names := [...]string{"", "poisoned", "storage", "recovered", "digests-missing"}
	if c == 0 || int(c) >= len(names) {
		return fmt.Sprintf("event(%d)", uint16(c))
	}
	return names[c]
}

// An Entry is one leaf of the log. The first group is in every entry; which of the others are encoded depends on Kind, the rest is ignored.
// Entries hold no wall clock: two runs that computed the same thing have the same STEP entries.
type Entry struct {
	Kind       Kind
	Flags      uint16 // kept as they are; version 1 defines none
	Generation uint32
	Step       uint64
	Seq        uint64

	Manifest [32]byte // OPEN: SHA-256 of the manifest file
	Schema   [32]byte // OPEN: SHA-256 of the schema text
	Resumed  bool     // OPEN: the generation continues an earlier one

	Nonfinite uint32     // STEP: bit min(i, 31) is set if digest field i held a NaN or an infinity
	Digests   [][32]byte // STEP: one per digest field, in schema order
	Ext       []byte     // OPEN, STEP: room for later versions, kept as it is

	From, To uint64            // LOST: sequence numbers [From, To)
	Reason   record.LostReason // LOST: why, not 0

	SHA256         [32]byte // SNAPSHOT, REWIND, SEAL, PRUNE: of the whole file
	Size           uint64   // SNAPSHOT, SEAL: bytes of the file
	Name           string   // SNAPSHOT, SEAL, PRUNE: file name without a directory
	Target         uint64   // REWIND: the step returned to; PRUNE: the snapshot's step
	FromGeneration uint32   // REWIND: the generation of the snapshot

	Stream      uint8  // SEAL: which stream the segment belongs to, as segment.Kind
	Base, Count uint64 // SEAL: ordinal of the segment's first frame, number of its frames

	Status                Status // END
	Emitted, Stored, Lost uint64 // END: records of this generation; Emitted is 0 if not known
	EmittedKnown          bool   // END: the ring could still be read, so Emitted is the producer's own count

	Code EventCode // EVENT
	Text string    // EVENT: one line of UTF-8 without control characters
}

// Errors of the entry decoder. A decoder error other than [ErrUnknownKind] and [ErrEntryVersion] is an [ErrEntry].
var (
	ErrEntry        = errors.New("digestlog: malformed entry")
	ErrEntryVersion = errors.New("digestlog: entry of a newer version; read it with a newer usp")
	ErrUnknownKind  = errors.New("digestlog: entry of an unknown kind; read it with a newer usp")
)

// Validate reports why e cannot be encoded, or nil. The error wraps [ErrEntry].
func (e *Entry) Validate() error {
	var why string
	switch e.Kind {
	case KindOpen, KindStep:
		why = e.validateExt()
	case KindLost:
		if e.From >= e.To {
			why = fmt.Sprintf("lost range [%d, %d) is empty", e.From, e.To)
		} else if e.Reason == 0 {
			why = "lost range without a reason"
		}
	case KindSnapshot, KindSeal, KindPrune:
		why = validateName(e.Name)
		if why == "" && e.Kind == KindSeal && e.Stream == 0 {
			why = "stream 0"
		}
	case KindRewind:
	case KindEnd:
		if e.Status == 0 {
			why = "status 0"
		} else if !e.EmittedKnown && e.Emitted != 0 {
			why = fmt.Sprintf("emitted is %d but not known", e.Emitted)
		}
	case KindEvent:
		why = validateText(e.Code, e.Text)
	default:
		why = "unknown kind"
	}
	if why != "" {
		return fmt.Errorf("%w: %v: %s", ErrEntry, e.Kind, why)
	}
	return nil
}

func (e *Entry) validateExt() string {
	if len(e.Ext) > MaxExt {
		return fmt.Sprintf("extension of %d bytes, at most %d", len(e.Ext), MaxExt)
	}
	if e.Kind != KindStep {
		return ""
	}
	if len(e.Digests) > MaxDigests {
		return fmt.Sprintf("%d digests, at most %d", len(e.Digests), MaxDigests)
	}
	if uint64(e.Nonfinite)>>len(e.Digests) != 0 {
		return fmt.Sprintf("nonfinite bits %#x for %d digests", e.Nonfinite, len(e.Digests))
	}
	return ""
}

// validateName keeps names to what is safe as a file name in any directory and on any terminal.
func validateName(name string) string {
	if name == "" || len(name) > MaxName || name[0] == '.' {
		return fmt.Sprintf("name %q is not 1 to %d bytes without a leading dot", name, MaxName)
	}
	for _, c := range []byte(name) {
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '-' || c == '_') {
			return fmt.Sprintf("name %q has a byte other than letters, digits, '.', '-', '_'", name)
		}
	}
	return ""
}

func validateText(code EventCode, text string) string {
	if code == 0 {
		return "event code 0"
	}
	if len(text) > MaxText {
		return fmt.Sprintf("text of %d bytes, at most %d", len(text), MaxText)
	}
	if !utf8.ValidString(text) || strings.ContainsFunc(text, unicode.IsControl) {
		return fmt.Sprintf("text %q is not UTF-8 without control characters", text)
	}
	return ""
}

// CleanText makes any string fit for [Entry.Text]: control characters and broken UTF-8 become spaces, and what is too long is cut.
func CleanText(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == utf8.RuneError {
			return ' '
		}
		return r
	}, s)
	for len(s) > MaxText {
		_, n := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-n]
	}
	return s
}
