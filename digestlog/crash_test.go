package digestlog

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"

	"golang.org/x/mod/sumdb/note"

	"github.com/usp-project/usp/internal/segment"
	"github.com/usp-project/usp/internal/vfs"
)

// A session drives a log through appends, rolls, heads, closings and reopenings, and keeps what it was promised.
type session struct {
	opt   Options
	raw   map[uint64][]byte // entries by index, as last appended
	acked uint64            // entries that a Sync has acknowledged
	head  uint64            // size of the last head that SignHead has returned
	tries int               // how often a step that failed is tried again
	keys  note.Verifiers
}

func newSession(fsys vfs.FS, base Options, tries int) *session {
	o := base
	o.FS = fsys
	o.SegmentSize = 5 << 10 // a file holds a dozen entries
	return &session{opt: o, raw: map[uint64][]byte{}, tries: tries, keys: o.Verifiers}
}

// try repeats a step until it succeeds or the tries are used up.
func (s *session) try(f func() error) (err error) {
	for range s.tries {
		if err = f(); err == nil {
			return nil
		}
	}
	return err
}

func (s *session) run() error {
	step := 0
	for round := range 3 {
		var l *Log
		err := s.try(func() (err error) { l, err = Open(testDir, s.opt); return err })
		if err != nil {
			return err
		}
		s.acked = max(s.acked, l.Size())
		for group := range 6 {
			for range 1 + (group*5+round)%7 {
				e := &Entry{Kind: KindStep, Generation: uint32(round), Step: uint64(step), Digests: [][32]byte{sum(byte(step)), sum(7)}}
				if err := s.append(l, e); err != nil {
					return errors.Join(err, l.Abort())
				}
				step++
			}
			if err := s.sync(l); err != nil {
				return errors.Join(err, l.Abort())
			}
			if group%2 == 0 {
				if err := s.sign(l); err != nil {
					return errors.Join(err, l.Abort())
				}
			}
		}
		if err := s.append(l, &Entry{Kind: KindEnd, Generation: uint32(round), Status: StatusClean}); err != nil {
			return errors.Join(err, l.Abort())
		}
		if round == 1 { // this recorder dies
			err := s.sync(l)
			_ = l.Abort() // nobody is left to hear of it
			if err != nil {
				return err
			}
			continue
		}
		if err := s.try(l.Close); err != nil {
			return errors.Join(err, l.Abort())
		}
		s.acked, s.head = l.Size(), l.Size()
	}
	return nil
}

func (s *session) append(l *Log, e *Entry) error {
	i, err := l.Append(e)
	if err == nil {
		s.raw[i] = e.Append(nil)
	}
	return err
}

func (s *session) sync(l *Log) error {
	err := s.try(l.Sync)
	s.acked = max(s.acked, l.Size())
	return err
}

func (s *session) sign(l *Log) error {
	return s.try(func() error {
		h, err := l.SignHead()
		if err == nil {
			s.head = max(s.head, h.Size)
		}
		return err
	})
}

// check is the judge: nothing acknowledged is missing or changed, no head covers more than there is, and the log can be continued.
func (s *session) check(t *testing.T, m *vfs.Mem) error {
	if _, err := m.Stat(testDir); err != nil {
		if s.acked > 0 {
			return err
		}
		return nil
	}
	verify := func() (Report, error) {
		r, err := VerifyWith(VerifyOptions{FS: m, Dir: testDir, HeadPath: testHead, Verifiers: s.keys, Each: func(it Item) error {
			if it.Index < s.acked && it.Entry.Kind != KindEvent && !bytes.Equal(it.Raw, s.raw[it.Index]) {
				return fmt.Errorf("entry %d is %x, acknowledged was %x", it.Index, it.Raw, s.raw[it.Index])
			}
			return nil
		}})
		if err == nil {
			err = r.Err()
		}
		if err == nil && (r.Size < s.acked || r.Size != r.Entries) {
			err = fmt.Errorf("%d entries, %d without a hole, %d were acknowledged", r.Entries, r.Size, s.acked)
		}
		if err == nil && (r.Head == nil && s.head > 0 || r.Head != nil && r.Head.Size < s.head) {
			err = fmt.Errorf("head %+v, one of size %d was returned", r.Head, s.head)
		}
		if err == nil {
			err = s.checkIndex(t, m, &r)
		}
		return r, err
	}
	if _, err := verify(); err != nil {
		return fmt.Errorf("after the crash: %w", err)
	}
	o := s.opt
	o.FS = m
	l, err := Open(testDir, o)
	if err != nil {
		return fmt.Errorf("open after the crash: %w", err)
	}
	size := l.Size()
	mustAppend(t, l, step(0), &Entry{Kind: KindEnd, Status: StatusCrashed})
	if err := l.Close(); err != nil {
		return fmt.Errorf("close after the crash: %w", err)
	}
	r, err := verify()
	if err == nil && (!r.Closed() || r.Size != size+2) {
		err = fmt.Errorf("size %d, want %d: %+v", r.Size, size+2, r)
	}
	if err != nil {
		return fmt.Errorf("continued after the crash: %w", err)
	}
	list, err := m.ReadDir(testDir)
	if err != nil {
		return err
	}
	for _, d := range list {
		if vfs.IsTemp(d.Name()) {
			return fmt.Errorf("%s was left behind", d.Name())
		}
	}
	return nil
}

