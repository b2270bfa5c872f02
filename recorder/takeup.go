package recorder

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/segment"
	"github.com/usp-project/usp/record"
	"github.com/usp-project/usp/ring"
)

// takeUp continues a generation that another recorder began: telemetry that was not sealed is repaired and sealed, losses
// and digests that did not reach the log are logged, and reading resumes at the first record that is not stored.
func (r *Recorder) takeUp(h *history, g generation) error {
	if g.schema != r.schema.Sum() {
		return fmt.Errorf("generation %d was begun with another schema", r.generation)
	}
	if err := r.keepPlan(&g.open); err != nil {
		return err
	}
	if err := r.repairTelemetry(h); err != nil {
		return err
	}
	t, err := r.readTail(g, r.steps.interval)
	if err != nil {
		return err
	}
	for i := range t.unlogged {
		if err := r.append(&t.unlogged[i]); err != nil {
			return err
		}
	}
	// Before anything new is stored, so that never more than the last segment holds what the log lacks.
	if err := r.payDigests(&t); err != nil {
		return err
	}
	if err := r.log.Sync(); err != nil {
		return err
	}
	r.next = t.next()
	r.stats.stored.Store(t.stored)
	r.stats.lost.Store(t.lost)
	r.stats.synced.Store(r.next)
	r.logger().Info("recorder took up a run", "run", r.header.RunID, "generation", r.generation, "stored", t.stored, "lost", t.lost)
	return r.beginSegment(r.telemetryNext)
}

// keepPlan goes on with the digest interval and the ladders that the generation was begun with: its OPEN entry promises them for all of
// it; of an older one, the manifest promises the interval.
func (r *Recorder) keepPlan(open *digestlog.Entry) error {
	withoutKey, err := r.steps.keepPlan(r.schema, open, &r.opts)
	if err != nil {
		return fmt.Errorf("the OPEN entry of generation %d: %w", r.generation, err)
	}
	if withoutKey {
		r.logger().Warn("the audit key that this generation was begun with is not there; its entries hold exact digests only from here on")
	}
	if r.steps.plan == nil {
		r.steps.interval = r.promised(open)
	}
	return nil
}

// promised is the digest interval that a generation was begun with, by its OPEN entry, or else by its manifest.
func (r *Recorder) promised(open *digestlog.Entry) uint64 {
	if plan, err := planOf(open); err == nil && plan != nil {
		return plan.Every
	}
	m, _, err := rundir.ReadManifest(r.fs(), r.dir, r.generation)
	switch {
	case err != nil: // recording goes on; to judge the manifest is for usp verify
		r.logger().Warn("the manifest cannot be read", "err", err)
	case m.DigestEvery > 0:
		return m.DigestEvery
	}
	return r.opts.DigestInterval
}

// repairTelemetry seals every telemetry segment that the log does not know as sealed, and logs it.
func (r *Recorder) repairTelemetry(h *history) error {
	r.telemetryNext = h.telemetry
	infos, err := segment.List(r.fs(), r.dir.Telemetry())
	if err != nil {
		return err
	}
	for _, info := range infos {
		if h.sealed[info.Name] {
			continue
		}
		path := filepath.Join(r.dir.Telemetry(), info.Name)
		sealed, err := segment.RepairIndexed(r.fs(), path, summarizer)
		if err != nil {
			return fmt.Errorf("repair telemetry: %w", err)
		}
		if sealed.Count == 0 {
			continue // it never held a record, and is gone
		}
		if sealed.Torn > 0 {
			r.logger().Warn("an unacknowledged tail was cut off", "file", path, "bytes", sealed.Torn)
		}
		if err := r.logSeal(sealed); err != nil {
			return err
		}
	}
	return nil
}

// summarizer makes the index of a telemetry segment.
func summarizer(segment.Header) segment.Indexer { return new(record.Summarizer) }

// tail is what the telemetry of a generation says that its log may not.
type tail struct {
	stored, lost uint64
	undigested   uint64            // first stored sequence number whose digest is due and not logged; next() if there is none
	ranges       []digestlog.Entry // lost ranges from about there on, in order
	unlogged     []digestlog.Entry // those of them that are not in the log
}

