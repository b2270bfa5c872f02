package cli

import (
	"bufio"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/usp-project/usp/predictor"
)

// forecastColumns are those of the table: what was forecast for a step one step before, the interval, and quantiles of the
// predictive law.
var forecastColumns = []string{"step", "time", "forecast", "lower", "upper", "q05", "q25", "q50", "q75", "q95"}

// forecastQuantiles are the probabilities of the columns behind the interval.
var forecastQuantiles = [...]float64{0.05, 0.25, 0.5, 0.75, 0.95}

// forecastWriter writes one row per step. The first has no forecast, those up to the end of the warm-up no quantiles.
type forecastWriter struct {
	name   string
	file   *os.File // nil for standard output
	stream bool     // somebody may be reading along, and nothing can be taken back
	buf    *bufio.Writer
	csv    *csv.Writer
	row    []string
}

// newForecastWriter opens the file and changes nothing in it yet: keepThrough does, once the run has begun. The file must
// not be the input. What is not a regular file, such as a pipe or a terminal, is written to as it is.
func newForecastWriter(name string, stdout io.Writer, input os.FileInfo) (*forecastWriter, error) {
	f := &forecastWriter{name: name, row: make([]string, len(forecastColumns))}
	if name == "-" {
		f.buf, f.stream = bufio.NewWriter(stdout), true
		f.csv = csv.NewWriter(f.buf)
		return f, nil
	}
	flags := os.O_RDWR | os.O_CREATE
	if info, err := os.Stat(name); err == nil {
		if input != nil && os.SameFile(info, input) {
			return nil, usageError(fmt.Errorf("--forecasts %s is the input itself; name another file", name))
		}
		if f.stream = !info.Mode().IsRegular(); f.stream {
			flags = os.O_WRONLY
		}
	}
	var err error
	if f.file, err = os.OpenFile(filepath.Clean(name), flags, 0o644); err != nil {
		return nil, err
	}
	f.buf = bufio.NewWriter(f.file)
	f.csv = csv.NewWriter(f.buf)
	return f, nil
}

func (f *forecastWriter) header() error { return f.csv.Write(forecastColumns) }

// checkColumns refuses to go on with a table that has other columns than this one writes. A file that is not there, or has
// no complete first line, is begun anew.
func (f *forecastWriter) checkColumns() error {
	if f.stream {
		return nil
	}
	line, err := bufio.NewReader(io.LimitReader(f.file, 4096)).ReadString('\n')
	if err == nil && strings.TrimRight(line, "\r\n") != strings.Join(forecastColumns, ",") {
		return usageError(fmt.Errorf("--forecasts %s has other columns than %s; name another file, or move that one away", f.name, strings.Join(forecastColumns, ",")))
	} else if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	_, err = f.file.Seek(0, io.SeekStart)
	return err
}

// keepThrough makes the output hold the rows up to the given step and no others, so that after a resume it is as if the
// run had not been interrupted. Step 0 begins a new output. kept is the last step that the output has: rows behind it are
// lost where the system went down before it had written them.
func (f *forecastWriter) keepThrough(step uint64) (kept uint64, err error) {
	if f.stream {
		if step == 0 {
			return 0, f.header()
		}
		return step, nil
	}
	in := bufio.NewReader(f.file)
	end := int64(0)
	for step > 0 {
		line, err := in.ReadString('\n')
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return 0, err
		}
		first, _, _ := strings.Cut(line, ",")
		if n, err := strconv.ParseUint(first, 10, 64); err == nil {
			if n > step {
				break
			}
			kept = n
		}
		end += int64(len(line))
	}
	if err := f.file.Truncate(end); err != nil {
		return 0, err
	}
	if _, err := f.file.Seek(end, io.SeekStart); err != nil {
		return 0, err
	}
	if end == 0 {
		return 0, f.header()
	}
	return kept, nil
}

// write adds the row of a step; law is the one that stood before it, nil if there was none.
func (f *forecastWriter) write(out *predictor.Output, law *predictor.Law) error {
	number := func(x float64) string { return strconv.FormatFloat(x, 'g', -1, 64) }
	row := append(f.row[:0], strconv.FormatUint(out.Step, 10), time.Unix(0, out.Time).UTC().Format(time.RFC3339Nano))
	if out.HasPrior {
		row = append(row, number(out.Prior), number(out.PriorLower), number(out.PriorUpper))
	}
	if out.HasPrior && law != nil {
		for _, p := range forecastQuantiles {
			row = append(row, number(law.Quantile(p)))
		}
	}
	for len(row) < len(forecastColumns) {
		row = append(row, "")
	}
	if err := f.csv.Write(row); err != nil {
		return fmt.Errorf("forecasts: %w", err)
	}
	if f.stream {
		return f.flush()
	}
	return nil
}

func (f *forecastWriter) flush() error {
	f.csv.Flush()
	if err := errors.Join(f.csv.Error(), f.buf.Flush()); err != nil {
		return fmt.Errorf("forecasts %s: %w", f.name, err)
	}
	return nil
}

func (f *forecastWriter) close() {
	f.flush() // the error, if any, was seen when the run ended
	if f.file != nil {
		f.file.Close()
	}
}