// checkIndex wants outline and index to say what the entries say.
func (s *session) checkIndex(t *testing.T, m *vfs.Mem, want *Report) error {
	if n := accounts(t, m); n != want.Size {
		return fmt.Errorf("the outline has %d entries, the log %d", n, want.Size)
	}
	r, err := VerifyIndex(IndexOptions{FS: m, Dir: testDir, HeadPath: testHead, Verifiers: s.keys})
	if err = errors.Join(err, r.Err()); err == nil && (r.Size != want.Size || r.Closed() != want.Closed() || fmt.Sprint(r.Kinds) != fmt.Sprint(want.Kinds)) {
		err = fmt.Errorf("the index says %+v, want %+v", r, want)
	}
	return err
}

// TestCrashAtEveryOperation loses power before each operation that changes anything, in every way the memory file system knows.
func TestCrashAtEveryOperation(t *testing.T) {
	m := vfs.NewMem()
	s := newSession(m, quickOptions(t), 1)
	crashes := 0
	m.SetHook(func(op vfs.Op) {
		if op.Kind&vfs.OpMutates == 0 || t.Failed() {
			return
		}
		for policy := vfs.DropAll; policy <= vfs.Garbage; policy++ {
			if crashes++; !sample(int64(crashes)) {
				continue
			}
			rng := rand.New(rand.NewPCG(uint64(op.N), uint64(policy)))
			if err := s.check(t, m.Crash(rng, policy)); err != nil {
				t.Errorf("crash before %v, policy %d: %v", op, policy, err)
			}
		}
	})
	must(t, s.run())
	m.SetHook(nil)
	must(t, s.check(t, m))
	infos, err := segment.List(m, testDir)
	must(t, err)
	if crashes < 300 || len(infos) < 6 {
		t.Errorf("%d crashes over %d files tell too little", crashes, len(infos))
	}
}

// TestErrorAtEveryOperation makes each operation fail, once or from then on, and then loses power: what was acknowledged is there.
func TestErrorAtEveryOperation(t *testing.T) {
	o := quickOptions(t)
	clean := vfs.Inject(vfs.NewMem())
	must(t, newSession(clean, o, 1).run())
	total, writes := clean.Calls(vfs.OpAny), clean.Calls(vfs.OpWrite)
	if total < 200 {
		t.Fatalf("a run makes %d calls, too few to tell anything", total)
	}
	var rules []vfs.Rule
	for n := 1; n <= total; n++ {
		rules = append(rules, vfs.Rule{Nth: n}, vfs.Rule{Nth: n, Sticky: true})
	}
	for n := 1; n <= writes; n++ {
		rules = append(rules, vfs.Rule{Op: vfs.OpWrite, Nth: n, Short: true, Err: syscall.ENOSPC})
	}
	poisoned := 0
	for n, rule := range rules {
		if !sample(int64(n)) {
			continue
		}
		m := vfs.NewMem()
		in := vfs.Inject(m, rule)
		s := newSession(in, o, 3)
		if err := s.run(); err != nil && !rule.Sticky {
			t.Errorf("%+v (%v): not overcome by trying again: %v", rule, in.Fired(), err)
		}
		if len(in.Fired()) == 0 {
			t.Fatalf("%+v made nothing fail", rule)
		}
		for _, policy := range []vfs.Policy{vfs.DropAll, vfs.Mixed} {
			dead := m.Crash(rand.New(rand.NewPCG(uint64(n), uint64(policy))), policy)
			if hasPoisoned(dead) {
				poisoned++
			}
			if err := s.check(t, dead); err != nil {
				t.Fatalf("%+v (%v), policy %d: %v", rule, in.Fired()[0], policy, err)
			}
		}
		// Only the process dies: the next one finds a cache that may show what the disk does not have.
		if err := s.check(t, m); err != nil {
			t.Fatalf("%+v (%v), another process: %v", rule, in.Fired()[0], err)
		}
	}
	if poisoned == 0 {
		t.Error("no file was ever given up")
	}
}

// A hashKey signs and verifies with a hash: a signature like any other to the log, without the arithmetic.
type hashKey struct{}

