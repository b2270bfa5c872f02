package jetstream

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"net/url"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/nats-io/nats.go"

	"github.com/usp-project/usp/internal/rundir"
)

// Subjects of a run, in front of its token.
const (
	telemetryPrefix = "usp.telemetry."
	auditPrefix     = "usp.audit."
)

// token is a run id as one token of a subject: a dot would make two of it.
func token(run string) string { return strings.ReplaceAll(run, ".", "%2E") }

// runOf is the run that a subject is of; ok is false for another subject.
func runOf(subject, prefix string) (run string, ok bool) {
	t, ok := strings.CutPrefix(subject, prefix)
	if !ok || strings.Contains(t, ".") {
		return "", false
	}
	run, err := url.PathUnescape(t)
	return run, err == nil && rundir.ValidID(run) && token(run) == t
}

// The kinds of messages.
const (
	kindFrames  = "frames"  // telemetry frames
	kindSchema  = "schema"  // how to read the frames behind it: the stored fields of their schema
	kindEntries = "entries" // digest log entries
	kindHead    = "head"    // the signed head over all entries before it
)

// header is what the headers of a message say.
type header struct {
	kind        string
	first, next uint64   // ordinals of the frames or entries: [first, next); of a schema and a head, both are those behind it
	payload     [32]byte // SHA-256 of the payload
	chain       [32]byte // SHA-256 of everything of the subject up to the end of this message, see tape

	generation uint32   // of frames and schema
	schema     [32]byte // of frames and schema: which one, digest fields with it
	segment    uint64   // of frames: base of the segment they are in
	incomplete bool     // of frames: some between first and next could not be read
	tally               // of frames and schema: what the subject has up to here
	status     string   // of a head over the end of the run: how it ended

	host, program string // of a schema: where and by what the run is recorded; "": not known
}

// tally is what is counted of a run's frames.
type tally struct {
	Records uint64 `json:"records"`
	Lost    uint64 `json:"lost"`
	Step    uint64 `json:"step"` // of the newest record
	Time    int64  `json:"time"` // of the newest record, Unix ns
}

const (
	version = "1"
	prefix  = "Usp-"
)

// encode writes the headers of a message, with those that make the server refuse it in any other place than behind the
// message with the stream sequence last, which is 0 for the first of its subject.
func (h *header) encode(run, stream string, last uint64) nats.Header {
	m := nats.Header{}
	put := func(name, value string) { m[prefix+name] = []string{value} }
	number := func(name string, n uint64) { put(name, strconv.FormatUint(n, 10)) }
	put("Version", version)
	put("Kind", h.kind)
	number("First", h.first)
	number("Next", h.next)
	put("Sha256", hex.EncodeToString(h.payload[:]))
	put("Chain", hex.EncodeToString(h.chain[:]))
	switch h.kind {
	case kindFrames, kindSchema:
		number("Generation", uint64(h.generation))
		put("Schema", hex.EncodeToString(h.schema[:]))
		number("Records", h.Records)
		number("Lost", h.Lost)
		number("Step", h.Step)
		put("Time", strconv.FormatInt(h.Time, 10))
	}
	if h.kind == kindFrames {
		number("Segment", h.segment)
		if h.incomplete {
			put("Incomplete", "1")
		}
	}
	if h.status != "" {
		put("Status", h.status)
	}
	if h.kind == kindSchema {
		for name, v := range map[string]string{"Host": h.host, "Program": h.program} {
			if readable(v) {
				put(name, url.PathEscape(v))
			}
		}
	}
	// The id has the content in it: were it the ordinal alone, a server that has a shorter message of that ordinal would
	// call the longer one its duplicate and acknowledge what it does not have.
	m["Nats-Msg-Id"] = []string{fmt.Sprintf("%s/%s/%d-%d/%x%x", run, h.kind, h.first, h.next, h.chain[:8], h.payload[:8])}
	m["Nats-Expected-Stream"] = []string{stream}
	m["Nats-Expected-Last-Subject-Sequence"] = []string{strconv.FormatUint(last, 10)}
	return m
}

// maxName bounds the names of hosts and programs, in bytes.
const maxName = 255

