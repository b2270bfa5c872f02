package fleet

import (
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
	"unicode"

	"golang.org/x/mod/sumdb/note"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/record"
	"github.com/usp-project/usp/sink/jetstream"
)

// How a run stands, beside the words with which one ends: clean, crashed, failed.
const (
	Recording  = "recording"  // it sends
	Silent     = "silent"     // it has sent nothing for a while, and has not ended
	Unreadable = "unreadable" // its newest message is none of usp's
)

// Run is what the stream says of a run. Nothing of it but Head.Verified is vouched for.
type Run struct {
	ID      string `json:"run_id"`
	Host    string `json:"host,omitempty"`
	Program string `json:"program,omitempty"`
	Schema  string `json:"schema,omitempty"` // its name
	State   string `json:"state"`

	Generation uint32    `json:"generation"`
	Step       uint64    `json:"step"` // of the newest record
	Time       time.Time `json:"time"` // of the newest record, by the input's clock
	Emitted    uint64    `json:"emitted"`
	Stored     uint64    `json:"stored"`
	Lost       uint64    `json:"lost"`
	Figures    []Figure  `json:"figures,omitempty"` // of the newest record

	Messages uint64    `json:"messages"`        // of telemetry
	Received time.Time `json:"received"`        // when the server got the newest one, by its clock
	Age      float64   `json:"age_seconds"`     // since then, by the server's clock
	Entries  uint64    `json:"log_entries"`     // of the digest log
	Head     Head      `json:"head"`            // of the digest log
	Fault    string    `json:"fault,omitempty"` // what is wrong with its messages
	Sequence uint64    `json:"stream_sequence"` // of the newest message of telemetry
}

// Figure is a number of the newest record.
type Figure struct {
	Name  string `json:"name"`
	Value Number `json:"value"`
}

// Number is one that JSON can hold: what is none there is null.
type Number float64

// Float is the number as it is.
func (n Number) Float() float64 { return float64(n) }

// MarshalJSON implements json.Marshaler.
func (n Number) MarshalJSON() ([]byte, error) {
	if x := float64(n); math.IsNaN(x) || math.IsInf(x, 0) {
		return []byte("null"), nil
	}
	return fmt.Appendf(nil, "%v", float64(n)), nil
}

// Head is the newest signed head of a run's digest log.
type Head struct {
	Size     uint64 `json:"size"`             // entries under it
	Root     string `json:"root,omitempty"`   // hexadecimal
	Signer   string `json:"signer,omitempty"` // key that signed it, of those that were given
	Verified bool   `json:"verified"`         // by that key, of this run, and not behind one that was seen
	Fault    string `json:"fault,omitempty"`  // why it is worth nothing, or less than it seems
	Forged   bool   `json:"forged,omitempty"` // it contradicts a signature, or what was seen before
}

const (
	mostWords   = 512 // of a record of which figures are shown
	mostFigures = 5
	mostName    = 100 // characters
	mostFault   = 300
)

// run is what is kept of one: some kilobytes.
type run struct {
	messages  jetstream.Messages
	newest    *jetstream.Message // of telemetry, without its payload
	described bool               // or it is known why not
	row       []uint64           // words of the newest record
	schema    string
	host      string
	program   string
	figures   []figure
	words     int // of a record, as described

	audit   *jetstream.Message // newest one of the log, without its payload
	head    Head
	garbled [2]string // what is wrong with the newest message of the telemetry, and of the log
	unread  string    // why the frames cannot be read
	at      time.Time // when the newest message of any kind came
}

// seenHead is the greatest verified head of a run that was seen.
type seenHead struct {
	size uint64
	root [32]byte
}

// figure is where a number is in a record.
type figure struct {
	name string
	word int
	typ  record.Type
}