// next is the sequence number after the last one that is accounted for.
func (t *tail) next() uint64 { return t.stored + t.lost }

// readTail counts the generation's records and losses from its last segment, whose header holds the counts before it.
// Only the last segment can hold what is not logged: the next one is begun after everything in it was logged.
func (r *Recorder) readTail(g generation, interval uint64) (t tail, err error) {
	infos, err := segment.List(r.fs(), r.dir.Telemetry())
	if err != nil || len(infos) == 0 {
		return t, err
	}
	path := infos[len(infos)-1].Path
	seg, err := segment.Open(r.fs(), path)
	if err != nil {
		return t, err
	}
	defer seg.Close()
	meta, err := record.ParseStreamMeta(seg.Header().Meta)
	if err != nil {
		return t, fmt.Errorf("%s: %w", path, err)
	}
	if meta.Generation != r.generation {
		return t, nil // nothing of this generation was stored
	}
	t.stored, t.lost, t.undigested = meta.Stored, meta.Lost, ^uint64(0)
	var f record.Frame
	for {
		b, _, err := seg.Next()
		if errors.Is(err, io.EOF) {
			t.undigested = min(t.undigested, t.next())
			return t, nil
		} else if err != nil {
			return t, err
		}
		if err := record.DecodeFrame(b, &f); err != nil {
			return t, fmt.Errorf("%s: %w", path, err)
		}
		t.add(&f, g, interval)
	}
}

func (t *tail) add(f *record.Frame, g generation, interval uint64) {
	if f.Kind == record.KindRecord {
		t.stored++
		if f.Seq >= g.digested && f.Step()%interval == 0 {
			t.undigested = min(t.undigested, f.Seq)
		}
		return
	}
	t.lost += f.To - f.Seq
	e := lostEntry(f.Generation, f.Seq, f.To, f.Reason)
	t.ranges = append(t.ranges, e)
	if f.Seq >= g.lostTo {
		t.unlogged = append(t.unlogged, e)
	}
}

// lostFrom returns the end of the lost range that holds seq, or seq itself if it is stored.
func (t *tail) lostFrom(seq uint64) uint64 {
	for i := range t.ranges {
		if e := &t.ranges[i]; e.From <= seq && seq < e.To {
			return e.To
		}
	}
	return seq
}

// payDigests logs the digests that a dead recorder still owed. Their records are stored; what the digests are of may
// still be in the ring. A record that telemetry says was lost gets none, even if the ring can give it now.
func (r *Recorder) payDigests(t *tail) error {
	payload := make([]uint64, r.schema.Words())
	r.ring.Seek(t.undigested)
	for seq := t.undigested; seq < t.next(); {
		if to := t.lostFrom(seq); to > seq {
			r.ring.Seek(to)
			seq = to
			continue
		}
		_, st := r.ring.Next(payload)
		switch st {
		case ring.Got:
			if err := r.payDigest(seq, payload); err != nil {
				return err
			}
			seq++
		case ring.Failed:
			return fmt.Errorf("ring %s: %w", r.ring.Path(), r.ring.Err())
		default:
			to := t.next()
			if st == ring.Lost {
				_, end, _ := r.ring.LostRange()
				to = min(to, end)
			}
			e := missingEntry(r.generation, seq, to)
			if err := r.append(&e); err != nil {
				return err
			}
			seq = to
		}
	}
	return nil
}

func (r *Recorder) payDigest(seq uint64, payload []uint64) error {
	e := r.steps.entry(seq, payload)
	if e == nil {
		return nil
	}
	r.stats.digests.Add(1)
	return r.append(e)
}

// missingEntry says that digests that were due for records [from, to) can no longer be had. Its Seq is the last of them.
func missingEntry(gen uint32, from, to uint64) digestlog.Entry {
	return digestlog.Entry{
		Kind: digestlog.KindEvent, Generation: gen, Seq: to - 1, Code: digestlog.EventDigestsMissing,
		Text: fmt.Sprintf("digests due from record %d to %d were lost with a recorder; what is stored of these records is not", from, to-1),
	}
}
