package audit

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"math"
	"slices"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/segment"
	"github.com/usp-project/usp/record"
)

// logged is an entry and where it stands in the log.
type logged struct {
	digestlog.Entry
	index uint64
	file  string
	at    int64
}

// ledger is what the digest log says, without its STEP entries. It grows with
// generations, files, snapshots and losses, not with records.
type ledger struct {
	order     []uint32 // generations in the order they were opened
	gens      map[uint32]*account
	seals     map[string]logged // telemetry segments by name
	snapshots map[string]logged
	pruned    map[string]logged
	poisoned  []string // texts of EVENT entries about files given up
	cur       *account // of the last STEP entry, whose generation is curOf
	curOf     uint32
	ended     bool // nothing but removals of snapshots and events follows the last END
}

// account is one generation in the log.
type account struct {
	open   *logged
	end    *logged
	lost   []span
	steps  uint64
	next   uint64 // one past the largest sequence number that an entry vouches for
	vouch  place  // the entry that does
	rewind *logged
}

// place is where an entry stands in the log.
type place struct {
	kind  digestlog.Kind
	index uint64
	file  string
	at    int64
}

func (e *logged) place() place { return place{e.Kind, e.index, e.file, e.at} }

// span is a lost range.
type span struct {
	from, to uint64
	reason   record.LostReason
}

func newLedger() *ledger {
	return &ledger{
		gens: map[uint32]*account{}, seals: map[string]logged{}, snapshots: map[string]logged{}, pruned: map[string]logged{},
	}
}

func (l *ledger) account(generation uint32) *account {
	a := l.gens[generation]
	if a == nil {
		a = new(account)
		l.gens[generation] = a
	}
	return a
}

// last is the newest generation in the log; false if there is none.
func (l *ledger) last() (uint32, bool) {
	if len(l.order) == 0 {
		return 0, false
	}
	return slices.Max(l.order), true
}

// add takes one entry in and reports what cannot be.
func (l *ledger) add(it digestlog.Item, report func(Problem)) {
	e := logged{Entry: it.Entry, index: it.Index, file: it.File, at: it.Offset}
	a := l.gens[e.Generation]
	bad := func(format string, args ...any) {
		g := e.Generation
		report(Problem{Class: Inconsistent, File: logFile(it.File), Offset: it.Offset, Generation: &g,
			Detail: fmt.Sprintf("log entry %d, %v: ", it.Index, e.Kind) + fmt.Sprintf(format, args...)})
	}
	switch e.Kind {
	case digestlog.KindStep, digestlog.KindLost, digestlog.KindSnapshot, digestlog.KindEnd:
		if a == nil || a.open == nil {
			bad("generation %d was never opened", e.Generation)
		} else if a.end != nil && e.Kind != digestlog.KindSnapshot {
			bad("generation %d had ended", e.Generation)
		}
	}
	a = l.account(e.Generation)
	e.Digests, e.Ext = nil, nil
	if e.Kind != digestlog.KindPrune && e.Kind != digestlog.KindEvent {
		l.ended = e.Kind == digestlog.KindEnd
	}
	switch e.Kind {
	case digestlog.KindOpen:
		if a.open != nil && (a.open.Manifest != e.Manifest || a.open.Schema != e.Schema) {
			bad("generation %d is opened twice, with another manifest", e.Generation)
		} else if a.open == nil {
			a.open = &e
			l.order = append(l.order, e.Generation)
		}
	case digestlog.KindStep:
		a.steps++
		a.vouchFor(e.Seq+1, e.place())
	case digestlog.KindLost:
		if n := len(a.lost); n > 0 && e.From < a.lost[n-1].to {
			bad("lost range [%d, %d) goes back before %d", e.From, e.To, a.lost[n-1].to)
		}
		a.lost = appendSpan(a.lost, span{e.From, e.To, e.Reason})
		a.vouchFor(e.To, e.place())
	case digestlog.KindSnapshot:
		l.snapshots[e.Name] = e
		delete(l.pruned, e.Name)
		a.vouchFor(e.Seq, e.place())
	case digestlog.KindRewind:
		a.rewind = &e
		if !cold(&e.Entry) && !l.knows(e.SHA256) {
			bad("no SNAPSHOT entry has the SHA-256 %x", e.SHA256)
		}
	case digestlog.KindSeal:
		if e.Stream == uint8(segment.KindTelemetry) {
			l.seals[e.Name] = e
		}
	case digestlog.KindEnd:
		a.end = &e
	case digestlog.KindPrune:
		l.pruned[e.Name] = e
	case digestlog.KindEvent:
		if e.Code == digestlog.EventPoisoned {
			l.poisoned = append(l.poisoned, e.Text)
		}
	}
}

// addStep is add for a STEP entry that is not decoded.
func (l *ledger) addStep(s *digestlog.StepEntry, report func(Problem)) {
	if l.cur == nil || l.curOf != s.Generation {
		l.cur, l.curOf = l.gens[s.Generation], s.Generation
	}
	a := l.cur
	if a == nil || a.open == nil || a.end != nil {
		e := digestlog.Entry{Kind: digestlog.KindStep, Generation: s.Generation, Step: s.Step, Seq: s.Seq}
		l.add(digestlog.Item{Index: s.Index, Entry: e, File: s.File, Offset: s.Offset}, report)
		return
	}
	l.ended = false
	a.steps++
	a.vouchFor(s.Seq+1, place{digestlog.KindStep, s.Index, s.File, s.Offset})
}

// knows says whether a snapshot with that digest was logged.
func (l *ledger) knows(sum [32]byte) bool {
	for _, e := range l.snapshots {
		if e.SHA256 == sum {
			return true
		}
	}
	return false
}

// cold says whether a REWIND entry is that of a generation that began without a
// snapshot and overrides everything before it.
func cold(e *digestlog.Entry) bool { return e.SHA256 == [32]byte{} }

func (a *account) vouchFor(next uint64, e place) {
	if next > a.next {
		a.next, a.vouch = next, e
	}
}

// appendSpan adds a range, joining it to the one before if that is the same loss.
func appendSpan(spans []span, s span) []span {
	if n := len(spans); n > 0 && spans[n-1].to == s.from && spans[n-1].reason == s.reason {
		spans[n-1].to = s.to
		return spans
	}
	return append(spans, s)
}

// covering is the span that holds seq, or nil. Spans are in order.
func covering(spans []span, seq uint64) *span {
	i, found := slices.BinarySearchFunc(spans, seq, func(s span, seq uint64) int { return cmp.Compare(s.from, seq) })
	if found {
		return &spans[i]
	}
	if i > 0 && seq < spans[i-1].to {
		return &spans[i-1]
	}
	return nil
}

func total(spans []span) (n uint64) {
	for _, s := range spans {
		n += s.to - s.from
	}
	return n
}

func (s span) String() string {
	if s.to == math.MaxUint64 {
		return fmt.Sprintf("[%d, …)", s.from)
	}
	return fmt.Sprintf("[%d, %d) %v", s.from, s.to, s.reason)
}

func logFile(name string) string { return inDir("digests", name) }

func inDir(dir, name string) string {
	if name == "" {
		return ""
	}
	return dir + "/" + name
}

func hexa(b [32]byte) string { return hex.EncodeToString(b[:]) }
