package cli

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/audit"
	"github.com/usp-project/usp/internal/rundir"
)

const logLong = `Print the entries of a run's digest log: openings, step digests, losses, snapshots,
rewinds, seals and the end. --follow goes on until the run has ended.

Steps that a resumed run computed again stand in the log more than once. The older
entries, STEP, LOST and SNAPSHOT alike, are marked "superseded"; --effective leaves
them out, and what remains is the run as if it had never been interrupted. An entry
that was printed before the run was resumed has no mark.`

// followInterval is how often --follow looks for new entries.
const followInterval = 200 * time.Millisecond

type logFlags struct {
	follow    bool
	effective bool
	kind      string
	last      int
}

func (a *app) logCommand() *cobra.Command {
	var f logFlags
	cmd := &cobra.Command{
		Use: "log RUN", Short: "Print the digest log of a run", Long: logLong, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.log(cmd.Context(), args[0], f) },
	}
	cmd.Flags().BoolVarP(&f.follow, "follow", "f", false, "wait for further entries until the run has ended")
	cmd.Flags().BoolVar(&f.effective, "effective", false, "leave out what a later generation supersedes")
	cmd.Flags().StringVar(&f.kind, "kind", "", "print only entries of this `kind`, such as STEP or LOST")
	cmd.Flags().IntVarP(&f.last, "last", "n", 0, "print only the last `n` entries")
	return cmd
}

