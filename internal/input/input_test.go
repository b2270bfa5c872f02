package input

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/usp-project/usp/internal/examples"
)

// readAll returns every observation of an input and the error that ended it,
// nil for its end.
func readAll(text string, o Options) ([]Observation, *Reader, error) {
	r := NewReader(strings.NewReader(text), "f.csv", o)
	var all []Observation
	for {
		obs, err := r.Next()
		if err == io.EOF {
			return all, r, nil
		}
		if err != nil {
			return all, r, err
		}
		all = append(all, obs)
	}
}

func date(y int, m time.Month, d int) int64 {
	return time.Date(y, m, d, 0, 0, 0, 0, time.UTC).UnixNano()
}

func TestRead(t *testing.T) {
	two := []Observation{
		{Row: 1, Line: 2, Time: date(1700, 1, 1), Value: 5},
		{Row: 2, Line: 3, Time: date(1701, 1, 1), Value: 11.5},
	}
	tests := []struct {
		name, text string
		o          Options
		want       []Observation
	}{
		{"plain", "time,value\n1700-01-01,5\n1701-01-01,11.5\n", Options{}, two},
		{"no last line break", "time,value\n1700-01-01,5\n1701-01-01,11.5", Options{}, two},
		{"CRLF", "time,value\r\n1700-01-01,5\r\n1701-01-01,11.5\r\n", Options{}, two},
		{"byte order mark", "\ufefftime,value\n1700-01-01,5\n1701-01-01,11.5\n", Options{}, two},
		{"spaces", "time, value \n1700-01-01, 5\n 1701-01-01,\t11.5 \n", Options{}, two},
		{"quoted", "\"time\",\"value\"\n\"1700-01-01\",\"5\"\n1701-01-01,\"11.5\"\n", Options{}, two},
		{"date-times and offsets", "time,value\n1700-01-01T00:00:00Z,5\n1701-01-01T02:00:00+02:00,1.15e1\n", Options{}, two},
		{
			"other columns, in another order", "close,\"note, long\",day\n5,\"a \"\"b\"\"\",1700-01-01\n11.5,,1701-01-01\n",
			Options{TimeColumn: "day", ValueColumn: "close"}, two,
		},
		{"integer times", "time,value\n-5,-1\n0,+2\n9223372036854775807,.5\n", Options{}, []Observation{
			{1, 2, -5, -1, 0}, {2, 3, 0, 2, 0}, {3, 4, 9223372036854775807, .5, 0},
		}},
		{"arrivals, in a form of their own, one before its time, one not known", "seen,time,value\n2,1970-01-01,1\n ,1970-01-02,2\n0,1970-01-03,3\n-7,1970-01-04,4\n", Options{ArrivalColumn: "seen"}, []Observation{
			{1, 2, 0, 1, 2}, {2, 3, date(1970, 1, 2), 2, 0}, {3, 4, date(1970, 1, 3), 3, 1}, {4, 5, date(1970, 1, 4), 4, -7},
		}},
		{"an arrival column that is not named", "time,value,arrival\n1,2,much\n", Options{}, []Observation{{1, 2, 1, 2, 0}}},
		{"nanoseconds", "time,value\n2001-02-03T04:05:06.000000007Z,1\n", Options{}, []Observation{
			{1, 2, date(2001, 2, 3) + (4*3600+5*60+6)*1e9 + 7, 1, 0},
		}},
		{"blank lines and a quoted line break", "\ntime,value,x\n\n0,1,\"a\nb\"\n\n1,2,\n\n", Options{}, []Observation{
			{1, 4, 0, 1, 0}, {2, 7, 1, 2, 0},
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, _, err := readAll(tt.text, tt.o)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestFaults wants one clear line for each fault, with the line it is on.
func TestFaults(t *testing.T) {
	const head = "time,value\n"
	day := Options{TimeColumn: "day", ValueColumn: "day"}
	seen := Options{ArrivalColumn: "seen"}
	tests := []struct {
		name, text string
		o          Options
		want       string
	}{
		{"empty", "", Options{}, "f.csv: is empty; give a header line and at least one row"},
		{"only line breaks", "\n\n", Options{}, "f.csv: is empty; give a header line and at least one row"},
		{"only a byte order mark", "\ufeff", Options{}, "f.csv: is empty; give a header line and at least one row"},
		{"header only", head, Options{}, "f.csv:1: there is a header but no row; add at least one row"},
		{"no value column", "time,close\n0,1\n", Options{}, `f.csv:1: there is no column "value" among "time", "close"; name the right one with --value-column`},
		{"no time column", "\nday,value\n0,1\n", Options{}, `f.csv:2: there is no column "time" among "day", "value"; name the right one with --time-column`},
		{"semicolons", "time;value\n0;1\n", Options{}, `f.csv:1: there is no column "time" among "time;value"; separate the columns with commas`},
		{"no header", "1700-01-01,5\n", Options{}, `f.csv:1: there is no column "time" among "1700-01-01", "5"; put a header line before the first row`},
		{"twice the same column", "time,value,value\n0,1,2\n", Options{}, `f.csv:1: two columns are named "value"; rename one of them`},
		{"one column for both", "day\n1\n", day, `f.csv: the column "day" cannot be both time and value; name two columns with --time-column and --value-column`},
		{"no arrival column", "time,value\n0,1\n", seen, `f.csv:1: there is no column "seen" among "time", "value"; name the right one with --arrival-column`},
		{"twice the arrival column", "time,seen,value,seen\n0,1,2,3\n", seen, `f.csv:1: two columns are named "seen"; rename one of them`},
		{"values as arrivals", "time,value\n0,1\n", Options{ArrivalColumn: "value"}, `f.csv: the column "value" cannot be both value and arrival; name two columns with --value-column and --arrival-column`},
		{"times as arrivals", "time,value\n0,1\n", Options{ArrivalColumn: "time"}, `f.csv: the column "time" cannot be both time and arrival; name two columns with --time-column and --arrival-column`},
		{
			"bad arrival", "time,value,seen\n0,1,\n1,1,soon\n", seen,
			`f.csv:3: the arrival "soon" is no RFC 3339 date or date-time; write a date as 2006-01-02, a date-time as 2006-01-02T15:04:05Z, or whole nanoseconds since 1970`,
		},
		{
			"two forms of arrival", "time,value,seen\n0,1,2001-01-01\n1,1,\n2,1,5\n", seen,
			`f.csv:4: the arrival "5" is written in another way than those before it; write all arrivals as dates or all as whole nanoseconds since 1970`,
		},
		{"UTF-16", "\xff\xfet\x00", Options{}, "f.csv:1: the file is UTF-16; convert it to UTF-8: iconv -f UTF-16 -t UTF-8"},
		{"binary", "\x1f\x8b\x08\x00\xff", Options{}, "f.csv:1: the header is not text; give a CSV file in UTF-8"},
		{"text in value", head + "0,1\n1,abc\n", Options{}, `f.csv:3: the value "abc" is not a number; write decimal numbers such as 12.5 or 3e-7`},
		{"hexadecimal", head + "0,0x1p4\n", Options{}, `f.csv:2: the value "0x1p4" is not a number; write decimal numbers such as 12.5 or 3e-7`},
		{"decimal comma", head + "0,\"1,5\"\n", Options{}, `f.csv:2: the value "1,5" is not a number; write a decimal point and no thousands separators`},
		{"no value", head + "0,\n", Options{}, "f.csv:2: the value is empty; interpolate the gap or delete the row"},
		{"NaN", head + "0,NaN\n", Options{}, `f.csv:2: the value "NaN" is not finite; interpolate the gap or delete the row`},
		{"+Inf", head + "0,1\n1,+Inf\n", Options{}, `f.csv:3: the value "+Inf" is not finite; interpolate the gap or delete the row`},
		{"-infinity", head + "0,-infinity\n", Options{}, `f.csv:2: the value "-infinity" is not finite; interpolate the gap or delete the row`},
		{"overflow", head + "0,1e999\n", Options{}, `f.csv:2: the value "1e999" is too large for a 64-bit float; rescale the column`},
		{"no time", head + ",1\n", Options{}, "f.csv:2: the time is empty; fill it in or delete the row"},
		{
			"bad time", head + "01/02/2003,1\n", Options{},
			`f.csv:2: the time "01/02/2003" is no RFC 3339 date or date-time; write a date as 2006-01-02, a date-time as 2006-01-02T15:04:05Z, or whole nanoseconds since 1970`,
		},
		{
			"time before the range", head + "1066-10-14,1\n", Options{},
			`f.csv:2: the time "1066-10-14" is outside 1677-09-22 to 2262-04-11; write a date as 2006-01-02, a date-time as 2006-01-02T15:04:05Z, or whole nanoseconds since 1970`,
		},
		{
			"two forms of time", head + "0,1\n2001-01-01,2\n", Options{},
			`f.csv:3: the time "2001-01-01" is written in another way than those before it; write all times as dates or all as whole nanoseconds since 1970`,
		},
		{
			"unsorted", head + "2001-01-02,1\n2001-01-01,2\n", Options{},
			"f.csv:3: the time 2001-01-01 comes after the later 2001-01-02 of line 2; sort the rows by time, oldest first",
		},
		{"duplicate", head + "7,1\n8,1\n8,2\n", Options{}, "f.csv:4: the time 8 was already on line 3; keep one row for each time"},
		{
			"duplicate instant", head + "2001-01-01T01:00:00+01:00,1\n2001-01-01T00:00:00Z,2\n", Options{},
			"f.csv:3: the time 2001-01-01 was already on line 2; keep one row for each time",
		},
		{
			"short row", head + "0,1\n1\n", Options{},
			"f.csv:3: the row has 1 field, the header has 2; give every row the columns of the header, and quote fields that hold commas",
		},
		{
			"long row", head + "0,1,5\n", Options{},
			"f.csv:2: the row has 3 fields, the header has 2; give every row the columns of the header, and quote fields that hold commas",
		},
		{"bare quote", head + "0,1\"\n", Options{}, "f.csv:2: a quote stands where none may stand; quote the whole field, and write a quote inside it twice"},
		{
			"open quote", head + "0,1\n1,\"2\n3,4\n", Options{},
			`f.csv:3: a quoted field is not closed or has text behind its closing quote; end it with ", and write a quote inside it twice`,
		},
		{
			"endless record", head + "0,\"" + strings.Repeat("x\n", MaxRecord), Options{},
			"f.csv:2: the record is longer than 1048576 bytes; check that a quoted field is closed and that the file is CSV",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, r, err := readAll(tt.text, tt.o)
			var de *DataError
			if !errors.As(err, &de) || err.Error() != tt.want {
				t.Fatalf("got  %v\nwant %s", err, tt.want)
			}
			if strings.Contains(err.Error(), "\n") {
				t.Error("more than one line")
			}
			if _, again := r.Next(); again != err {
				t.Errorf("the next call gave %v", again)
			}
			if _, err := ScanBytes("f.csv", []byte(tt.text), tt.o); err == nil || err.Error() != tt.want {
				t.Errorf("ScanBytes gave %v", err)
			}
		})
	}
}

// TestStream wants each row out before the next line has been written.
func TestStream(t *testing.T) {
	pr, pw := io.Pipe()
	defer pr.Close()
	r := NewReader(pr, "-", Options{})
	wrote := make(chan string)
	go func() {
		defer close(wrote)
		for _, line := range []string{"time,value\n", "0,1\n", "1,2\n"} {
			io.WriteString(pw, line) //nolint:errcheck // the reader's end says it
			wrote <- line
		}
		<-wrote
		io.WriteString(pw, "2,x\n") //nolint:errcheck // as above
	}()
	// The pipe has no buffer: a Reader that wanted more than one row before it
	// returned the first would wait for ever at the second receive from wrote.
	for i, want := range []string{"time,value\n0,1\n", "1,2\n"} {
		got := make(chan error, 1)
		go func() { _, err := r.Next(); got <- err }()
		for sent := ""; sent != want; {
			sent += <-wrote
		}
		if err := <-got; err != nil {
			t.Fatalf("row %d: %v", i+1, err)
		}
	}
	if got, want := r.Consumed(), prefix("time,value\n0,1\n1,2\n", 2); got != want {
		t.Errorf("consumed %+v, want %+v", got, want)
	}
	wrote <- ""
	if _, err := r.Next(); err == nil || !strings.HasPrefix(err.Error(), `standard input:4: the value "x" is not a number`) {
		t.Errorf("got %v", err)
	}
}

func prefix(text string, rows uint64) Prefix {
	return Prefix{Rows: rows, Bytes: int64(len(text)), SHA256: sha256.Sum256([]byte(text))}
}

// TestConsumed wants the prefix to end exactly behind each row.
func TestConsumed(t *testing.T) {
	parts := []string{"\ufefftime,value,x\r\n\r\n0,1,\"a\r\nb\"\r\n", "1,2,\n", "\n\n2,3,", "\n"}
	text := strings.Join(parts, "")
	r := NewReader(iotest.OneByteReader(strings.NewReader(text)), "f.csv", Options{})
	if got := r.Consumed(); got != prefix("", 0) {
		t.Errorf("before the first row: %+v", got)
	}
	for i, end := range []string{parts[0], parts[0] + parts[1], text} {
		if _, err := r.Next(); err != nil {
			t.Fatal(err)
		}
		if got, want := r.Consumed(), prefix(end, uint64(i+1)); got != want {
			t.Errorf("row %d: %+v, want %+v", i+1, got, want)
		}
	}
	if _, err := r.Next(); err != io.EOF {
		t.Errorf("got %v, want io.EOF", err)
	}
	s, err := ScanBytes("f.csv", []byte(text+"\n\n"), Options{})
	want := Summary{Prefix: prefix(text, 3), First: 0, Last: 2, Columns: []string{"time", "value", "x"}, Trailing: 2}
	if diff := cmp.Diff(want, s); err != nil || diff != "" {
		t.Error(err, diff)
	}
}

func TestResume(t *testing.T) {
	const text = "time,value\n0,1\n1,2\n2,3\n"
	_, r, err := readAll(text[:len("time,value\n0,1\n1,2\n")], Options{})
	if err != nil {
		t.Fatal(err)
	}
	p := r.Consumed()

	again := NewReader(strings.NewReader(text), "f.csv", Options{})
	if err := again.Resume(p); err != nil {
		t.Fatal(err)
	}
	if obs, err := again.Next(); err != nil || obs.Row != 3 || obs.Value != 3 {
		t.Errorf("after Resume: %+v, %v", obs, err)
	}
	for name, text := range map[string]string{
		"value changed":    "time,value\n0,1\n1,4\n2,3\n",
		"value longer":     "time,value\n0,1\n1,20\n2,3\n",
		"column renamed":   "time,value,x\n0,1,\n1,2,\n",
		"too short":        "time,value\n0,1\n",
		"cut inside a row": "time,value\n0,1\n1,2",
		"not CSV any more": "time,value\n0,1\n1,\n",
	} {
		err := NewReader(strings.NewReader(text), "f.csv", Options{}).Resume(p)
		var de *DataError
		if !errors.As(err, &de) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// TestErrorOfReading wants a failing read to be no *DataError.
func TestErrorOfReading(t *testing.T) {
	broken := errors.New("broken")
	for text, want := range map[string]string{
		"":                             "f.csv:1: read: broken",
		"time,va":                      "f.csv:1: read: broken",
		"time,value\n":                 "f.csv:2: read: broken",
		"\ntime,value\n0,1\n\n1,1\n2,": "f.csv:6: read: broken",
	} {
		r := NewReader(io.MultiReader(strings.NewReader(text), iotest.ErrReader(broken)), "f.csv", Options{})
		var err error
		for err == nil {
			_, err = r.Next()
		}
		var de *DataError
		if !errors.Is(err, broken) || errors.As(err, &de) || err.Error() != want {
			t.Errorf("after %q: %v, want %s", text, err, want)
		}
	}
}

func TestScan(t *testing.T) {
	dir := t.TempDir()
	good := filepath.Join(dir, "good.csv")
	s, _ := examples.Lookup("co2")
	if err := os.WriteFile(good, s.CSV, 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := Scan(good, Options{})
	if err != nil {
		t.Fatal(err)
	}
	want := Summary{Prefix: prefix(string(s.CSV), 2284), First: date(1958, 3, 29), Last: date(2001, 12, 29), Columns: []string{"time", "value"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	var de *DataError
	if _, err := Scan(dir, Options{}); !errors.As(err, &de) || de.What != "is a directory" {
		t.Errorf("a directory: %v", err)
	}
	if _, err := Scan(os.DevNull, Options{}); !errors.As(err, &de) || de.What != "is not a regular file" {
		t.Errorf("a device: %v", err)
	}
	_, err = Scan(filepath.Join(dir, "none.csv"), Options{})
	if !errors.Is(err, fs.ErrNotExist) || errors.As(err, &de) || strings.Count(err.Error(), "none.csv") != 1 {
		t.Errorf("no file: %v", err)
	}
}

func TestPrefixJSON(t *testing.T) {
	p := prefix("time,value\n0,1\n", 1)
	b, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	var got Prefix
	if err := json.Unmarshal(b, &got); err != nil || got != p {
		t.Errorf("%s: %+v, %v", b, got, err)
	}
	for _, bad := range []string{`{"sha256":"12"}`, `{"sha256":"` + strings.Repeat("g", 64) + `"}`} {
		if err := json.Unmarshal([]byte(bad), &got); err == nil {
			t.Errorf("%s was accepted", bad)
		}
	}
}

// TestChunks wants the same result however the bytes arrive.
func TestChunks(t *testing.T) {
	s, _ := examples.Lookup("nile")
	whole, err := ScanBytes("f.csv", s.CSV, Options{})
	if err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(t *rapid.T) {
		var parts []io.Reader
		for rest := s.CSV; len(rest) > 0; {
			n := min(len(rest), rapid.IntRange(1, 300).Draw(t, "n"))
			parts = append(parts, bytes.NewReader(rest[:n]))
			rest = rest[n:]
		}
		got, err := scan(io.MultiReader(parts...), "f.csv", int64(len(s.CSV)), Options{})
		if diff := cmp.Diff(whole, got); err != nil || diff != "" {
			t.Fatal(err, diff)
		}
	})
}

// FuzzReader wants, whatever the bytes are: no panic, finite values, rising
// times, and a prefix that is the digest of what it says and reads the same
// again.
func FuzzReader(f *testing.F) {
	for _, s := range []string{
		"time,value\n0,1\n1,2\n", "\ufefftime,value\r\n2001-01-01,1e3\r\n", "time,value,x\n0,1,\"a\nb\"\n\n1,2,\"\"\"\"",
		"time,value\n0,NaN\n", "time;value\n", "\xff\xfe", "time,value\n\"0\",\"1", "value,time\n-0,5",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		all, r, err := readAll(string(data), Options{})
		p := r.Consumed()
		if p.Bytes > int64(len(data)) || p != prefix(string(data[:p.Bytes]), uint64(len(all))) {
			t.Fatalf("consumed %+v of %q", p, data)
		}
		for i, obs := range all {
			if obs.Value-obs.Value != 0 || i > 0 && (obs.Time <= all[i-1].Time || obs.Line <= all[i-1].Line) || obs.Row != uint64(i+1) {
				t.Fatalf("row %d: %+v", i, obs)
			}
		}
		var de *DataError
		if err != nil && !errors.As(err, &de) {
			t.Fatal(err)
		}
		if de != nil && strings.ContainsAny(de.Error(), "\n\r") {
			t.Fatalf("more than one line: %q", de.Error())
		}
		if len(all) == 0 {
			return
		}
		if again, r2, err := readAll(string(data[:p.Bytes]), Options{}); err != nil || r2.Consumed() != p || !cmp.Equal(all, again) {
			t.Fatalf("the prefix %q reads otherwise: %v", data[:p.Bytes], err)
		}
	})
}

func BenchmarkReader(b *testing.B) {
	s, _ := examples.Lookup("co2")
	b.SetBytes(int64(len(s.CSV)))
	for b.Loop() {
		if _, err := scan(bufio.NewReader(bytes.NewReader(s.CSV)), "f.csv", int64(len(s.CSV)), Options{}); err != nil {
			b.Fatal(err)
		}
	}
}
