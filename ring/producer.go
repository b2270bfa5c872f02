//go:build unix

package ring

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Defaults of [Config].
const (
	DefaultSlots        = 1 << 14
	DefaultStagingAreas = 2
)

// Config says what ring to create.
type Config struct {
	Path       string // of the ring file; its directory must exist (see [PrepareDir])
	RunID      string // run the records belong to, at most MaxRunID bytes
	Generation uint32 // restart within the run
	Schema     []byte // text that describes a record, at most MaxSchema bytes
	Meta       []byte // anything about the producer, JSON by convention, at most MaxMeta bytes
	PayloadLen int    // bytes of each record, a multiple of 8
	Slots      int    // records the ring holds, a power of two; 0 means DefaultSlots

	StagingAreas    int   // 0 means DefaultStagingAreas if there is a capacity
	StagingCapacity int64 // bytes of each staging area; 0 means no staging
	StagingCRC      bool  // put a CRC over each staged content: one more pass over it in Stage

	Now func() time.Time // nil means time.Now
}

// Producer is the writing end of a ring. Emit, Stage, Beat, Finish and Close are
// for one goroutine at a time. Consumer, Header and Path may be called from any
// goroutine until Close; Position and Drops only from that of Emit.
//
// A producer is not protected against another process of the same user that
// truncates its files: there is no way to write to a missing page but to fault.
type Producer struct {
	// What Emit uses comes first, on as few cache lines as it fits.
	slots    unsafe.Pointer
	words    int // of a payload; -1 once closed
	mask     uint64
	slotSize uint64
	next     uint64
	position unsafe.Pointer
	length   uint64 // of a payload in bytes, as it goes into each slot
	keys     []uint64
	crc      *slotCRC

	ring   mapping
	header Header
	fd     int
	areas  []producerArea
	ticket uint64 // of the next staging request
	crcs   bool
	beats  uint64
	drops  uint64
}

// Create makes a ring and its staging areas and locks them for the life of the
// producer. All memory is reserved and touched here: a file system that is too
// small fails here, with ENOSPC, and not in Emit.
//
// The name appears only when the ring is complete. If there is a file of that
// name already, whoever made it, Create fails with [ErrExist].
func Create(cfg Config) (*Producer, error) {
	now := cfg.Now
	if now == nil {
		now = time.Now
	}
	return createRing(cfg, now(), os.Getpid(), bootID())
}

func createRing(cfg Config, start time.Time, pid int, boot [16]byte) (*Producer, error) {
	if err := checkHost(); err != nil {
		return nil, err
	}
	h := Header{
		RunID: cfg.RunID, Generation: cfg.Generation,
		Schema: cfg.Schema, SchemaSum: sha256.Sum256(cfg.Schema), Meta: cfg.Meta,
		PayloadLen: cfg.PayloadLen, Slots: cfg.Slots, SlotSize: slotSizeFor(cfg.PayloadLen),
		StagingAreas: cfg.StagingAreas, StagingCapacity: cfg.StagingCapacity,
		BootID: boot, PID: pid, Start: start,
	}
	if h.Slots == 0 {
		h.Slots = DefaultSlots
	}
	if h.StagingAreas == 0 && h.StagingCapacity != 0 {
		h.StagingAreas = DefaultStagingAreas
	}
	if err := h.check(); err != nil {
		return nil, fmt.Errorf("ring: create %s: %w", cfg.Path, err)
	}
	if _, err := os.Lstat(cfg.Path); err == nil {
		return nil, existsError(cfg.Path)
	}
	p := &Producer{header: h, fd: -1, crcs: cfg.StagingCRC}
	if err := p.build(cfg.Path); err != nil {
		return nil, errors.Join(err, p.release())
	}
	return p, nil
}

// build makes the files; on an error, release gives up what they hold.
func (p *Producer) build(path string) (err error) {
	var files []*newFile // the ring, then its staging areas
	defer func() {
		if err != nil {
			for _, f := range files {
				f.drop()
			}
		}
	}()
	h := &p.header
	f, err := create(path, h.fileSize())
	if err != nil {
		return err
	}
	p.fd, files = f.fd, append(files, f)
	if p.ring, err = mapFile(f.fd, path, h.fileSize()); err != nil {
		return err
	}
	p.ring.touch()
	p.attach()
	for i := range h.StagingAreas {
		a, file, err := createArea(path, h, i)
		if err != nil {
			return err
		}
		p.areas, files = append(p.areas, a), append(files, file)
	}
	// The ring's name first: it decides who owns the path. A consumer that comes
	// between finds the staging areas a moment later.
	if err := f.link(); err != nil {
		if errors.Is(err, unix.EEXIST) {
			return existsError(path)
		}
		return fmt.Errorf("ring: %s: link: %w", path, err)
	}
	for _, file := range files[1:] {
		if err := linkArea(file); err != nil {
			return err
		}
	}
	return nil
}

// attach writes the header and sets up what Emit needs.
func (p *Producer) attach() {
	h := &p.header
	copy(p.ring.b, h.encode())
	store(p.ring.at(offState), uint64(StateOpen))
	p.slots = p.ring.at(h.headerLen())
	p.position = p.ring.at(offPosition)
	p.words = h.Words()
	p.mask = uint64(h.Slots - 1)
	p.slotSize = uint64(h.SlotSize)
	p.length = uint64(h.PayloadLen)
	p.keys = fusedKeys(p.words)
	p.crc = newSlotCRC(h.PayloadLen)
}

