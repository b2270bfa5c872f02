// Package ring carries fixed-size records, and now and then a whole state, from
// one producer process to one consumer process through shared memory, and never
// makes the producer wait.
//
// A ring is one file in a memory-backed directory: a header, then 2^n slots of
// equal size. The producer writes record n into slot n mod 2^n and moves on;
// when the ring is full it overwrites the oldest record. It reads nothing that
// a consumer writes, takes no lock, allocates nothing and makes no system call,
// so a consumer that is slow, stopped, killed or absent changes nothing for it.
// The price is paid by the consumer: it may be overtaken. It then says exactly
// which sequence numbers it lost, so that at every moment
//
//	records emitted = records delivered + records lost
//
// A slot carries its sequence number twice, before and after the payload is
// written, and a CRC over all of it, so a record that is half written, half
// overwritten or damaged is counted as lost and never delivered.
//
// Whether the producer lives is asked of the kernel: a producer holds an
// exclusive flock on its ring file for as long as it exists, and the kernel
// drops the lock however the process ends. Process ids are only shown.
//
// Staging areas are further files next to the ring. A producer copies its
// state into a free one (the one copy it pays for) and goes on; with none free
// the request is dropped and counted. See [Producer.Stage] and [Consumer.Staged].
//
// The ring does not look into the bytes it carries. The layout is specified in
// doc/format/ring.md, in enough detail to write a ring from another language.
// Hosts must be little-endian; Linux and the BSD family, macOS included, are
// supported, and only Linux has a shared memory file system by default.
package ring

import (
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"syscall"

	"golang.org/x/sys/cpu"
)

// What can be wrong with a ring. Every error returned by this package that is
// about the content of a file wraps exactly one of these.
var (
	// ErrNotRing: the file is something else.
	ErrNotRing = errors.New("not a ring file")
	// ErrVersion: a ring, of a format version that this package does not read.
	ErrVersion = errors.New("unsupported ring format version")
	// ErrCorrupt: a ring whose header, geometry or size contradicts itself.
	ErrCorrupt = errors.New("corrupt ring")
	// ErrDigest: an intact header whose schema text has another SHA-256 than the header says.
	ErrDigest = errors.New("schema does not match its digest")
	// ErrTruncated: the file was made shorter while it was mapped.
	ErrTruncated = errors.New("ring was truncated while open")
	// ErrExist: there is a ring of that name already. It wraps [fs.ErrExist].
	ErrExist = fmt.Errorf("ring exists: %w", fs.ErrExist)
	// ErrAlive: refused because the producer of the ring is alive.
	ErrAlive = errors.New("producer is alive")
	// ErrClosed: the producer or consumer was closed.
	ErrClosed = errors.New("ring is closed")
)

var errByteOrder = errors.New("ring: this host is big-endian: rings are supported on little-endian hosts only")

// checkHost refuses the hosts on which the words of a ring would be swapped.
func checkHost() error {
	if cpu.IsBigEndian {
		return errByteOrder
	}
	return nil
}

// Status is what one call of [Consumer.Next] came to.
type Status uint8

const (
	// Empty: nothing to read yet.
	Empty Status = iota
	// Got: one or more records were delivered.
	Got
	// Lost: records can no longer be read; [Consumer.LostRange] names them. Go on calling Next.
	Lost
	// Failed: the ring cannot be read any more; [Consumer.Err] says why. Every later call fails too.
	Failed
)

// String returns the name of the status in lower case.
func (s Status) String() string {
	switch s {
	case Empty:
		return "empty"
	case Got:
		return "got"
	case Lost:
		return "lost"
	case Failed:
		return "failed"
	}
	return "status(" + strconv.Itoa(int(s)) + ")"
}

// LostReason says why records were lost on the way through the ring.
type LostReason uint8

const (
	// Overrun: the producer overwrote the records before they were read.
	Overrun LostReason = 1
	// Torn: the record was never finished (its producer died while writing it) or fails its CRC.
	Torn LostReason = 2
)

// String returns the name of the reason in lower case.
func (r LostReason) String() string {
	switch r {
	case Overrun:
		return "overrun"
	case Torn:
		return "torn"
	}
	return "reason(" + strconv.Itoa(int(r)) + ")"
}

// ProducerState is what the producer says about itself in the ring. It does not
// say whether the process lives: see [Consumer.ProducerAlive].
type ProducerState uint64

const (
	// StateOpen: records may still come, if the producer is alive.
	StateOpen ProducerState = 1
	// StateClosed: the producer ended as intended.
	StateClosed ProducerState = 2
	// StateFailed: the producer ended and said that something went wrong.
	StateFailed ProducerState = 3
)

// String returns the name of the state in lower case.
func (s ProducerState) String() string {
	switch s {
	case StateOpen:
		return "open"
	case StateClosed:
		return "closed"
	case StateFailed:
		return "failed"
	}
	return "state(" + strconv.FormatUint(uint64(s), 10) + ")"
}

// ConsumerPhase is how far the consumer is, in [ConsumerState].
type ConsumerPhase uint64

const (
	// ConsumerNone: no consumer has attached yet.
	ConsumerNone ConsumerPhase = 0
	// ConsumerAttached: a consumer is, or was, draining the ring.
	ConsumerAttached ConsumerPhase = 1
	// ConsumerDone: everything was drained and made durable.
	ConsumerDone ConsumerPhase = 2
)

// ConsumerState is what the consumer says about itself in the ring, for a
// progress display on the producer's side. Each field is read and written on
// its own: together they may be of slightly different moments.
type ConsumerState struct {
	Phase     ConsumerPhase
	Position  uint64 // sequence number of the next record to read
	Stored    uint64 // records stored
	Lost      uint64 // records lost
	Synced    uint64 // records < Synced are durable or accounted for as lost
	Snapshots uint64 // snapshots made durable
	PID       int    // process id, for display only

	LostStorage uint64        // records lost because storage did not take them; they are among Lost
	Fault       syscall.Errno // what storage says now; 0: it is well
	Held        uint64        // records that wait in the consumer's memory until it is well again
	Unsaved     uint64        // snapshots given up because storage did not take them
}
