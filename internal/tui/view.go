package tui

import (
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// View is what there is to show at one time.
type View struct {
	Time time.Time `json:"time"`
	Dir  string    `json:"dir"`
	Runs []Run     `json:"runs"` // those being recorded first, then the newest first
}

// Run is one run.
type Run struct {
	ID         string   `json:"run_id"`
	Status     string   `json:"status"`
	Generation uint32   `json:"generation"`
	Step       uint64   `json:"step"` // of the newest record
	Rate       *float64 `json:"steps_per_second,omitempty"`
	Stored     uint64   `json:"stored"` // of the newest generation, like the next two
	Lost       uint64   `json:"lost"`
	Held       uint64   `json:"held"`
	Fault      string   `json:"fault,omitempty"` // why storage takes nothing
	Snapshots  int      `json:"snapshots"`       // files that are there
	Sinks      []Sink   `json:"sinks,omitempty"`
	Values     []Value  `json:"values,omitempty"` // of the newest record
	Error      string   `json:"error,omitempty"`  // why it cannot be read
}

// Sink is how far a destination has the run.
type Sink struct {
	Name  string `json:"sink"`
	Lag   uint64 `json:"lag"`            // frames, or what Unit says, that it does not have yet
	Unit  string `json:"unit,omitempty"` // "": frames
	Fault string `json:"fault,omitempty"`
}

// Value is one number of the newest record, and how it came to be.
type Value struct {
	Name    string    `json:"name"`
	Unit    string    `json:"unit,omitempty"`
	Flag    bool      `json:"flag,omitempty"`
	Now     Number    `json:"value"`
	History []float64 `json:"-"` // the newest last
}

// Number is a number as it is written: an integer to the last digit, and what JSON has no number for as a string.
type Number string

// Float is the number of a float.
func Float(x float64) Number { return Number(strconv.FormatFloat(x, 'g', -1, 64)) }

// MarshalJSON writes a number, or "NaN", "+Inf" or "-Inf".
func (n Number) MarshalJSON() ([]byte, error) {
	if json.Valid([]byte(n)) {
		return []byte(n), nil
	}
	return json.Marshal(string(n))
}

// short is the number in few characters.
func (n Number) short() string {
	if len(n) <= 9 {
		return string(n)
	}
	x, err := strconv.ParseFloat(string(n), 64)
	if err != nil {
		return string(n)
	}
	return strconv.FormatFloat(x, 'g', 5, 64)
}

// Set are the names of flags that are not 0.
func (r *Run) set() (names []string) {
	for _, v := range r.Values {
		if v.Flag && v.Now != "0" {
			names = append(names, v.Name+"="+string(v.Now))
		}
	}
	return names
}

// first is the value that the table shows.
func (r *Run) first() *Value {
	for i := range r.Values {
		if !r.Values[i].Flag {
			return &r.Values[i]
		}
	}
	return nil
}

// sinks says how far each destination is in few words.
func (r *Run) sinks() string {
	var list []string
	for _, s := range r.Sinks {
		text := s.Name + " " + count(s.Lag)
		if s.Fault != "" {
			text += "!"
		}
		list = append(list, text)
	}
	return strings.Join(list, ", ")
}

// rate is the speed in few characters.
func (r *Run) rate() string {
	if r.Rate == nil {
		return "-"
	}
	if *r.Rate < 10 {
		return strconv.FormatFloat(*r.Rate, 'f', 1, 64)
	}
	return count(uint64(*r.Rate))
}

// count is a number of things in at most five characters.
func count(n uint64) string {
	if n < 100_000 {
		return strconv.FormatUint(n, 10)
	}
	x := float64(n)
	for _, unit := range "kMGTPE" {
		if x /= 1000; x < 999.5 {
			return fmt.Sprintf("%.3g%c", x, unit)
		}
	}
	return "∞"
}

// Sparkline draws values, two to a character, as bars of four dots between their least and largest. Only as many as fit
// are drawn, the newest. What is no number leaves a gap.
func Sparkline(values []float64, width int) string {
	if width <= 0 {
		return ""
	}
	values = values[max(0, len(values)-2*width):]
	low, high := extent(values)
	var b strings.Builder
	for i := 0; i < len(values); i += 2 {
		r := rune(0x2800)
		for side := range 2 {
			if i+side < len(values) {
				r |= bar(values[i+side], low, high, side)
			}
		}
		b.WriteRune(r)
	}
	return b.String()
}

// extent is the least and the largest of the numbers.
func extent(values []float64) (low, high float64) {
	low, high = math.Inf(1), math.Inf(-1)
	for _, x := range values {
		if !math.IsNaN(x) && !math.IsInf(x, 0) {
			low, high = min(low, x), max(high, x)
		}
	}
	return low, high
}

// bar is a column of a braille character, from the bottom up.
func bar(x, low, high float64, side int) (dots rune) {
	height := 4
	switch {
	case math.IsNaN(x) || math.IsInf(x, -1):
		return 0
	case math.IsInf(x, 1):
	case high <= low:
		height = 2
	default:
		share := (x - low) / (high - low)
		if math.IsInf(high-low, 1) {
			share = (x/2 - low/2) / (high/2 - low/2)
		}
		height = 1 + int(3*share+0.5)
	}
	columns := [2][4]rune{{0x40, 0x04, 0x02, 0x01}, {0x80, 0x20, 0x10, 0x08}}
	for _, dot := range columns[side][:height] {
		dots |= dot
	}
	return dots
}

// clean is a text without what would move the cursor.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s)
}