// existsError says whose the file in the way is.
func existsError(path string) error {
	c, err := Open(path)
	if err != nil {
		return fmt.Errorf("ring: create %s: %w: the file there is not a usable ring (%v): choose another name", path, ErrExist, err)
	}
	defer c.Close()
	if alive, err := c.ProducerAlive(); err == nil && !alive {
		return fmt.Errorf("ring: create %s: %w: left by a producer that is gone (run %s, generation %d): drain it with a recorder, or remove it",
			path, ErrExist, c.header.RunID, c.header.Generation)
	}
	return fmt.Errorf("ring: create %s: %w: a live producer has it (run %s, generation %d, pid %d)",
		path, ErrExist, c.header.RunID, c.header.Generation, c.header.PID)
}

// Emit publishes one record and returns its sequence number. The payload must
// have exactly PayloadLen/8 words: another length is a mistake in the program
// and panics, as does a closed producer.
//
// Emit is wait-free: no system call, no lock, no allocation, nothing read that
// another process writes.
func (p *Producer) Emit(payload []uint64) (seq uint64) {
	if len(payload) != p.words {
		p.refuse(len(payload))
	}
	n := p.next
	p.emit(n, payload)
	p.next = n + 1
	return n
}

// refuse is out of line so that Emit stays small.
func (p *Producer) refuse(words int) {
	if p.words < 0 {
		panic("ring: Emit on a producer that is finished or closed")
	}
	panic(fmt.Sprintf("ring: Emit of %d words, the ring's records have %d", words, p.words))
}

// Position returns the number of records emitted, which is the sequence number of the next one.
func (p *Producer) Position() uint64 { return p.next }

// Header returns what the ring was made with.
func (p *Producer) Header() Header { return p.header }

// Path returns the name of the ring file.
func (p *Producer) Path() string { return p.ring.path }

// Beat shows a consumer that the producer, though it emits nothing, is not
// stuck. Calling it is optional.
func (p *Producer) Beat() {
	if p.words < 0 {
		return
	}
	p.beats++
	store(p.ring.at(offHeartbeat), p.beats)
}

// Took counts a duration of handing over a record, for whoever looks at the run. Calling it is optional, and a part of
// the records is enough: two looks at the clock take longer than Emit itself.
func (p *Producer) Took(d time.Duration) {
	if p.words < 0 {
		return
	}
	at := p.ring.at(offDurations + 8*int64(durationIndex(d)))
	store(at, load(at)+1)
	sum := p.ring.at(offSum)
	store(sum, load(sum)+uint64(max(d, 0)))
	if longest := p.ring.at(offLongest); d > 0 && uint64(d) > load(longest) {
		store(longest, uint64(d))
	}
}

// Drops returns the staging requests dropped because no area was free or the content too large.
func (p *Producer) Drops() uint64 { return p.drops }

// Consumer returns what the consumer last said about itself, for display. It is
// the zero state after Close.
func (p *Producer) Consumer() ConsumerState {
	if p.ring.b == nil {
		return ConsumerState{}
	}
	return readConsumer(&p.ring)
}

func readConsumer(m *mapping) ConsumerState {
	word := func(off int64) uint64 { return load(m.at(offConsumer + off)) }
	return ConsumerState{
		Phase: ConsumerPhase(word(consumerPhase)), Position: word(consumerPosition), Stored: word(consumerStored),
		Lost: word(consumerLost), Synced: word(consumerSynced), Snapshots: word(consumerSnapshots), PID: int(word(consumerPID)),
		LostStorage: word(consumerStorage), Fault: syscall.Errno(word(consumerFault)), Held: word(consumerHeld), Unsaved: word(consumerUnsaved),
	}
}

// Finish says in the ring that the producer ended, cleanly or not, and gives up
// its lock, so that the consumer can drain the rest and remove the files. What
// the consumer says about that can be read with Consumer until Close. A second
// Finish returns [ErrClosed].
func (p *Producer) Finish(clean bool) error {
	if p.words < 0 {
		return fmt.Errorf("ring: %s: finish: %w", p.ring.path, ErrClosed)
	}
	state := StateClosed
	if !clean {
		state = StateFailed
	}
	err := p.ring.guarded(func() { store(p.ring.at(offState), uint64(state)) })
	p.words = -1
	p.slots, p.position = nil, nil
	return errors.Join(err, p.unlock())
}

// Close is Finish, if that was not called before, and unmaps the ring. The files
// stay for the consumer, which removes them. A second Close returns [ErrClosed].
func (p *Producer) Close(clean bool) error {
	if p.ring.b == nil {
		return fmt.Errorf("ring: %s: close: %w", p.ring.path, ErrClosed)
	}
	var err error
	if p.words >= 0 {
		err = p.Finish(clean)
	}
	return errors.Join(err, p.release())
}

// release unmaps and unlocks everything the producer holds.
func (p *Producer) release() error {
	p.words = -1
	p.slots, p.position = nil, nil
	return errors.Join(p.ring.unmap(), p.unlock())
}

// unlock gives up the staging areas and the lock on the ring. Closing the
// descriptor would not do: a mapping keeps the open file, and its lock, alive.
func (p *Producer) unlock() error {
	var err error
	for i := range p.areas {
		err = errors.Join(err, p.areas[i].close())
	}
	p.areas = nil
	if p.fd >= 0 {
		err = errors.Join(err, flock(p.fd, unix.LOCK_UN), unix.Close(p.fd))
		p.fd = -1
	}
	return err
}

// splitPath returns the directory and the name of a file, neither of them empty.
func splitPath(path string) (dir, base string) {
	return filepath.Dir(path), filepath.Base(path)
}
