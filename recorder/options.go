package recorder

import (
	"crypto/rand"
	"io"
	"log/slog"
	"time"

	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/record"
	"github.com/usp-project/usp/snapshot"
)

// Options injects every interval and destination. The zero value of each field is replaced by its default; the
// fields without a JSON name are ambient and are not handed to another process.
type Options struct {
	Runs           string           `json:"runs"`            // directory of run directories; default "runs"
	KeyFile        string           `json:"key_file"`        // signing key, created on first use; default see SigningKeyFile
	CommitInterval time.Duration    `json:"commit_interval"` // longest time from drained to durable, fsync excluded; default 50 ms
	CommitBytes    int              `json:"commit_bytes"`    // drained bytes that force a commit, at most a quarter of SegmentSize; default 4 MiB
	HeadInterval   time.Duration    `json:"head_interval"`   // shortest time between signed tree heads; default 1 s
	SegmentSize    int64            `json:"segment_size"`    // pre-allocated size at which a segment is sealed; default 16 MiB
	DigestInterval uint64           `json:"digest_interval"` // digests of every step divisible by it are logged; default 1
	DigestLevels   []int            `json:"digest_levels"`   // bits of the precision ladder; nil: record.DefaultLevels, empty: no ladder
	DigestFloor    int              `json:"digest_floor"`    // of the ladder, an exponent of 2; 0: record.DefaultFloor
	DigestWeights  []string         `json:"digest_weights"`  // digest fields that are to be non-negative and to sum to 1; nil: "rho" and "weights"
	AuditKeyFile   string           `json:"audit_key_file"`  // secret that the ladder is keyed with; empty: the public key
	Snapshot       SnapshotOptions  `json:"snapshot"`
	HoldBytes      int              `json:"hold_bytes"`     // drained bytes held in memory while storage takes none: what has to leave the ring, see Keeper; default 16 MiB
	Patience       time.Duration    `json:"patience"`       // how long a run that has ended waits for such storage before it writes off what is held; default 1 min
	AnchorDir      string           `json:"anchor_dir"`     // second place for the signed heads: one file for each run; empty: none
	AppendOnly     bool             `json:"append_only"`    // give files of the log the append-only attribute where that can be done
	Witness        WitnessOptions   `json:"witness"`        // who is to cosign the signed heads
	CommitTimeout  time.Duration    `json:"commit_timeout"` // how long the end of a run waits for the anchor and the witness to take the last head; default 4 s, or twice the witness's timeout
	Companion      CompanionOptions `json:"companion"`      // what runs beside a recorder's process; see Process
	ConfigSum      string           `json:"config_sha256"`  // for the manifest; hexadecimal, may be empty
	Version        string           `json:"version"`        // for the manifest; version of the program

	// Yield lowers the priority of what this process is scheduled by, or raises it to what it was, and says whether it was
	// low before; an error of it is tried again. The drainer has it low while the recorder keeps up, so that the step loop
	// comes first on a processor that both want. Default: none; Process has one where the system lets it.
	Yield func(low bool) (before bool, err error) `json:"-"`
	// Narrow keeps this process to one processor, or lets it have all again. It has one while its priority is low and no
	// snapshot is being saved: with two, one part of it wakes another on a processor that the step loop computes on.
	// Default: none; Process has one.
	Narrow func(on bool) `json:"-"`
	// Settle is called again and again, each time for a millisecond or less, once this recorder has given way to the step loop
	// for a while, until it returns false: what makes a recorder cheaper that stays. Default: none; Process moves its own code
	// and heap to large pages.
	Settle func() (more bool) `json:"-"`

	FS     vfs.FS           `json:"-"` // default vfs.OS()
	Logger *slog.Logger     `json:"-"` // default discards
	Now    func() time.Time `json:"-"` // default time.Now
	Rand   io.Reader        `json:"-"` // for a new signing key; default crypto/rand
}

// SnapshotOptions says how snapshots are written and how long they are kept.
type SnapshotOptions struct {
	Codec     snapshot.Codec     `json:"codec"` // default none
	Level     int                `json:"level"` // of the codec; 0 is its fastest
	Retention snapshot.Retention `json:"retention"`

	// Recipients are the age public keys that snapshots are encrypted to; none: they are not. A key that is none is an
	// error of Attach.
	Recipients []string `json:"recipients,omitempty"`

	Reuse int `json:"reuse"` // snapshots in a row that may refer to older ones for large sections that did not change; default 0
}

// CommitWait is how much longer the end of a run can take because of the places that the last signed head is brought to,
// and because of the companion.
func (o Options) CommitWait() (d time.Duration) {
	o = o.withDefaults()
	if o.AnchorDir != "" || o.Witness.URL != "" {
		d = o.CommitTimeout
	}
	if len(o.Companion.Command) > 0 {
		d += o.Companion.Wait
	}
	return d
}

func (o Options) withDefaults() Options {
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&o.CommitInterval, 50*time.Millisecond)
	def(&o.HeadInterval, time.Second)
	def(&o.Patience, time.Minute)
	def(&o.Witness.Interval, time.Minute)
	def(&o.Witness.Timeout, 2*time.Second)
	def(&o.CommitTimeout, max(4*time.Second, 2*o.Witness.Timeout)) // one head may be on its way when the last is signed
	def(&o.Companion.Wait, 10*time.Second)
	if o.Runs == "" {
		o.Runs = "runs"
	}
	if o.CommitBytes <= 0 {
		o.CommitBytes = 4 << 20
	}
	if o.SegmentSize <= 0 {
		o.SegmentSize = 16 << 20
	}
	o.CommitBytes = int(min(int64(o.CommitBytes), max(o.SegmentSize/4, 4096)))
	if o.HoldBytes <= 0 {
		o.HoldBytes = 16 << 20
	}
	if o.DigestInterval == 0 {
		o.DigestInterval = 1
	}
	if o.DigestLevels == nil {
		o.DigestLevels = record.DefaultLevels()
	}
	if o.DigestFloor == 0 {
		o.DigestFloor = record.DefaultFloor
	}
	if o.DigestWeights == nil {
		o.DigestWeights = []string{"rho", "weights"}
	}
	if o.Snapshot.Retention == (snapshot.Retention{}) {
		o.Snapshot.Retention = snapshot.Retention{KeepLast: 5}
	}
	if o.FS == nil {
		o.FS = vfs.OS()
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Rand == nil {
		o.Rand = rand.Reader
	}
	return o
}
