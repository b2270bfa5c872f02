package input

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// timeForm is how a column writes times; its first field decides.
type timeForm uint8

const (
	timeUnknown timeForm = iota
	timeText             // RFC 3339 date or date-time
	timeInteger          // nanoseconds since 1970
)

func (r *Reader) timeField(text string, line int) (int64, error) {
	text = strings.TrimSpace(text)
	if text == "" {
		return 0, r.fault(line, "the time is empty", "fill it in or delete the row")
	}
	return r.clockField("time", text, line, &r.times)
}

// arrivalField reads when a row arrived; 0 if it does not say.
func (r *Reader) arrivalField(text string, line int) (int64, error) {
	text = strings.TrimSpace(text)
	if text == "" {
		return 0, nil
	}
	at, err := r.clockField("arrival", text, line, &r.arrivals)
	if at == 0 && err == nil {
		at = 1
	}
	return at, err
}

// clockField reads a point in time of a column all of whose fields are written in
// the same form.
func (r *Reader) clockField(what, text string, line int, column *timeForm) (int64, error) {
	ns, form, err := parseTime(text)
	if err != nil {
		return 0, r.fault(line, fmt.Sprintf("the %s %.40q %v", what, text, err),
			"write a date as 2006-01-02, a date-time as 2006-01-02T15:04:05Z, or whole nanoseconds since 1970")
	}
	if *column == timeUnknown {
		*column = form
	}
	if form != *column {
		return 0, r.fault(line, fmt.Sprintf("the %s %.40q is written in another way than those before it", what, text),
			fmt.Sprintf("write all %ss as dates or all as whole nanoseconds since 1970", what))
	}
	return ns, nil
}

// parseTime reads an RFC 3339 date (midnight UTC) or date-time, or a whole
// number of nanoseconds since 1970. The error says what is wrong in words that
// follow the time itself.
func parseTime(text string) (ns int64, form timeForm, err error) {
	if isInteger(text) {
		ns, err = strconv.ParseInt(text, 10, 64)
		if err != nil {
			return 0, 0, errors.New("does not fit 64 bits of nanoseconds")
		}
		return ns, timeInteger, nil
	}
	layout := time.RFC3339Nano
	if len(text) == len(time.DateOnly) {
		layout = time.DateOnly
	}
	at, err := time.Parse(layout, text)
	if err != nil {
		return 0, 0, errors.New("is no RFC 3339 date or date-time")
	}
	if ns = at.UnixNano(); !time.Unix(0, ns).Equal(at) { // UnixNano wraps around
		return 0, 0, errors.New("is outside 1677-09-22 to 2262-04-11")
	}
	return ns, timeText, nil
}

func (r *Reader) valueField(text string, line int) (float64, error) {
	text = strings.TrimSpace(text)
	if text == "" {
		return 0, r.fault(line, "the value is empty", "interpolate the gap or delete the row")
	}
	if isNumber(text) {
		x, err := strconv.ParseFloat(text, 64)
		if err == nil {
			return x, nil
		}
		if errors.Is(err, strconv.ErrRange) {
			return 0, r.fault(line, fmt.Sprintf("the value %.40q is too large for a 64-bit float", text), "rescale the column")
		}
	}
	if x, err := strconv.ParseFloat(text, 64); err == nil && (math.IsNaN(x) || math.IsInf(x, 0)) {
		return 0, r.fault(line, fmt.Sprintf("the value %.40q is not finite", text), "interpolate the gap or delete the row")
	}
	hint := "write decimal numbers such as 12.5 or 3e-7"
	if strings.Contains(text, ",") && isNumber(strings.ReplaceAll(text, ",", "")) {
		hint = "write a decimal point and no thousands separators"
	}
	return 0, r.fault(line, fmt.Sprintf("the value %.40q is not a number", text), hint)
}

// order says how a time fails to come after the one before it.
func (r *Reader) order(at int64, line int) error {
	if at == r.lastTime {
		return r.fault(line, fmt.Sprintf("the time %s was already on line %d", r.timeText(at), r.lastLine), "keep one row for each time")
	}
	return r.fault(line, fmt.Sprintf("the time %s comes after the later %s of line %d", r.timeText(at), r.timeText(r.lastTime), r.lastLine),
		"sort the rows by time, oldest first")
}

func (r *Reader) timeText(ns int64) string {
	if r.times == timeInteger {
		return strconv.FormatInt(ns, 10)
	}
	at := time.Unix(0, ns).UTC()
	if ns%int64(24*time.Hour) == 0 {
		return at.Format(time.DateOnly)
	}
	return at.Format(time.RFC3339Nano)
}

// isNumber allows what people write in tables, and not what else a float parser
// takes: hexadecimal, underscores, words.
func isNumber(s string) bool {
	return s != "" && strings.Trim(s, "0123456789+-.eE") == "" && strings.ContainsAny(s, "0123456789")
}

func isInteger(s string) bool {
	digits := strings.TrimLeft(s, "+-")
	return len(s)-len(digits) <= 1 && digits != "" && strings.Trim(digits, "0123456789") == ""
}

// looksLikeData reports a first line that is a row already.
func looksLikeData(names []string) bool {
	for _, n := range names {
		if _, _, err := parseTime(n); err == nil {
			return true
		}
	}
	return false
}