// take takes a run's message in, unless a newer one was.
func (f *Fleet) take(id string, x found) {
	head, verified := Head{}, digestlog.SignedTreeHead{}
	if x.err == nil && x.m.Audit && x.m.Head {
		head, verified = f.judge(x.m)
	}
	row := []uint64(nil)
	if x.err == nil && !x.m.Audit {
		row = lastRecord(x.m)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	r := f.runs[id]
	if r == nil {
		if len(f.runs) >= f.o.Runs {
			f.hidden = max(f.hidden, 1) // the next list counts them
			return
		}
		r = &run{}
		f.runs[id] = r
	}
	if x.m.Received.After(r.at) {
		r.at = x.m.Received
	}
	if x.m.Audit {
		f.weigh(id, &head, &verified)
		r.takeAudit(x, head)
	} else {
		r.takeTelemetry(x, row)
	}
}

// count notes that there is one more message of a run.
func (f *Fleet) count(m *jetstream.Message) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if r := f.runs[m.Run]; r == nil {
	} else if m.Audit {
		r.messages.Audit++
	} else {
		r.messages.Telemetry++
	}
}

// takeTelemetry takes the newest message of telemetry, of whose payload the last record is kept.
func (r *run) takeTelemetry(x found, row []uint64) {
	if r.newest != nil && x.m.Sequence <= r.newest.Sequence {
		return
	}
	r.garbled[0] = ""
	if x.err != nil {
		r.garbled[0] = clip(x.err.Error(), mostFault)
		return
	}
	kept := *x.m
	kept.Payload = nil
	if r.newest == nil || r.newest.Generation != kept.Generation || r.newest.Schema != kept.Schema {
		r.described, r.figures, r.row = false, nil, nil
	}
	r.newest = &kept
	if d, ok, err := x.m.Describes(); ok {
		r.describe(&kept, d, err)
	}
	if row != nil {
		r.row = row
	}
}

// lastRecord decodes the last record of a message; nil if there is none, or it is too long to be kept.
func lastRecord(m *jetstream.Message) (words []uint64) {
	var last []byte
	for frame, err := range m.Frames() {
		if err != nil {
			return nil
		}
		if len(frame) > 0 && record.FrameKind(frame[0]) == record.KindRecord && len(frame) <= 16+8*mostWords {
			last = frame
		}
	}
	var f record.Frame
	if last == nil || record.DecodeFrame(last, &f) != nil || f.Kind != record.KindRecord {
		return nil
	}
	return slices.Clone(f.Words)
}

// describe takes in how the records are to be read.
func (r *run) describe(m *jetstream.Message, d jetstream.Description, err error) {
	if r.newest == nil || m.Generation != r.newest.Generation || m.Schema != r.newest.Schema {
		return // of another generation than the newest one is by now
	}
	r.described, r.unread, r.figures = true, "", nil
	if err != nil {
		r.unread = clip(err.Error(), mostFault)
		return
	}
	r.host, r.program, r.words = clip(d.Host, mostName), clip(d.Program, mostName), d.Words()
	if d.Schema != nil {
		r.schema, r.figures = clip(d.Schema.Name(), mostName), figuresOf(d.Schema)
	}
}

// figuresOf picks what a list shows of a record: what says most of a predictor, else the first numbers.
func figuresOf(s *record.Schema) (list []figure) {
	add := func(i int) {
		if f := s.Field(i); f.Class == record.Metric && f.Len == 1 && len(list) < mostFigures && s.Offset(i) < mostWords {
			list = append(list, figure{clip(f.Name, mostName), s.Offset(i), f.Type})
		}
	}
	for _, name := range []string{"cusum_pos", "cusum_neg", "threshold", "entropy", "ot_cost"} {
		if i, ok := s.Index(name); ok {
			add(i)
		}
	}
	if len(list) == 0 {
		for i := range s.Len() {
			if len(list) < 3 {
				add(i)
			}
		}
	}
	return list
}