func (hashKey) Name() string    { return "quick" }
func (hashKey) KeyHash() uint32 { return 0x01020304 }

func (hashKey) Sign(msg []byte) ([]byte, error) {
	sig := sha256.Sum256(append([]byte("quick"), msg...))
	return sig[:], nil
}

func (k hashKey) Verify(msg, sig []byte) bool {
	want, _ := k.Sign(msg)
	return bytes.Equal(sig, want)
}

// quickOptions are testOptions for many heads.
func quickOptions(t *testing.T) Options {
	o := testOptions(t, nil)
	o.Signer, o.Verifiers = hashKey{}, note.VerifierList(hashKey{})
	return o
}

func hasPoisoned(m *vfs.Mem) bool {
	chain, err := openChain(m, testDir)
	if err != nil {
		return false
	}
	for _, k := range chain {
		if k.cause == causePoisoned {
			return true
		}
	}
	return false
}

// TestPoisonedFileIsLeft: a failed fsync ends the use of the file; the entries are in the next, and an EVENT says why.
func TestPoisonedFileIsLeft(t *testing.T) {
	m := vfs.NewMem()
	in := vfs.Inject(m)
	o := testOptions(t, in)
	l := mustOpen(t, o)
	mustAppend(t, l, step(0), step(1))
	must(t, l.Sync())
	in.Add(vfs.Rule{Op: vfs.OpDatasync, Path: "*.seg"})
	mustAppend(t, l, step(2), step(3))
	writes := in.Calls(vfs.OpDatasync)
	must(t, l.Sync())
	if got := in.Calls(vfs.OpDatasync) - writes; got != 2 {
		t.Errorf("%d calls of fsync, want one that failed and one on the next file", got)
	}
	if st := l.Stats(); st.Poisoned != 1 || st.Segments != 2 || st.LastFault == nil || st.Entries != 5 {
		t.Errorf("stats %+v", st)
	}
	if last, _ := l.Last(); last.Kind != KindEvent || last.Code != EventPoisoned || last.Step != 3 {
		t.Errorf("last entry %+v, want an EVENT", last)
	}
	must(t, l.Close())
	r := mustVerify(t, m)
	if r.Err() != nil || r.Size != 5 || r.Files != 2 || r.Kinds[KindEvent] != 1 {
		t.Errorf("%v, %+v", r.Err(), r)
	}
	infos, err := segment.List(m, testDir)
	must(t, err)
	if len(infos) != 2 || infos[1].Base != 2 {
		t.Fatalf("files %+v, want the second at entry 2", infos)
	}
	// What was in the given-up file behind entry 1 does not count, whatever it is.
	edit(t, m, infos[0].Path, func(f vfs.File) error { _, err := f.WriteAt(bytes.Repeat([]byte{0xaa}, 300), 4096+400); return err })
	if r := mustVerify(t, m); r.Err() != nil || !r.Has(ClassVoid) {
		t.Errorf("void bytes: %v, %v", r.Err(), r.Faults)
	}
	if l := mustOpen(t, testOptions(t, m)); l.Size() != 5 {
		t.Errorf("reopened with %d entries, want 5", l.Size())
	}
	// What was promised in it does.
	edit(t, m, infos[0].Path, func(f vfs.File) error { _, err := f.WriteAt([]byte{0xaa}, 4096+100); return err })
	if r := mustVerify(t, m); !r.Has(ClassMissing) {
		t.Errorf("promised bytes of a given-up file: %v", r.Faults)
	}
}

// TestStorageGone: while nothing becomes durable entries wait in memory, and go to storage when it is back.
func TestStorageGone(t *testing.T) {
	for _, fault := range []vfs.OpKind{vfs.OpMutates, vfs.OpDatasync, vfs.OpCreate | vfs.OpDatasync} {
		m := vfs.NewMem()
		in := vfs.Inject(m)
		l := mustOpen(t, testOptions(t, in))
		mustAppend(t, l, step(0))
		must(t, l.Sync())
		in.Add(vfs.Rule{Op: fault, Sticky: true})
		for i := range 10 {
			mustAppend(t, l, step(i+1))
			if err := l.Sync(); err == nil {
				t.Fatal("Sync succeeded on storage that takes nothing")
			}
			if l.Size() != 1 {
				t.Fatalf("size %d, want 1", l.Size())
			}
			if h, err := l.SignHead(); err == nil && h.Size > 1 {
				t.Fatalf("a head of size %d was signed", h.Size)
			}
		}
		in.Clear()
		must(t, l.Sync())
		if l.Size() != 12 { // and one EVENT, however often it failed
			t.Errorf("%v: size %d, want 12", fault, l.Size())
		}
		must(t, l.Close())
		if r := mustVerify(t, m); r.Err() != nil || r.Size != 12 || r.Kinds[KindEvent] != 1 || r.Files != 2 {
			t.Errorf("%v: %v, %+v", fault, r.Err(), r)
		}
	}
}

