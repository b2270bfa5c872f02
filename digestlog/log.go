package digestlog

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path/filepath"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/usp-project/usp/internal/fixedsum"
	"github.com/usp-project/usp/internal/segment"
	"github.com/usp-project/usp/internal/vfs"
)

// Errors of the writer.
var (
	// ErrRollback: the log on disk is shorter than its signed head says. Continuing it would sign a second history.
	ErrRollback = errors.New("digestlog: the log is shorter than its signed head: entries were lost or removed; do not continue this run")
	// ErrHeadMismatch: the log on disk has another root at the size of the signed head, or the head is another run's.
	ErrHeadMismatch = errors.New("digestlog: the log does not match its signed head; do not continue this run")
	// ErrBacklog: Options.MaxPending bytes of entries wait for storage that takes nothing.
	ErrBacklog = errors.New("digestlog: too many entries wait to be synced")
	// ErrNoSigner: SignHead of a log that was opened without a key.
	ErrNoSigner = errors.New("digestlog: no key to sign the head with")
	// ErrClosed: the log was closed.
	ErrClosed = errors.New("digestlog: log is closed")
)

// Defaults of Options.
const (
	DefaultSegmentSize = 64 << 20
	DefaultMaxPending  = 16 << 20
	HeadName           = "checkpoint" // the file of the signed head, beside the log's directory
)

const (
	dirMode  = 0o755
	headMode = 0o644
	maxRunID = 32
)

// Options of [Open]. RunID is required; every other field has a working zero value.
type Options struct {
	FS          vfs.FS           // file system; default vfs.OS()
	RunID       string           // 1 to 32 bytes; origin of the signed heads
	Signer      note.Signer      // key of the signed heads; nil: the log can be written but not signed
	Verifiers   note.Verifiers   // keys that may have signed the head that is there; nil: its signature is not checked by Open
	HeadPath    string           // file of the signed head; default: "checkpoint" beside the directory
	Kept        []KeptHead       // heads of this log that were kept in other places; Open holds the log against them as against its own
	SegmentSize int64            // bytes at which a file is sealed and the next begun; default 64 MiB
	MinSegment  int64            // bytes that will do for a file where there is no space for SegmentSize; default SegmentSize
	MaxPending  int              // bytes of entries that may wait for Sync; default 16 MiB
	Reserve     int64            // bytes of each file that only UseReserve opens up; default 0
	AppendOnly  bool             // give files the append-only attribute where that can be done, see vfs.SetAppendOnly
	Now         func() time.Time // clock for file headers only; default time.Now
}

// A KeptHead is a signed head that was kept outside of the run. Whoever puts it into Options has checked its signature.
type KeptHead struct {
	Name string // where it was, for errors
	Head SignedTreeHead
}

func (o Options) withDefaults(dir string) (Options, error) {
	if o.RunID == "" || len(o.RunID) > maxRunID || validateName(o.RunID) != "" {
		return o, fmt.Errorf("digestlog: run id %q: want 1 to %d letters, digits, '.', '-', '_'", o.RunID, maxRunID)
	}
	o.FS = orOS(o.FS)
	if o.HeadPath == "" {
		o.HeadPath = filepath.Join(filepath.Dir(filepath.Clean(dir)), HeadName)
	}
	if o.SegmentSize <= 0 {
		o.SegmentSize = DefaultSegmentSize
	}
	if o.MaxPending <= 0 {
		o.MaxPending = DefaultMaxPending
	}
	o.Reserve = max(0, o.Reserve)
	if o.Now == nil {
		o.Now = time.Now
	}
	return o, nil
}

// A Log is the writing end of a digest log. It is for one goroutine, in the one process that holds the run directory's lock.
type Log struct {
	dir      string
	opt      Options
	recovery Recovery
	stats    Stats

	// What is on stable storage.
	tree   frontier
	signed *SignedTreeHead // the last head written by this Log
	kept   []KeptHead      // what Open holds the log against
	ended  bool            // the durable entries are at an end, see endsLog

	// What waits for Sync: encoded entries back to back in queue, entry i ending at ends[i], its leaf hash in leaves[i].
	queue    []byte
	ends     []int
	leaves   []tlog.Hash
	lastRaw  []byte // the last entry appended or recovered
	nodeSum  *fixedsum.Hasher
	encoder  Encoder // of the entries that Append is given
	one      Encoded
	poisoned bool // an EVENT about a given-up file is in the queue

	// The active file; w is nil between files. It is made by the first Sync that has something to write.
	w         *segment.Writer
	outline   *outliner // of its entries
	memory    []byte    // of the last file's writer, for the next one's
	name      string    // its path
	base      uint64    // its first entry
	cause     cause     // why it, or else the next one, was begun
	unclaimed bool      // there may be a file at base tree.size that holds nothing durable
	closed    bool
	reserve   bool // the reserve may be used
}

