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

// forecastWriter writes one row per step: the forecast that was made for it one step before, and the interval. The
// first row has none.
type forecastWriter struct {
	name   string
	file   *os.File // nil for standard output
	stream bool     // somebody may be reading along, and nothing can be taken back
	buf    *bufio.Writer
	csv    *csv.Writer
	row    [5]string
}

// newForecastWriter opens the file and changes nothing in it yet: keepThrough does, once the run has begun. The file must
// not be the input. What is not a regular file, such as a pipe or a terminal, is written to as it is.
func newForecastWriter(name string, stdout io.Writer, input os.FileInfo) (*forecastWriter, error) {
	f := &forecastWriter{name: name}
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

func (f *forecastWriter) header() error {
	return f.csv.Write([]string{"step", "time", "forecast", "lower", "upper"})
}

// keepThrough makes the output hold the rows up to the given step and no others, so that after a resume it is as if the
// run had not been interrupted. Step 0 begins a new output.
func (f *forecastWriter) keepThrough(step uint64) error {
	if f.stream {
		if step == 0 {
			return f.header()
		}
		return nil
	}
	in := bufio.NewReader(f.file)
	end := int64(0)
	for step > 0 {
		line, err := in.ReadString('\n')
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return err
		}
		first, _, _ := strings.Cut(line, ",")
		if n, err := strconv.ParseUint(first, 10, 64); err == nil && n > step {
			break
		}
		end += int64(len(line))
	}
	if err := f.file.Truncate(end); err != nil {
		return err
	}
	if _, err := f.file.Seek(end, io.SeekStart); err != nil {
		return err
	}
	if end == 0 {
		return f.header()
	}
	return nil
}

func (f *forecastWriter) write(out *predictor.Output) error {
	f.row = [5]string{strconv.FormatUint(out.Step, 10), time.Unix(0, out.Time).UTC().Format(time.RFC3339Nano)}
	if out.HasPrior {
		for i, v := range []float64{out.Prior, out.PriorLower, out.PriorUpper} {
			f.row[2+i] = strconv.FormatFloat(v, 'g', -1, 64)
		}
	}
	if err := f.csv.Write(f.row[:]); err != nil {
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
