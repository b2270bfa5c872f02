package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/usp-project/usp/internal/bench"
	"github.com/usp-project/usp/internal/config"
	"github.com/usp-project/usp/internal/vfs"
)

// storageBench is what usp bench --storage measures.
type storageBench struct {
	on      bool
	records uint64
	rounds  int
	sizes   []string
}

// storageReport is usp bench --storage --json.
type storageReport struct {
	Dir       string                  `json:"dir"`
	Recorder  []bench.RecorderFigures `json:"recorder"`
	Snapshots []bench.SnapshotFigures `json:"snapshots"`
	Go        string                  `json:"go"`
	Arch      string                  `json:"arch"`
	CPUs      int                     `json:"cpus"`
}

func (s *storageBench) flags(cmd *cobra.Command) {
	*s = storageBench{records: 1_000_000, rounds: 5, sizes: []string{"1MiB", "64MiB"}}
	f := cmd.Flags()
	f.BoolVar(&s.on, "storage", false, "measure recording and snapshots on the disk of --dir instead")
	f.Uint64Var(&s.records, "records", s.records, "with --storage: records that are recorded in each round")
	f.IntVar(&s.rounds, "rounds", s.rounds, "with --storage: rounds of each measurement")
	f.StringSliceVar(&s.sizes, "size", s.sizes, "with --storage: `sizes` of the states of which snapshots are taken")
}

// states parses the sizes. A snapshot may be larger than what is sensible to measure; one that fills the memory-backed
// directory of the ring is refused there.
func (s *storageBench) states() (sizes []int, err error) {
	if s.records < 1 || s.rounds < 1 {
		return nil, errors.New("--records and --rounds: at least 1 is needed")
	}
	for _, text := range s.sizes {
		var size config.Size
		if err := size.UnmarshalText([]byte(text)); err != nil {
			return nil, fmt.Errorf("--size %s: %w", text, err)
		}
		if size < 1 || size > 64<<30 {
			return nil, fmt.Errorf("--size %s: 1B to 64GiB can be measured", text)
		}
		sizes = append(sizes, int(size))
	}
	return sizes, nil
}

// digestIntervals are what the recorder is measured with: its default, and one with which digests cost next to nothing.
var digestIntervals = [...]uint64{1, 100}

func (a *app) benchStorage(ctx context.Context, s *storageBench) (err error) {
	sizes, err := s.states()
	if err != nil {
		return usageError(err)
	}
	dir, remove, err := a.scratch()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, remove()) }()
	command, err := recorderCommand()
	if err != nil {
		return err
	}
	o, err := a.recorderOptions()
	if err != nil {
		return err
	}
	report := storageReport{Dir: a.cfg.Run.Dir, Go: runtime.Version(), Arch: runtime.GOARCH, CPUs: runtime.NumCPU()}
	for _, o.DigestInterval = range digestIntervals {
		a.say("recorder, digests of every %d. step: %d rounds of %d records", o.DigestInterval, s.rounds, s.records)
		f, err := bench.CompareRecorder(ctx, bench.RecorderConfig{
			Dir: dir, Command: command, Options: o, RingDir: a.cfg.Ring.Dir, Slots: a.cfg.Ring.Slots, Records: s.records,
		}, s.rounds)
		if err != nil {
			return err
		}
		report.Recorder = append(report.Recorder, f)
	}
	for _, size := range sizes {
		a.say("snapshots of %v: %d rounds", config.Size(size), s.rounds)
		f, err := bench.CompareSnapshot(ctx, dir, a.cfg.Ring.Dir, size, s.rounds)
		if err != nil {
			return err
		}
		report.Snapshots = append(report.Snapshots, f)
	}
	return a.printStorage(report)
}

// say is progress.
func (a *app) say(format string, args ...any) {
	if !a.quiet {
		fmt.Fprintf(a.err, "usp bench: "+format+"\n", args...)
	}
}

// scratch makes a directory where runs lie; remove takes it away, and what had to be made for it.
func (a *app) scratch() (dir string, remove func() error, err error) {
	_, missing := os.Stat(a.cfg.Run.Dir)
	if err := vfs.MkdirAll(a.fs, a.cfg.Run.Dir, 0o755); err != nil {
		return "", nil, err
	}
	if dir, err = os.MkdirTemp(a.cfg.Run.Dir, ".bench-"); err != nil {
		return "", nil, err
	}
	return dir, func() error {
		err := os.RemoveAll(dir)
		if err == nil && errors.Is(missing, os.ErrNotExist) {
			err = os.Remove(a.cfg.Run.Dir)
		}
		return err
	}, nil
}

func (a *app) printStorage(r storageReport) error {
	if a.json {
		return a.printJSON(r, true)
	}
	w := tabwriter.NewWriter(a.out, 0, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(a.out, "in %s; medians of rounds; × is times as fast as what stands behind it, in turn with it\n", r.Dir)
	fmt.Fprintln(a.out, "\nrecorder: records stored and synced, its process on one core; plain is a program that writes the same bytes in order to\n"+
		"one file and syncs it at the end, or each MiB; CPU time is the recorder's, of hashing that of the SHA-256 sums alone")
	fmt.Fprintln(w, "digests of\trecords/s\t× plain\t× plain, sync each MiB\trecords/CPU s\tCPU time of hashing\tbytes\tmost memory\tlost\t")
	for _, f := range r.Recorder {
		fmt.Fprintf(w, "every %d. step\t%.0f\t%.2f\t%.2f\t%.0f\t%.2f ×\t%.0f\t%d MiB\t%d\t\n", f.DigestInterval, f.Rate, f.ToPlain, f.ToGroup,
			f.CPURate, f.ToHash, f.Bytes, f.MaxRSS>>20, f.Lost)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if len(r.Snapshots) == 0 {
		return nil
	}
	fmt.Fprintln(a.out, "\nsnapshots: the stall of the loop beside a copy in memory (in its time), persisting beside write, fsync and rename,\n"+
		"verified loading beside read and SHA-256 (in their speed)")
	fmt.Fprintln(w, "state\tstall\tof a copy's time\tpersist\t× plain\tload\t× read and hash\t")
	for _, f := range r.Snapshots {
		fmt.Fprintf(w, "%v\t%s\t%.2f\t%s\t%.2f\t%s\t%.2f\t\n", config.Size(f.Size), short(f.Stall), f.ToCopy, short(f.Write), f.ToPlain, short(f.Load), f.ToRead)
	}
	return w.Flush()
}

// short rounds nanoseconds to three digits or so.
func short(ns int64) string {
	d := time.Duration(ns)
	unit := time.Nanosecond
	for d >= 1000*unit {
		unit *= 10
	}
	return d.Round(unit).String()
}