// judge looks at a signed head. verified is it if it is worth something.
func (f *Fleet) judge(m *jetstream.Message) (h Head, verified digestlog.SignedTreeHead) {
	h.Size = m.Next
	if f.keys == nil {
		h.Fault = "no key was given to check it with"
		return h, verified
	}
	head, err := digestlog.ParseHead(m.Payload, f.keys)
	switch {
	case errors.Is(err, digestlog.ErrWrongKey):
		h.Fault = "by none of the keys that were given"
	case err != nil:
		h.Fault, h.Forged = clip(err.Error(), mostFault), true
	case head.RunID() != m.Run:
		h.Fault, h.Forged = fmt.Sprintf("it is the head of the run %q", clip(head.RunID(), mostName)), true
	case head.Size != m.Next:
		h.Fault, h.Forged = fmt.Sprintf("it is signed over %d entries, and its message says %d", head.Size, m.Next), true
	default:
		h.Root, h.Verified, h.Signer = hex.EncodeToString(head.Root[:]), true, f.signer(m.Payload)
		verified = head
	}
	return h, verified
}

// signer names the key of those that were given that has signed a head.
func (f *Fleet) signer(payload []byte) string {
	n, err := note.Open(payload, f.keys)
	if err != nil || len(n.Sigs) == 0 {
		return ""
	}
	return clip(fmt.Sprintf("%s+%08x", n.Sigs[0].Name, n.Sigs[0].Hash), mostName)
}

// weigh holds a verified head against the greatest one of the run that was seen so far: a log only grows.
func (f *Fleet) weigh(id string, h *Head, verified *digestlog.SignedTreeHead) {
	if !h.Verified {
		return
	}
	best, seen := f.best[id]
	switch {
	case verified.Size < best.size:
		h.Verified, h.Forged = false, true
		h.Fault = fmt.Sprintf("a head over %d entries was seen before: the run, or the stream, was put back", best.size)
	case seen && verified.Size == best.size && verified.Root != best.root:
		h.Verified, h.Forged = false, true
		h.Fault = "another head over as many entries was seen before: the log has two histories"
	case seen || len(f.best) < 2*f.o.Runs:
		f.best[id] = seenHead{verified.Size, verified.Root}
	}
}

// takeAudit takes the newest message of the log.
func (r *run) takeAudit(x found, head Head) {
	if r.audit != nil && x.m.Sequence <= r.audit.Sequence {
		return
	}
	r.garbled[1] = ""
	if x.err != nil {
		r.garbled[1] = clip(x.err.Error(), mostFault)
		return
	}
	kept := *x.m
	kept.Payload = nil
	r.audit = &kept
	if !kept.Head {
		return // the head of before stands until the next one comes
	}
	r.head = head
}

// view is a Run, at a time by the server's clock.
func (r *run) view(id string, now time.Time, silent time.Duration) Run {
	v := Run{ID: id, Host: r.host, Program: r.program, Schema: r.schema, Head: r.head, Received: r.at, Messages: r.messages.Telemetry}
	if !r.at.IsZero() {
		v.Age = max(0, now.Sub(r.at).Seconds())
	}
	if m := r.newest; m != nil {
		v.Generation, v.Step, v.Stored, v.Lost, v.Sequence = m.Generation, m.Step, m.Records, m.Lost, m.Sequence
		v.Time = time.Unix(0, m.Time).UTC()
		v.Emitted = v.Stored + min(v.Lost, math.MaxUint64-v.Stored)
	}
	if len(r.row) > 0 && len(r.row) == r.words {
		for _, x := range r.figures {
			v.Figures = append(v.Figures, Figure{x.name, x.value(r.row)})
		}
	}
	if r.audit != nil {
		v.Entries = r.audit.Next
	}
	v.Fault = cmp.Or(r.garbled[0], r.garbled[1], r.unread)
	v.State = Recording
	switch {
	case r.garbled[0] != "" || r.garbled[1] != "" || r.newest == nil && r.audit == nil:
		v.State = Unreadable
	case r.audit != nil && ended(r.audit.Status) != "":
		v.State = ended(r.audit.Status)
	case v.Age > silent.Seconds():
		v.State = Silent
	}
	return v
}