// readable says whether a name can be shown to people: it is not empty, not long, and has nothing in it that moves a cursor.
func readable(name string) bool {
	return name != "" && len(name) <= maxName && utf8.ValidString(name) && !strings.ContainsFunc(name, func(c rune) bool { return !unicode.IsPrint(c) })
}

// errMessage is wrapped by the error for a message that this package has not made.
var errMessage = errors.New("not a message of usp")

// decode reads the headers of a message and checks them against its payload.
func decode(m nats.Header, payload []byte) (h header, err error) {
	get := func(name string) string {
		v := m[prefix+name]
		if len(v) != 1 {
			if err == nil {
				err = fmt.Errorf("%w: %d headers %s%s", errMessage, len(v), prefix, name)
			}
			return ""
		}
		return v[0]
	}
	bad := func(name, v string) {
		if err == nil {
			err = fmt.Errorf("%w: header %s%s: %.40q", errMessage, prefix, name, v)
		}
	}
	number := func(name string) uint64 {
		v := get(name)
		n, e := strconv.ParseUint(v, 10, 64)
		if e != nil || strconv.FormatUint(n, 10) != v {
			bad(name, v)
		}
		return n
	}
	sum := func(name string) (s [32]byte) {
		v := get(name)
		if n, e := hex.Decode(s[:], []byte(v[:min(len(v), 64)])); e != nil || n != 32 || len(v) != 64 {
			bad(name, v)
		}
		return s
	}
	if v := get("Version"); err == nil && v != version {
		return h, fmt.Errorf("message of version %.10q: read it with a newer usp", v)
	}
	h.kind, h.first, h.next = get("Kind"), number("First"), number("Next")
	h.payload, h.chain = sum("Sha256"), sum("Chain")
	switch h.kind {
	case kindFrames, kindSchema:
		generation := number("Generation")
		if h.generation = uint32(generation); uint64(h.generation) != generation {
			bad("Generation", get("Generation"))
		}
		h.schema = sum("Schema")
		h.tally = tally{Records: number("Records"), Lost: number("Lost"), Step: number("Step")}
		t, e := strconv.ParseInt(get("Time"), 10, 64)
		if h.Time = t; e != nil {
			bad("Time", get("Time"))
		}
	case kindEntries:
	case kindHead:
		if len(m[prefix+"Status"]) > 0 {
			h.status = get("Status")
		}
	default:
		bad("Kind", h.kind)
	}
	if h.kind == kindFrames {
		h.segment = number("Segment")
		h.incomplete = len(m[prefix+"Incomplete"]) > 0
	}
	if h.kind == kindSchema {
		for name, to := range map[string]*string{"Host": &h.host, "Program": &h.program} {
			if len(m[prefix+name]) == 0 {
				continue
			}
			v := get(name)
			plain, e := url.PathUnescape(v)
			if e != nil || !readable(plain) {
				bad(name, v)
			}
			*to = plain
		}
	}
	if err == nil && (h.next < h.first || h.next > h.first && (h.kind == kindSchema || h.kind == kindHead)) {
		err = fmt.Errorf("%w: from %d to %d", errMessage, h.first, h.next)
	}
	if err == nil && sha256.Sum256(payload) != h.payload {
		err = fmt.Errorf("%w: its payload is not the one that its headers name", errMessage)
	}
	return h, err
}

// appendFrame appends a frame or an entry to a payload: its length as a little-endian u32, then its bytes, as in the
// batches of segments.
func appendFrame(dst, frame []byte) []byte {
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(frame)))
	return append(dst, frame...)
}

// split goes through the frames of a payload, each with its length in front of it. The last element is an error if the
// payload does not end with a frame.
func split(payload []byte) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		for rest := payload; len(rest) > 0; {
			if len(rest) < 4 || uint64(len(rest)-4) < uint64(binary.LittleEndian.Uint32(rest)) {
				yield(nil, fmt.Errorf("%w: it ends inside a frame", errMessage))
				return
			}
			n := 4 + int(binary.LittleEndian.Uint32(rest))
			if !yield(rest[:n:n], nil) {
				return
			}
			rest = rest[n:]
		}
	}
}

// equalFrame says whether a frame with its length in front is that frame.
func equalFrame(counted, frame []byte) bool { return bytes.Equal(counted[4:], frame) }