// smallSegment is the preallocated size of a file that is begun when space is so short that the reserve is used.
const smallSegment = 64 << 10

// Recovery says what [Open] found.
type Recovery struct {
	Entries uint64          // entries in the log
	Head    *SignedTreeHead // the signed head that was there, or nil
	File    string          // the file that was not sealed and now is, or ""
	Torn    bool            // File ended in bytes that were never acknowledged; they were cut and, unless zero, kept in FILE.torn
	Offset  int64           // where they began
}

// Stats counts what a [Log] has done since it was opened.
type Stats struct {
	Entries   uint64 // made durable
	Segments  uint64 // files begun
	Syncs     uint64 // successful
	Heads     uint64 // signed and written
	Poisoned  uint64 // files given up after a write or fsync error
	Attribute error  // Options.AppendOnly: why the last file does not have the attribute; nil: it has
	LastFault error  // the last of these errors
}

// Append adds e behind the last entry and returns its index in the tree. It works in memory and makes no system call; the entry counts
// only after [Log.Sync]. The Log does not keep e. Errors: [ErrEntry] (e is not valid), [ErrBacklog], [ErrClosed].
func (l *Log) Append(e *Entry) (index uint64, err error) {
	l.one.Reset()
	if err := l.encoder.Append(&l.one, e); err != nil {
		return 0, err
	}
	index = l.Next()
	_, err = l.AppendEncoded(&l.one, 0)
	return index, err
}

// AppendEncoded is Append for entries that were encoded before, from number from on. It returns how many it took: all, or as many as
// there is room for, at least one; with room for none the error is [ErrBacklog].
func (l *Log) AppendEncoded(x *Encoded, from int) (n int, err error) {
	if l.closed {
		return 0, ErrClosed
	}
	start, waiting, base := x.start(from), len(l.queue), len(l.queue)-x.start(from)
	for _, end := range x.ends[from:] {
		if waiting+end-start > l.opt.MaxPending && (waiting > 0 || n > 0) {
			break
		}
		l.ends = append(l.ends, base+end)
		n++
	}
	if n == 0 && from < len(x.ends) {
		return 0, fmt.Errorf("%w: %d entries, %d bytes", ErrBacklog, len(l.ends), waiting)
	}
	l.queue = append(l.queue, x.raw[start:x.start(from+n)]...)
	l.leaves = append(l.leaves, x.leaves[from:from+n]...)
	if n > 0 {
		l.lastRaw = append(l.lastRaw[:0], x.raw[x.start(from+n-1):x.start(from+n)]...)
	}
	return n, nil
}

// hashNode is tlog.NodeHash.
func (l *Log) hashNode(left, right tlog.Hash) tlog.Hash {
	m := l.nodeSum.Message()
	m[0] = nodePrefix
	copy(m[1:], left[:])
	copy(m[1+len(left):], right[:])
	return l.nodeSum.Sum()
}

// What RFC 6962, 2.1, puts before a leaf and before the two hashes of a node.
const (
	leafPrefix = 0
	nodePrefix = 1
)

// Sync puts every appended entry on stable storage and then into the tree. If a write or fsync fails, the file is given up for good and the
// entries are written again to a new one, with an EVENT entry that says so behind them; only if that fails too does Sync return the error.
// The entries then stay in memory and the next Sync tries again in another new file; [Log.Size] says how many are durable.
func (l *Log) Sync() error {
	if l.closed {
		return ErrClosed
	}
	if len(l.ends) == 0 {
		return nil
	}
	err := l.write()
	if err != nil && l.w == nil && l.poisoned {
		err = l.write()
	}
	if err != nil {
		return fmt.Errorf("digestlog: sync: %w", err)
	}
	l.stats.Syncs++
	return nil
}

// UseReserve opens up what Options.Reserve keeps free in the active file, for the last entries of a log whose disk takes no more:
// from now on no file is full, and one that must be begun after an error asks for little space.
func (l *Log) UseReserve() { l.reserve = true }

// limit is the size at which the active file is full.
func (l *Log) limit() int64 {
	if l.reserve {
		return math.MaxInt64
	}
	room := l.w.Room()
	return room - min(l.opt.Reserve, room/4)
}

