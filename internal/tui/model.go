package tui

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// model is what was seen and pressed so far.
type model struct {
	width, height int
	view          View
	fault         error  // of the last look
	at            string // id of the run that is pointed at; it stays where others come and go
	open          bool   // that run alone is shown
	scroll        int    // lines of it that are above the screen
	loaded        bool
}

// take shows what a look has found. After one that failed the last good one stays.
func (m *model) take(v View, err error) {
	m.loaded = true
	if m.fault = err; err != nil {
		return
	}
	m.view = v
	if m.index() < 0 {
		m.open, m.at = false, ""
		if len(v.Runs) > 0 {
			m.at = v.Runs[0].ID
		}
	}
}

// index is the place of the run that is pointed at, -1 if there is none.
func (m *model) index() int {
	return slices.IndexFunc(m.view.Runs, func(r Run) bool { return r.ID == m.at })
}

// press takes in a key; quit says that it is the last one.
func (m *model) press(key string) (quit bool) {
	switch key {
	case "q", "ctrl+c":
		return true
	case "esc", "left", "h", "backspace":
		m.open = false
	case "enter", "right", "l":
		m.open, m.scroll = m.index() >= 0, 0
	case "down", "j":
		m.move(1)
	case "up", "k":
		m.move(-1)
	case "pgdown", "space":
		m.move(m.page())
	case "pgup":
		m.move(-m.page())
	case "home", "g":
		m.move(-1 << 30)
	case "end", "G", "shift+g":
		m.move(1 << 30)
	}
	return false
}

// page is how many lines there are between head and foot.
func (m *model) page() int { return max(1, m.height-4) }

func (m *model) move(by int) {
	if m.open {
		i := m.index()
		m.scroll = min(max(0, m.scroll+by), max(0, len(m.lines(&m.view.Runs[i]))-m.page()))
		return
	}
	if n := len(m.view.Runs); n > 0 {
		m.at = m.view.Runs[min(max(0, m.index()+by), n-1)].ID
	}
}

// style is how text stands out, as terminals number it. There are no colours.
type style string

const (
	bold    style = "1"
	faint   style = "2"
	reverse style = "7"
)

func (s style) of(text string) string { return "\x1b[" + string(s) + "m" + text + "\x1b[m" }

// draw is the whole screen.
func (m *model) draw() string {
	if !m.loaded || m.width == 0 {
		return "looking…"
	}
	var out []string
	foot := "j/k or arrows: choose · enter: one run · q: quit"
	if i := m.index(); m.open && i >= 0 {
		r := &m.view.Runs[i]
		out = append(out, bold.of(fit("run "+r.ID+": "+r.Status, m.width)), "")
		lines := m.lines(r)
		from := min(m.scroll, max(0, len(lines)-m.page()))
		out = append(out, lines[from:min(len(lines), from+m.page())]...)
		foot = "j/k or arrows: scroll · esc: all runs · q: quit"
	} else {
		rows := table(m.view.Runs, max(1, m.width-2))
		out = append(out, bold.of(fit(m.title(), m.width)), bold.of("  "+rows[0]))
		rows = rows[1:]
		at := max(0, m.index())
		from := max(0, min(at-m.page()/2, len(rows)-m.page()))
		for i := from; i < min(len(rows), from+m.page()); i++ {
			if i == at {
				out = append(out, reverse.of("> "+rows[i]))
			} else {
				out = append(out, "  "+rows[i])
			}
		}
	}
	for len(out) < m.height-2 {
		out = append(out, "")
	}
	if m.fault != nil {
		out = append(out, fit("cannot look: "+clean(m.fault.Error()), m.width))
	} else {
		out = append(out, "")
	}
	return strings.Join(append(out, faint.of(fit(foot, m.width))), "\n")
}

func (m *model) title() string {
	busy := 0
	for i := range m.view.Runs {
		if m.view.Runs[i].Status == Recording {
			busy++
		}
	}
	return fmt.Sprintf("%s: %d runs, %d being recorded, %s", clean(m.view.Dir), len(m.view.Runs), busy, m.view.Time.Format("15:04:05"))
}

// Recording is the status of a run that is being recorded.
const Recording = "recording"

// lines are what there is to say of one run.
func (m *model) lines(r *Run) []string {
	var out []string
	say := func(name, format string, args ...any) {
		out = append(out, fit(fmt.Sprintf("%-10s %s", name, clean(fmt.Sprintf(format, args...))), m.width))
	}
	say("step", "%d, generation %d", r.Step, r.Generation)
	say("steps/s", "%s", r.rate())
	say("records", "%d stored, %d lost, %d held in memory", r.Stored, r.Lost, r.Held)
	if r.Fault != "" {
		say("STORAGE", "takes nothing: %s", r.Fault)
	}
	say("snapshots", "%d", r.Snapshots)
	for _, s := range r.Sinks {
		text := "has all of it"
		if s.Lag > 0 {
			text = fmt.Sprintf("%d %s behind", s.Lag, cmp.Or(s.Unit, "frames"))
		}
		if s.Fault != "" {
			text += ": " + s.Fault
		}
		say("sink", "%s: %s", s.Name, text)
	}
	if r.Error != "" {
		say("error", "%s", r.Error)
	}
	if len(r.Values) > 0 {
		out = append(out, "")
	}
	name := 0
	for _, v := range r.Values {
		name = max(name, len(v.Name)+1+len(v.Unit))
	}
	name = min(name, max(10, m.width/3))
	for _, v := range r.Values {
		head := fmt.Sprintf("%s %s ", pad(strings.TrimSpace(v.Name+" "+v.Unit), name), pad(v.Now.short(), 11))
		out = append(out, fit(head+Sparkline(v.History, m.width-utf8.RuneCountInString(head)), m.width))
	}
	return out
}

// fit cuts a line, and says so by an ellipsis.
func fit(s string, width int) string {
	if utf8.RuneCountInString(s) <= width || width <= 0 {
		return s
	}
	r := []rune(s)
	return string(r[:width-1]) + "…"
}

// pad makes a text of a width.
func pad(s string, width int) string {
	s = fit(s, width)
	return s + strings.Repeat(" ", max(0, width-utf8.RuneCountInString(s)))
}
