package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/term"

	"github.com/usp-project/usp/predictor"
)

// progress shows how far a run is: on a terminal a line that is drawn over, as plain text a line now and then, or JSON
// lines.
type progress struct {
	w       io.Writer
	mode    string // line, plain, json or none
	what    string // before the line, where there are several
	rows    uint64 // known in advance, or 0
	now     func() time.Time
	began   time.Time
	last    time.Time
	first   uint64
	every   time.Duration
	drawn   int
	pending uint64 // steps since the clock was looked at
}

func newProgress(w io.Writer, mode string, rows uint64, now func() time.Time) *progress {
	p := &progress{w: w, mode: mode, rows: rows, now: now, every: 100 * time.Millisecond}
	switch {
	case mode == "auto" && isTerminal(w):
		p.mode = "line"
	case mode == "auto":
		p.mode = "none"
	case mode == "plain":
		p.every = 30 * time.Second
	case mode == "json":
		p.every = time.Second
	}
	return p
}

// progress is shown as the settings say, unless nothing is to be said.
func (a *app) progress(rows uint64) *progress {
	mode := a.cfg.Run.Progress
	if a.quiet {
		mode = "none"
	}
	return newProgress(a.err, mode, rows, a.now)
}

// step is called after every step; it draws only when it is time.
func (p *progress) step(out *predictor.Output) {
	if p.mode == "none" {
		return
	}
	if p.began.IsZero() {
		p.began, p.first = p.now(), out.Step-1
		p.last = p.began
	}
	if p.pending++; p.pending < 64 && p.rows > 1<<12 {
		return // looking at the clock costs as much as emitting
	}
	p.pending = 0
	now := p.now()
	if now.Sub(p.last) < p.every {
		return
	}
	p.last = now
	rate := float64(out.Step-p.first) / max(now.Sub(p.began).Seconds(), 1e-9)
	flags := predictor.FlagNames(out.Flags)
	switch p.mode {
	case "json":
		status := map[string]any{
			"type": "status", "step": out.Step, "rows": p.rows, "rate": rate, "cusum_pos": out.CusumPos, "cusum_neg": out.CusumNeg, "flags": flags,
		}
		if p.what != "" {
			status["series"] = p.what
		}
		json.NewEncoder(p.w).Encode(status)
	case "plain":
		fmt.Fprintln(p.w, p.line(out, rate, flags))
	default:
		line := p.line(out, rate, flags)
		line = line[:min(len(line), p.columns()-1)]
		fmt.Fprintf(p.w, "\r%s%s", line, strings.Repeat(" ", max(0, p.drawn-len(line))))
		p.drawn = len(line)
	}
}

func (p *progress) line(out *predictor.Output, rate float64, flags []string) string {
	of := ""
	if p.rows > 0 {
		of = fmt.Sprintf(" of %d (%d %%)", p.rows, 100*out.Step/p.rows)
	}
	before := ""
	if p.what != "" {
		before = display(p.what) + ": "
	}
	return fmt.Sprintf("%sstep %d%s, %.0f steps/s, cusum +%.2f -%.2f of %.2f %s", before, out.Step, of, rate, out.CusumPos, out.CusumNeg, out.Threshold, strings.Join(flags, ","))
}

// amount is called now and then with how much of the work is done.
func (p *progress) amount(what string, done, total uint64) {
	if p.mode == "none" || total == 0 {
		return
	}
	now := p.now()
	if p.began.IsZero() {
		p.began, p.last = now, now
	}
	if now.Sub(p.last) < p.every {
		return
	}
	p.last = now
	rate := float64(done) / max(now.Sub(p.began).Seconds(), 1e-9)
	switch p.mode {
	case "json":
		json.NewEncoder(p.w).Encode(map[string]any{"type": "status", "what": what, "done": done, "total": total, "rate": rate})
	case "plain":
		fmt.Fprintf(p.w, "%s %d of %d (%d %%)\n", what, done, total, 100*done/total)
	default:
		const width = 30
		full := int(width * done / total)
		line := fmt.Sprintf("%s [%s%s] %3d %%, %.2g/s", what, strings.Repeat("=", full), strings.Repeat(" ", width-full), 100*done/total, rate)
		line = line[:min(len(line), p.columns()-1)]
		fmt.Fprintf(p.w, "\r%s%s", line, strings.Repeat(" ", max(0, p.drawn-len(line))))
		p.drawn = len(line)
	}
}

// columns is the width of the terminal: a longer line would wrap and stay.
func (p *progress) columns() int {
	if f, ok := p.w.(*os.File); ok {
		if w, _, err := term.GetSize(int(f.Fd())); err == nil && w > 1 {
			return w
		}
	}
	return 80
}

// end clears the line.
func (p *progress) end() {
	if p.mode == "line" && p.drawn > 0 {
		fmt.Fprintf(p.w, "\r%s\r", strings.Repeat(" ", p.drawn))
	}
}
