package tui

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Print writes the table of all runs as plain lines.
func Print(w io.Writer, v View, width int) error {
	for _, line := range table(v.Runs, width) {
		if _, err := fmt.Fprintln(w, line); err != nil {
			return err
		}
	}
	return nil
}

// table is a head and a line for each run. Columns are as wide as their widest cell; what does not fit into width is cut.
func table(runs []Run, width int) []string {
	rows := [][]string{{"RUN", "STATUS", "STEP", "STEPS/S", "LOST", "HELD", "SNAPSHOTS", "SINKS BEHIND", "NEWEST", "FLAGS"}}
	for i := range runs {
		rows = append(rows, cells(&runs[i]))
	}
	wide := make([]int, len(rows[0]))
	for _, row := range rows {
		for c, cell := range row {
			wide[c] = max(wide[c], utf8.RuneCountInString(cell))
		}
	}
	lines := make([]string, len(rows))
	for i, row := range rows {
		var b strings.Builder
		for c, cell := range row {
			if c > 0 {
				b.WriteString("  ")
			}
			b.WriteString(pad(cell, wide[c]))
		}
		lines[i] = fit(strings.TrimRight(b.String(), " "), width)
	}
	return lines
}

// cells are what the table says of a run.
func cells(r *Run) []string {
	const spark = 8
	newest := "-"
	if v := r.first(); v != nil {
		newest = strings.TrimRight(v.Name+" "+pad(v.Now.short(), 9)+" "+Sparkline(v.History, spark), " ")
	}
	held := count(r.Held)
	if r.Fault != "" {
		held += "!"
	}
	flags := strings.Join(r.set(), " ")
	if r.Error != "" {
		flags = clean(r.Error)
	}
	return []string{
		r.ID, r.Status, strconv.FormatUint(r.Step, 10), r.rate(), count(r.Lost), held, strconv.Itoa(r.Snapshots), orDash(r.sinks()), newest, orDash(flags),
	}
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