// write moves the queue to stable storage, beginning and sealing files as needed.
func (l *Log) write() error {
	for len(l.ends) > 0 {
		if l.w == nil || l.w.Size() >= l.limit() {
			if err := l.begin(); err != nil {
				return err
			}
		}
		n, err := l.feed()
		if err == nil {
			err = l.w.Sync()
		}
		if err != nil {
			l.giveUp(err)
			return err
		}
		l.integrate(n)
	}
	return nil
}

// begin makes the next file, whose header holds the tree as it is. The active file is sealed only when the next one has its space, so
// that a disk that is full does not leave the log without a file: its reserve still takes the end of the log.
func (l *Log) begin() error {
	c, size := l.cause, l.opt.SegmentSize
	if l.w != nil {
		c = causeRoll
	}
	if l.reserve {
		size = min(size, smallSegment)
	}
	outline := new(outliner)
	next, err := segment.Prepare(l.dir, l.tree.size, segment.Options{
		FS: l.opt.FS, Kind: segment.KindDigests, RunID: l.opt.RunID, Meta: appendMeta(nil, c, &l.tree), Size: size,
		MinSize: l.opt.MinSegment, Now: l.opt.Now, Index: outline, NoSum: true, // the tree is the sum
	})
	if err != nil {
		l.stats.LastFault = err
		return err
	}
	if err := l.place(next); err != nil {
		l.stats.LastFault = err
		_ = next.Discard() // best effort: it is a temporary file
		return err
	}
	l.outline = outline
	return nil
}