func (a *app) log(ctx context.Context, run string, f logFlags) error {
	f.kind = strings.ToUpper(f.kind)
	if f.kind != "" && !slices.Contains(logKinds(), f.kind) {
		return usageError(fmt.Errorf("--kind %s: there are %s", f.kind, strings.Join(logKinds(), ", ")))
	}
	if f.last < 0 {
		return usageError(fmt.Errorf("--last %d: want 0 or more", f.last))
	}
	dir, err := a.resolve(run)
	if err != nil {
		return err
	}
	m, _, err := rundir.ReadManifest(a.fs, dir, 0)
	if err != nil {
		return err
	}
	schema, err := m.ParsedSchema()
	if err != nil {
		return err
	}
	p := &logPrinter{app: a, flags: f, fields: schema.DigestFields(), log: digestlog.NewFollower(a.fs, dir.Digests())}
	p.at.begin = func(generation uint32) uint64 { return p.line.Begin(generation) }
	defer p.log.Close()
	for {
		if err := a.steady(dir, func() error { return p.read(dir) }); err != nil {
			return err
		}
		if err := p.flush(); err != nil {
			return err
		}
		if !f.follow || p.ended && !rundir.Locked(a.fs, dir) {
			return nil
		}
		select {
		case <-time.After(followInterval):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// logKinds are the names of the kinds of entries.
func logKinds() []string {
	var names []string
	for k := digestlog.KindOpen; k <= digestlog.KindEvent; k++ {
		names = append(names, k.String())
	}
	return names
}

// logPrinter prints entries once, however often the log is looked at.
type logPrinter struct {
	app    *app
	flags  logFlags
	fields []string
	log    *digestlog.Follower
	at     position
	ended  bool
	warned bool
	line   *audit.Timeline // knows what the rewinds of the log override
	last   uint32          // generation of the newest manifest when line was made
	known  bool            // that generation was in the log by then
	tail   []logLine       // the last entries, with --last
}

// position follows the steps of a generation through its entries. begin says behind which step a generation starts.
type position struct {
	begin      func(generation uint32) uint64
	generation uint32
	seq, step  uint64 // step is that of the record before seq
}

// restart takes in that more may be known of where the generation begins.
func (p *position) restart() {
	if p.seq == 0 {
		p.step = p.begin(p.generation)
	}
}

// stepOf returns the step that a STEP or SNAPSHOT entry is about, or the least that a lost record can have had: steps grow by
// one or more from record to record, so a lost range is overridden if its first record can have no step that counts.
func (p *position) stepOf(e *digestlog.Entry) (step uint64, ok bool) {
	if e.Kind == digestlog.KindOpen || e.Generation != p.generation {
		p.generation, p.seq, p.step = e.Generation, 0, p.begin(e.Generation)
	}
	switch e.Kind {
	case digestlog.KindStep:
		p.seq, p.step = e.Seq+1, e.Step
		return e.Step, true
	case digestlog.KindSnapshot:
		return e.Step, true
	case digestlog.KindLost:
		return p.step + 1 + e.From - p.seq, e.From >= p.seq
	}
	return 0, false
}

// logLine is one entry as printed.
type logLine struct {
	Index      uint64            `json:"index"`
	Kind       string            `json:"kind"`
	Generation uint32            `json:"generation"`
	Step       uint64            `json:"step"`
	Seq        uint64            `json:"seq"`
	Digests    map[string]string `json:"digests,omitempty"`
	Detail     string            `json:"detail,omitempty"`
	Superseded bool              `json:"superseded,omitempty"` // a later generation computed the same steps again
}

// rewinds finds out what is overridden, if that can be other than the last time: there is a manifest more, or the generation of the newest
// was not in the log yet, so that entries of the one before could still come.
func (p *logPrinter) rewinds(dir rundir.Dir) error {
	last, err := rundir.LastGeneration(p.app.fs, dir)
	if err == nil && p.known && last == p.last {
		return nil
	}
	p.last = last
	if p.line, err = audit.Open(p.app.fs, dir.Path()); err != nil {
		if p.flags.effective {
			return withCode(exitFailed, err)
		}
		if !p.warned {
			fmt.Fprintf(p.app.err, "usp: warning: cannot tell which entries are superseded: %v\n", err)
		}
		p.line, p.warned = &audit.Timeline{}, true
	}
	n := len(p.line.Manifests)
	p.known = n > 0 && p.line.Manifests[n-1].Generation == last
	p.at.restart()
	return nil
}

func (p *logPrinter) read(dir rundir.Dir) error {
	// The rewinds first: what they override comes before them. A run that a manifest is damaged of has a log all the same.
	if err := p.rewinds(dir); err != nil {
		return err
	}
	for item, err := range p.log.Entries() {
		var fault *digestlog.Fault
		if errors.As(err, &fault) && fault.Benign() {
			if fault.Class != digestlog.ClassUnknown {
				continue
			}
		} else if err != nil {
			return withCode(exitFailed, err)
		}
		step, ok := p.at.stepOf(&item.Entry)
		superseded := ok && p.line.Superseded(item.Entry.Generation, step)
		p.ended = item.Entry.Kind == digestlog.KindEnd
		if p.flags.kind != "" && p.flags.kind != item.Entry.Kind.String() {
			continue
		}
		if superseded && p.flags.effective {
			continue
		}
		l := p.entry(&item)
		l.Superseded = superseded
		if err := p.put(l); err != nil {
			return err
		}
	}
	return nil
}

func (p *logPrinter) entry(item *digestlog.Item) logLine {
	e := &item.Entry
	l := logLine{Index: item.Index, Kind: e.Kind.String(), Generation: e.Generation, Step: e.Step, Seq: e.Seq, Detail: detail(e)}
	if e.Kind == digestlog.KindStep {
		l.Digests = make(map[string]string, len(e.Digests))
		for i, d := range e.Digests {
			name := fmt.Sprintf("field%d", i)
			if i < len(p.fields) {
				name = p.fields[i]
			}
			l.Digests[name] = hex.EncodeToString(d[:])
			l.Detail += fmt.Sprintf("%s %x… ", name, d[:6])
		}
	}
	return l
}

func detail(e *digestlog.Entry) string {
	switch e.Kind {
	case digestlog.KindOpen:
		return fmt.Sprintf("manifest %x… schema %x…", e.Manifest[:6], e.Schema[:6])
	case digestlog.KindLost:
		return fmt.Sprintf("records %d to %d: %v", e.From, e.To-1, e.Reason)
	case digestlog.KindSnapshot:
		return fmt.Sprintf("%s, %s, %x…", e.Name, bytesText(int64(e.Size)), e.SHA256[:6])
	case digestlog.KindRewind:
		return fmt.Sprintf("continues behind step %d of generation %d", e.Target, e.FromGeneration)
	case digestlog.KindSeal:
		return fmt.Sprintf("%s, frames %d to %d, %s, %x…", e.Name, e.Base, e.Base+e.Count, bytesText(int64(e.Size)), e.SHA256[:6])
	case digestlog.KindEnd:
		return fmt.Sprintf("%v: %d emitted, %d stored, %d lost", e.Status, e.Emitted, e.Stored, e.Lost)
	case digestlog.KindPrune:
		return e.Name
	case digestlog.KindEvent:
		return fmt.Sprintf("%v: %s", e.Code, e.Text)
	}
	return ""
}

func (p *logPrinter) put(l logLine) error {
	if n := p.flags.last; n > 0 {
		if p.tail = append(p.tail, l); len(p.tail) > n {
			p.tail = p.tail[1:]
		}
		return nil
	}
	return p.print(l)
}

// flush prints what --last has held back; what follows later is printed as it comes.
func (p *logPrinter) flush() error {
	for _, l := range p.tail {
		if err := p.print(l); err != nil {
			return err
		}
	}
	p.tail, p.flags.last = nil, 0
	return nil
}

func (p *logPrinter) print(l logLine) error {
	if p.app.json {
		return p.app.printJSON(l, false)
	}
	mark := ""
	if l.Superseded {
		mark = "superseded: "
	}
	_, err := fmt.Fprintf(p.app.out, "%6d  %-8s gen %d  step %-6d %s%s\n", l.Index, l.Kind, l.Generation, l.Step, mark, l.Detail)
	return err
}
