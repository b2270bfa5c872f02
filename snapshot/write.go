package snapshot

import (
	"fmt"
	"path/filepath"
	"slices"

	"github.com/usp-project/usp/internal/vfs"
)

// fileMode is that of a snapshot: it never changes once it has its name, and state may be confidential.
const fileMode = 0o400

// FileName is the name of the snapshot of a step: STEP-GENERATION.snap with the
// numbers padded, so that names sort by step.
func FileName(step uint64, generation uint32) string {
	return fmt.Sprintf("%020d-%04d.snap", step, generation)
}

// Write makes the snapshot of sections durable in dir, which must exist, and
// returns its name, size and SHA-256. When it returns nil the file is on stable
// storage under its name and has been read back, decrypted and compared with
// sections; when it returns an error no file of that name was added. An existing
// snapshot of the same step and generation is left alone: the error then is
// fs.ErrExist.
//
// With Options.Reuse, sections that an older file holds are compared with it and
// not written.
//
// The state is written in chunks of ChunkSize and never copied as a whole;
// sections must not change until Write returns. Write hashes in a goroutine of
// its own, which has ended when it returns.
func Write(dir string, m Meta, sections []Section, o Options) (Info, error) {
	o = o.withDefaults()
	if m.Created.IsZero() {
		m.Created = o.Now()
	}
	if err := check(m, sections, o); err != nil {
		return Info{}, fmt.Errorf("snapshot of step %d: %w", m.Step, err)
	}
	info := Info{Name: FileName(m.Step, m.Generation), Meta: m, Encrypted: len(o.Recipients) > 0}
	w := &writer{meta: m, sections: sections, options: o}
	w.choose(dir)
	w.start()
	defer w.hash.abandon()
	err := vfs.Create(o.FS, filepath.Join(dir, info.Name), fileMode, func(f vfs.File) error {
		w.f = f
		return w.write()
	})
	w.keys.forget()
	if err != nil {
		return Info{}, fmt.Errorf("snapshot of step %d: %w", m.Step, err)
	}
	o.Reuse.remember(dir, w)
	info.Size, info.SHA256, info.Verified = w.offset, w.sum, true
	info.Bases, info.BaseErr = exported(w.bases), w.baseErr
	return info, nil
}

// size is the number of bytes of state.
func size(sections []Section) (n int64) {
	for _, s := range sections {
		n += int64(len(s.Data))
	}
	return n
}

func check(m Meta, sections []Section, o Options) error {
	if err := checkRunID(m.RunID); err != nil {
		return err
	}
	if o.Codec > Zstd {
		return fmt.Errorf("unknown codec %d", o.Codec)
	}
	if i := slices.Index(o.Recipients, nil); i >= 0 {
		return fmt.Errorf("recipient %d is nil", i+1)
	}
	return checkSections(sections)
}

func checkSections(sections []Section) error {
	if len(sections) > MaxSections {
		return fmt.Errorf("%d sections: at most %d", len(sections), MaxSections)
	}
	seen := make(map[string]bool, len(sections))
	var total int64
	for _, s := range sections {
		if err := checkSectionName(s.Name); err != nil {
			return fmt.Errorf("section name %w", err)
		}
		if seen[s.Name] {
			return fmt.Errorf("section %q is there twice", s.Name)
		}
		seen[s.Name] = true
		if total += int64(len(s.Data)); total > MaxState {
			return fmt.Errorf("state larger than %d bytes", int64(MaxState))
		}
	}
	return nil
}
