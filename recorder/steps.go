package recorder

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/record"
)

// stepMaker makes the STEP entries of a generation: exact digests, and what its plan puts beside them.
type stepMaker struct {
	generation uint32
	plan       *record.Plan // nil: a generation of an older recorder, whose entries hold exact digests only
	prober     *record.Prober
	digester   *record.Digester
	interval   uint64
	last       digestlog.Entry // reused for each step
}

// newStepMaker plans a new generation.
func newStepMaker(s *record.Schema, generation uint32, o *Options) (*stepMaker, error) {
	key, err := readAuditKey(o.FS, o.AuditKeyFile)
	if err != nil {
		return nil, err
	}
	plan, err := record.NewPlan(s, record.PlanOptions{Every: o.DigestInterval, Levels: o.DigestLevels, Floor: o.DigestFloor, Key: key, Weights: o.DigestWeights})
	if err != nil {
		return nil, fmt.Errorf("what log entries hold: %w", err)
	}
	return &stepMaker{
		generation: generation, plan: plan, prober: record.NewProber(s, plan, key), digester: record.NewDigester(s), interval: plan.Every,
	}, nil
}

// minAuditKey is the least length of an audit key's secret, in bytes.
const minAuditKey = 16

// readAuditKey derives the ladder's key from the file; no file is the public key. The error never says what is in it.
func readAuditKey(fsys vfs.FS, path string) (record.AuditKey, error) {
	if path == "" {
		return record.PublicAuditKey(), nil
	}
	info, err := fsys.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return record.AuditKey{}, fmt.Errorf("audit key: %w; put at least %d random bytes there, mode 0600, the same on every machine whose runs are to be compared", err, minAuditKey)
	}
	if err != nil {
		return record.AuditKey{}, fmt.Errorf("audit key: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return record.AuditKey{}, fmt.Errorf("audit key: %s has mode %04o and can be read by others; make it private with chmod 600", path, info.Mode().Perm())
	}
	secret, err := vfs.ReadFile(fsys, path, 1<<10)
	if err != nil {
		return record.AuditKey{}, fmt.Errorf("audit key: %w", err)
	}
	secret = bytes.TrimSpace(secret)
	if len(secret) < minAuditKey {
		return record.AuditKey{}, fmt.Errorf("audit key: %s holds %d bytes, want at least %d", path, len(secret), minAuditKey)
	}
	return record.NewAuditKey(secret), nil
}

// keepPlan goes on with what the generation was begun with. Without the key that its ladders are made with it leaves them out.
func (m *stepMaker) keepPlan(s *record.Schema, open *digestlog.Entry, o *Options) (withoutKey bool, err error) {
	plan, err := planOf(open)
	if err != nil {
		return false, err
	}
	if plan == nil {
		m.plan, m.prober = nil, nil
		return false, nil
	}
	m.plan, m.interval = plan, plan.Every
	key, err := readAuditKey(o.FS, o.AuditKeyFile)
	if err == nil && key.ID == plan.Key {
		m.prober = record.NewProber(s, plan, key)
		return false, nil
	}
	if key = record.PublicAuditKey(); plan.Key == key.ID {
		m.prober = record.NewProber(s, plan, key)
		return false, nil
	}
	m.prober = nil
	return true, nil
}

// planOf reads the plan in an OPEN entry, nil if there is none.
func planOf(open *digestlog.Entry) (*record.Plan, error) {
	text, err := digestlog.FindBlock(open.Ext, digestlog.TagPlan)
	if err != nil || text == nil {
		return nil, err
	}
	return record.ParsePlan(text)
}

// size bounds the bytes of an entry.
func (m *stepMaker) size() int {
	n := 128 + 32*record.MaxDigests
	if m.prober != nil {
		n += m.plan.LadderSize() + m.plan.InvariantsSize()
	}
	return n
}

// entry makes the entry of a step, nil if none is due. It is valid until the next call.
func (m *stepMaker) entry(seq uint64, payload []uint64) *digestlog.Entry {
	step := payload[0]
	if step%m.interval != 0 {
		return nil
	}
	e := &m.last
	e.Kind, e.Generation, e.Step, e.Seq = digestlog.KindStep, m.generation, step, seq
	e.Digests, e.Nonfinite = m.digester.Append(e.Digests[:0], payload)
	if e.Ext = e.Ext[:0]; m.prober == nil {
		return e
	}
	var at int
	if m.plan.LadderSize() > 0 {
		e.Ext, at = digestlog.OpenBlock(e.Ext, digestlog.TagLadder)
		e.Ext = digestlog.CloseBlock(m.prober.AppendLadders(e.Ext, payload), at)
	}
	if m.plan.InvariantsSize() > 0 {
		e.Ext, at = digestlog.OpenBlock(e.Ext, digestlog.TagInvariants)
		e.Ext = digestlog.CloseBlock(m.prober.AppendInvariants(e.Ext, payload), at)
	}
	return e
}