// place puts the next file behind the active one.
func (l *Log) place(next *segment.Draft) error {
	if l.w != nil {
		if err := l.seal(); err != nil {
			return err
		}
	}
	path := filepath.Join(l.dir, segment.FileName(l.tree.size))
	if l.unclaimed {
		l.setAppendOnly(path, false)
		// A file at this base holds no entry that was ever acknowledged: the tree ends where it begins.
		if err := l.opt.FS.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	l.unclaimed = true // if it fails half-way
	next.Reuse(l.memory)
	w, err := next.Place()
	l.memory = nil
	if err != nil {
		return err
	}
	l.unclaimed = false
	l.w, l.name, l.base = w, path, l.tree.size
	l.stats.Segments++
	l.setAppendOnly(path, l.opt.AppendOnly)
	return nil
}

// feed hands queued entries to the file until it is full.
func (l *Log) feed() (n int, err error) {
	start, room := 0, l.limit()-l.w.Size()
	for n < len(l.ends) {
		l.outline.expect(&l.leaves[n])
		if err := l.w.Append(l.queue[start:l.ends[n]]); err != nil {
			return n, err
		}
		start = l.ends[n]
		n++
		if int64(start)+int64(n)*frameOverhead >= room {
			break
		}
	}
	return n, nil
}

// frameOverhead is what a frame costs in a file beside its bytes: its length word.
const frameOverhead = 4

// integrate takes the first n entries of the queue, which are durable now, into the tree.
func (l *Log) integrate(n int) {
	if n == 0 {
		return
	}
	if l.nodeSum == nil {
		l.nodeSum = fixedsum.New(1 + 2*len(l.leaves[0]))
	}
	for i := range l.leaves[:n] {
		l.tree.join(l.leaves[i], l.hashNode)
	}
	used := 0
	for _, end := range l.ends[:n] {
		l.ended = endsLog(Kind(l.queue[used+1]), l.ended)
		used = end
	}
	l.queue = append(l.queue[:0], l.queue[used:]...)
	l.leaves = append(l.leaves[:0], l.leaves[n:]...)
	l.ends = append(l.ends[:0], l.ends[n:]...)
	for i := range l.ends {
		l.ends[i] -= used
	}
	if len(l.ends) == 0 {
		l.poisoned = false
	}
	l.stats.Entries += uint64(n)
}

// endsLog reports whether a log is at its end behind an entry of kind k: an END may be followed by an EVENT about storing it, and by the
// PRUNE entries of snapshots removed later.
func endsLog(k Kind, before bool) bool {
	return k == KindEnd || before && (k == KindEvent || k == KindPrune)
}

// seal ends the active file. If that fails, the entries in it are durable all the same, and the next file says that this one has no end.
func (l *Log) seal() error {
	if l.opt.AppendOnly {
		l.setAppendOnly(l.name, false) // its end is cut to size, and its mode changes
	}
	s, err := l.w.Seal()
	if err != nil {
		l.giveUp(err)
		return err
	}
	if l.opt.AppendOnly && s.Count > 0 {
		l.setAppendOnly(l.name, true)
	}
	l.memory = l.w.Memory()
	l.w, l.cause = nil, causeRoll
	return nil
}

// setAppendOnly sets or takes away a file's attribute. That it cannot be set changes nothing but the statistics; that it cannot be taken away is
// found by whatever needs that.
func (l *Log) setAppendOnly(path string, on bool) {
	err := vfs.SetAppendOnly(l.opt.FS, path, on)
	if on {
		l.stats.Attribute = err
	}
}

// giveUp never touches the active file again after the error err: a second fsync may succeed without having written anything.
func (l *Log) giveUp(err error) {
	l.stats.Poisoned++
	l.stats.LastFault = err
	_ = l.w.Abort() // the file is lost to us whatever closing it says
	l.w = nil
	if l.tree.size == l.base {
		l.unclaimed = true // nothing durable in it: its successor takes its place, and its cause
	} else {
		l.cause = causePoisoned
	}
	if l.poisoned {
		return
	}
	last, _ := l.Last()
	event := Entry{
		Kind: KindEvent, Generation: last.Generation, Step: last.Step, Seq: last.Seq, Code: EventPoisoned,
		Text: CleanText(fmt.Sprintf("%s given up at entry %d", filepath.Base(l.name), l.tree.size)),
	}
	_, appendErr := l.Append(&event)
	l.poisoned = appendErr == nil // with a full queue the event is dropped; the new file's header still tells of it
}

// SignHead signs the tree, which holds durable entries only, and replaces the head file durably. If the tree has not grown since the
// last call it returns that head again. A head that covers a closing END entry is signed only after its file was sealed, so that
// such a head with an unsealed file proves that something was cut off.
func (l *Log) SignHead() (SignedTreeHead, error) {
	if l.closed {
		return SignedTreeHead{}, ErrClosed
	}
	if l.opt.Signer == nil {
		return SignedTreeHead{}, ErrNoSigner
	}
	if l.ended && l.w != nil {
		if err := l.seal(); err != nil {
			return SignedTreeHead{}, fmt.Errorf("digestlog: seal before the last head: %w", err)
		}
	}
	if l.signed != nil && l.signed.Size == l.tree.size {
		return *l.signed, nil
	}
	h, err := signHead(l.opt.Signer, l.opt.RunID, l.tree.size, l.tree.root())
	if err != nil {
		return SignedTreeHead{}, err
	}
	if err := vfs.Replace(l.opt.FS, l.opt.HeadPath, h.Note, headMode); err != nil {
		return SignedTreeHead{}, fmt.Errorf("digestlog: write head of size %d: %w", h.Size, err)
	}
	l.signed = &h
	l.stats.Heads++
	return h, nil
}

// Size returns the number of entries in the tree: those that are durable.
func (l *Log) Size() uint64 { return l.tree.size }

// Next returns the index that the next entry gets: Size and what waits for [Log.Sync].
func (l *Log) Next() uint64 { return l.tree.size + uint64(len(l.ends)) }

// Root returns the root of the tree of the first [Log.Size] entries.
func (l *Log) Root() [32]byte { return l.tree.root() }

// Last returns the last entry, durable or not; false if the log is empty. Of an entry that a newer version wrote it returns the common
// header at most.
func (l *Log) Last() (Entry, bool) {
	if len(l.lastRaw) == 0 {
		return Entry{}, false
	}
	e, _ := ParseEntry(l.lastRaw) // it was valid when it was appended; a newer one was accepted by Open
	return e, true
}

// Recovery returns what Open found.
func (l *Log) Recovery() Recovery { return l.recovery }

// Stats returns the counters.
func (l *Log) Stats() Stats { return l.stats }

// Close syncs, seals the active file, and then signs the head, if there is a key and anything to sign. After an error the log is still open:
// Close may be tried again, or [Log.Abort] gives up. Closing a closed log does nothing.
func (l *Log) Close() error {
	if l.closed {
		return nil
	}
	if err := l.syncAndSeal(); err != nil {
		return err
	}
	if l.opt.Signer != nil && l.tree.size > 0 {
		if _, err := l.SignHead(); err != nil {
			return err
		}
	}
	l.closed = true
	return nil
}

// syncAndSeal tries a second time: if the seal fails, the EVENT about it goes to a new file, which must be sealed instead.
func (l *Log) syncAndSeal() (err error) {
	for range 2 {
		if err = l.Sync(); err != nil || l.w == nil {
			return err
		}
		if err = l.seal(); err == nil {
			return nil
		}
	}
	return fmt.Errorf("digestlog: seal: %w", err)
}

// Abort closes the log as it is, without syncing, sealing or signing: for a caller that must stop at once. What was synced stays.
func (l *Log) Abort() error {
	l.closed = true
	if l.w == nil {
		return nil
	}
	w := l.w
	l.w = nil
	return w.Abort()
}