// ended is the word with which a run ended; "" for any other text.
func ended(status string) string {
	for _, s := range []digestlog.Status{digestlog.StatusClean, digestlog.StatusCrashed, digestlog.StatusFailed} {
		if status == s.String() {
			return status
		}
	}
	return ""
}

func (x *figure) value(row []uint64) Number {
	switch w := row[x.word]; x.typ {
	case record.Uint64:
		return Number(w)
	case record.Int64:
		return Number(int64(w))
	default:
		return Number(math.Float64frombits(w))
	}
}

// clip shortens what somebody sent, and makes what is no text one.
func clip(s string, most int) string {
	s = strings.Map(func(c rune) rune {
		if !unicode.IsPrint(c) {
			return unicode.ReplacementChar
		}
		return c
	}, s)
	if r := []rune(s); len(r) > most {
		return string(r[:most]) + "…"
	}
	return s
}

// ParseKeys reads verifier keys, of which the same may be there twice; nil if there are none.
func ParseKeys(list []string) (note.Verifiers, error) {
	var keys []note.Verifier
	for i, text := range list {
		v, err := note.NewVerifier(strings.TrimSpace(text))
		if err != nil { // it may be a secret key, so it is not repeated
			return nil, fmt.Errorf("number %d of the keys is no verifier key (NAME+HASH+KEY, \"signer\" in the manifests of runs): %w", i+1, err)
		}
		if !slices.ContainsFunc(keys, func(k note.Verifier) bool { return k.Name() == v.Name() && k.KeyHash() == v.KeyHash() }) {
			keys = append(keys, v)
		}
	}
	if len(keys) == 0 {
		return nil, nil
	}
	return note.VerifierList(keys...), nil
}

// View is all runs at one time.
type View struct {
	Stream string
	Runs   []Run // by state, those that are recorded first, then by their newest message
	Hidden int   // runs that are not kept
	Keys   bool  // there are keys to check heads with

	Looked time.Time // when the last look succeeded; zero: none has
	Took   time.Duration
	Fault  string // why the last look did not
	Last   uint64 // stream sequence of the newest message
}

// Stand is a View without the runs.
func (f *Fleet) Stand() View {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.standing()
}

func (f *Fleet) standing() View {
	return View{Stream: f.o.Stream.Stream, Hidden: f.hidden, Keys: f.keys != nil, Looked: f.looked, Took: f.took, Fault: f.fault, Last: f.stand.Last}
}

// View is how the runs stand.
func (f *Fleet) View() View {
	f.mu.Lock()
	defer f.mu.Unlock()
	v := f.standing()
	now := f.serverNow()
	v.Runs = make([]Run, 0, len(f.runs))
	for id, r := range f.runs {
		v.Runs = append(v.Runs, r.view(id, now, f.o.Silent))
	}
	slices.SortFunc(v.Runs, func(a, b Run) int {
		return cmp.Or(cmp.Compare(order(a.State), order(b.State)), cmp.Compare(b.ID, a.ID))
	})
	return v
}

// order is that of states in a list: what goes on, what may need somebody, what is over.
func order(state string) int {
	return slices.Index([]string{Recording, Silent, Unreadable}, state) & 3 // −1 becomes 3
}

// serverNow is the time by the server's clock, as far as it is known.
func (f *Fleet) serverNow() time.Time {
	if f.stand.At.IsZero() {
		return f.o.Now()
	}
	return f.stand.At.Add(max(0, f.o.Now().Sub(f.looked)))
}

// Find is how one run stands.
func (f *Fleet) Find(id string) (Run, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := f.runs[id]
	if r == nil {
		return Run{}, false
	}
	return r.view(id, f.serverNow(), f.o.Silent), true
}
