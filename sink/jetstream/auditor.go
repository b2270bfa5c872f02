package jetstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"slices"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/sink"
)

// auditor mirrors the digest log of a run, as far as its head is signed.
type auditor struct {
	opts   *Options
	lane   *lane
	log    frames
	buffer [2][]byte
	first  uint64 // index of the first entry in buffer[0]
	seen   stamp  // of the head's file, before it was brought
}

// stamp tells one state of a file from another.
type stamp struct {
	size int64
	at   time.Time
}

func (a *auditor) stamp() stamp {
	info, err := a.opts.FS.Stat(a.opts.Dir.Head())
	if err != nil {
		return stamp{} // nothing is signed yet, or it is just being replaced
	}
	return stamp{info.Size(), info.ModTime()}
}

// trails says whether there is another head than was brought.
func (a *auditor) trails() bool {
	now := a.stamp()
	return now != a.seen && now != stamp{}
}

func newAuditor(o *Options, l *lane) *auditor {
	return &auditor{opts: o, lane: l, log: frames{fsys: o.FS, dir: o.Dir.Digests()}}
}

func (a *auditor) close() { a.log.close() }

// match holds the stream's last message against the log: entries as they are, and of a head the log must contain the tree.
func (a *auditor) match() error {
	l := a.lane
	if l.tail == nil || l.tail.kind != kindHead {
		return l.match(frames{fsys: a.opts.FS, dir: a.opts.Dir.Digests()})
	}
	head, err := readHead(a.opts)
	if err != nil {
		return err
	}
	if head == nil || head.Size < l.tail.next {
		return a.ahead(head)
	}
	keys, err := signers(a.opts)
	if err != nil {
		return err
	}
	earlier, err := digestlog.ParseHead(l.newest, keys)
	if err != nil || earlier.Size != l.tail.next {
		return l.fork()
	}
	proof, err := digestlog.ProveGrowth(a.opts.FS, a.opts.Dir.Digests(), head, earlier.Size)
	if err != nil {
		return fmt.Errorf("does the digest log contain the head that the stream has? %w", err)
	}
	if _, err := proof.Verify(&earlier, keys); err != nil {
		return l.fork()
	}
	return nil
}

// ahead is the error for a stream that has more of the log than was signed here.
func (a *auditor) ahead(head *digestlog.SignedTreeHead) error {
	size := uint64(0)
	if head != nil {
		size = head.Size
	}
	return fmt.Errorf("%w: stream %s has %d entries of %s, and the run directory a signed head over %d", sink.ErrAhead, a.lane.stream, a.lane.has(), a.lane.subject, size)
}

// bring sends the entries up to the signed head, and then the head.
func (a *auditor) bring(ctx context.Context) error {
	a.seen = a.stamp()
	head, err := readHead(a.opts)
	if err != nil || head == nil {
		return err
	}
	l := a.lane
	if l.has() > head.Size {
		return a.ahead(head)
	}
	a.log.seek(l.next)
	for l.next < head.Size {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if err := a.take(ctx); err != nil {
			return err
		}
	}
	if err := a.cut(ctx); err != nil {
		return err
	}
	if err := l.wait(ctx); err != nil {
		return err
	}
	if l.tail == nil || l.tail.kind == kindHead && l.tail.next == head.Size {
		l.acked = l.place()
		return nil
	}
	h := header{kind: kindHead, first: head.Size, next: head.Size, status: a.status(head.Size)}
	if err := l.send(ctx, h, head.Note); err != nil {
		return err
	}
	return l.wait(ctx)
}

// take takes the next entry.
func (a *auditor) take(ctx context.Context) error {
	l := a.lane
	entry, index, err := a.log.read()
	if errors.Is(err, io.EOF) || err == nil && index != l.next {
		return fmt.Errorf("entry %d of the digest log cannot be read; usp verify says more", l.next)
	}
	if err != nil {
		return err
	}
	if len(a.buffer[0]) > 0 && len(a.buffer[0])+4+len(entry) > a.opts.MessageBytes {
		if err := a.cut(ctx); err != nil {
			return err
		}
	}
	if len(a.buffer[0]) == 0 {
		a.first = l.next
	}
	from := len(a.buffer[0])
	a.buffer[0] = appendFrame(a.buffer[0], entry)
	counted := a.buffer[0][from:]
	if l.behind() {
		a.buffer[0] = a.buffer[0][:from]
		err := l.known(counted)
		if l.next%1024 == 0 {
			l.acked = l.place() // a long way is not gone twice
		}
		return err
	}
	l.add(counted)
	return nil
}

func (a *auditor) cut(ctx context.Context) error {
	if len(a.buffer[0]) == 0 {
		return nil
	}
	if err := a.lane.send(ctx, header{kind: kindEntries, first: a.first, next: a.lane.next}, a.buffer[0]); err != nil {
		return err
	}
	a.buffer[0], a.buffer[1] = a.buffer[1][:0], a.buffer[0]
	return nil
}

// status is how the run ended, if its end is all but the last of so many entries; only EVENTs are behind it.
func (a *auditor) status(size uint64) string {
	const most = 8
	log := frames{fsys: a.opts.FS, dir: a.opts.Dir.Digests()}
	defer log.close()
	log.seek(size - min(size, most))
	status := ""
	for log.next < size {
		raw, _, err := log.read()
		if err != nil {
			break
		}
		e, err := digestlog.ParseEntry(raw)
		switch {
		case err != nil || e.Kind != digestlog.KindEnd && e.Kind != digestlog.KindEvent:
			status = ""
		case e.Kind == digestlog.KindEnd:
			status = e.Status.String()
		}
	}
	return status
}

// readHead reads the signed head of the run; nil if nothing was signed yet.
func readHead(o *Options) (*digestlog.SignedTreeHead, error) {
	keys, err := signers(o)
	if err != nil {
		return nil, err
	}
	head, err := digestlog.ReadHead(o.FS, o.Dir.Head(), keys)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return &head, nil
}

// signers are the keys that the manifests of the run name.
func signers(o *Options) (note.Verifiers, error) {
	var keys []note.Verifier
	last, err := rundir.LastGeneration(o.FS, o.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return note.VerifierList(), nil
	}
	if err != nil {
		return nil, err
	}
	for g := range uint64(last) + 1 {
		m, _, err := rundir.ReadManifest(o.FS, o.Dir, uint32(min(g, math.MaxUint32)))
		if err != nil {
			continue // usp verify says more; without its key no head is taken
		}
		v, err := note.NewVerifier(m.Signer)
		if err == nil && !slices.ContainsFunc(keys, func(k note.Verifier) bool { return k.Name() == v.Name() && k.KeyHash() == v.KeyHash() }) {
			keys = append(keys, v) // a list with a key twice, as of a run that was resumed, verifies nothing
		}
	}
	return note.VerifierList(keys...), nil
}