// TestEndIsSignedSealed: a head over an END is proof that the file has its end, even if the recorder dies right behind it.
func TestEndIsSignedSealed(t *testing.T) {
	m := vfs.NewMem()
	l := mustOpen(t, testOptions(t, m))
	mustAppend(t, l, step(0), &Entry{Kind: KindEnd, Status: StatusClean})
	must(t, l.Sync())
	_, err := l.SignHead()
	must(t, err)
	must(t, l.Abort())
	if r := mustVerify(t, m); !r.Closed() {
		t.Errorf("%v, sealed %v", r.Err(), r.Sealed)
	}
}

// TestEmptyFileReplaced: the recorder dies between making a file and writing to it. The next file takes its place, and what its header
// said of the file before still holds: here, that it was given up.
func TestEmptyFileReplaced(t *testing.T) {
	m := vfs.NewMem()
	in := vfs.Inject(m)
	l := mustOpen(t, testOptions(t, in))
	mustAppend(t, l, step(0), step(1))
	must(t, l.Sync())
	in.Add(vfs.Rule{Op: vfs.OpDatasync, Path: "*.seg", Sticky: true})
	mustAppend(t, l, step(2))
	if l.Sync() == nil {
		t.Fatal("Sync succeeded")
	}
	must(t, l.Abort())
	dead := m.Crash(nil, vfs.DropAll)
	infos, err := segment.List(dead, testDir)
	must(t, err)
	if len(infos) != 2 || infos[1].Base != 2 {
		t.Fatalf("files %+v, want a second, empty one at entry 2", infos)
	}
	edit(t, dead, infos[0].Path, func(f vfs.File) error { _, err := f.WriteAt([]byte("void"), 4096+600); return err })
	l = mustOpen(t, testOptions(t, dead))
	if last, ok := l.Last(); !ok || last.Step != 1 || l.Size() != 2 {
		t.Errorf("last entry %+v of %d, want step 1 of 2", last, l.Size())
	}
	mustAppend(t, l, step(7))
	must(t, l.Close())
	if r := mustVerify(t, dead); r.Err() != nil || r.Size != 3 || r.Files != 2 {
		t.Errorf("%v, %+v", r.Err(), r)
	}
}

// TestSealFails: entries in a file whose seal failed are durable, and the END is not signed before a sealed file holds the end.
func TestSealFails(t *testing.T) {
	m := vfs.NewMem()
	in := vfs.Inject(m)
	l := mustOpen(t, testOptions(t, in))
	mustAppend(t, l, step(0), &Entry{Kind: KindEnd, Status: StatusClean})
	must(t, l.Sync())
	in.Add(vfs.Rule{Op: vfs.OpTruncate, Path: "*.seg"})
	must(t, l.Close())
	r := mustVerify(t, m)
	if !r.Closed() || r.Size != 3 || r.Kinds[KindEvent] != 1 || len(in.Fired()) != 1 {
		t.Errorf("%v, %+v", r.Err(), r)
	}
}

// TestReserve: a full disk leaves the log its active file, in which the reserve takes the end of it.
func TestReserve(t *testing.T) {
	m := vfs.NewMem()
	o := testOptions(t, m)
	o.Reserve = 1 << 10
	l := mustOpen(t, o)
	mustAppend(t, l, &Entry{Kind: KindOpen, Manifest: sum(1), Schema: sum(2)})
	must(t, l.Sync())
	m.SetCapacity(1) // full: what is reserved stays
	var err error
	n := 0
	for err == nil {
		mustAppend(t, l, step(n))
		n++
		err = l.Sync()
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("a full disk: %v", err)
	}
	if used := l.w.Size(); used < o.SegmentSize-o.Reserve || used > o.SegmentSize-o.Reserve/2 {
		t.Fatalf("with %d bytes in a file of %d the disk was full; its reserve is %d", used, o.SegmentSize, o.Reserve)
	}
	if err := l.Sync(); !errors.Is(err, syscall.ENOSPC) || l.Size() != uint64(n) {
		t.Fatalf("once more: %v, size %d, want %d and one that waits", err, l.Size(), n)
	}
	mustAppend(t, l, &Entry{Kind: KindEnd, Status: StatusClean, Emitted: uint64(n), Stored: uint64(n), EmittedKnown: true})
	l.UseReserve()
	must(t, l.Sync())
	m.SetCapacity(0)
	must(t, l.Close())
	if r := mustVerify(t, m); r.Err() != nil || r.Size != uint64(n+2) || r.Files != 1 || !r.Sealed {
		t.Fatalf("%v, %+v", r.Err(), r)
	}
}
