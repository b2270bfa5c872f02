package cli

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/usp-project/usp/internal/examples"
	"github.com/usp-project/usp/internal/input"
	"github.com/usp-project/usp/predictor"
)

// The kinds of input.
const (
	kindFile    = "file"
	kindExample = "example"
	kindStdin   = "stdin"
)

// inputMeta says in the manifest what a run read, without a value of it. Size and SHA256 are of the prefix that was
// there when the run began, up to its last row; a file may grow behind it. Standard input has none: there the snapshots
// hold the consumed prefix.
type inputMeta struct {
	Kind        string    `json:"kind"`
	Path        string    `json:"path,omitempty"` // of a file, relative to the directory of the run directories
	Name        string    `json:"name,omitempty"` // of an example
	Rows        uint64    `json:"rows,omitempty"`
	Size        int64     `json:"size,omitempty"`
	SHA256      input.Sum `json:"sha256,omitzero"`
	TimeColumn  string    `json:"time_column"`
	ValueColumn string    `json:"value_column"`

	ArrivalColumn string `json:"arrival_column,omitempty"` // none: rows arrive at their times
}

// columns says how to read the input.
func (m *inputMeta) columns() input.Options {
	return input.Options{TimeColumn: m.TimeColumn, ValueColumn: m.ValueColumn, ArrivalColumn: m.ArrivalColumn}
}

// columns are those that the settings name.
func (a *app) columns() input.Options {
	r := &a.cfg.Run
	return input.Options{TimeColumn: r.TimeColumn, ValueColumn: r.ValueColumn, ArrivalColumn: r.ArrivalColumn}
}

// observation is a row as the predictor takes it.
func observation(row input.Observation) predictor.Observation {
	return predictor.Observation{Time: row.Time, Value: row.Value, Arrival: row.Arrival}
}

// String names the input, without the directories that it is in.
func (m *inputMeta) String() string {
	switch m.Kind {
	case kindExample:
		return examples.Prefix + m.Name
	case kindFile:
		return path.Base(m.Path)
	}
	return "standard input"
}

// relativeTo stores the path so that it says nothing of the machine and survives moving input and runs together.
func (m *inputMeta) relativeTo(runs string) {
	if m.Kind != kindFile {
		return
	}
	base, err1 := filepath.Abs(runs)
	file, err2 := filepath.Abs(m.Path)
	if rel, err := filepath.Rel(base, file); errors.Join(err, err1, err2) == nil {
		m.Path = filepath.ToSlash(rel)
	}
}

// source is an open input.
type source struct {
	name   string // in messages
	meta   inputMeta
	rows   uint64 // known in advance, or 0
	season int    // of an example
	reader *input.Reader
	file   io.Closer
	info   fs.FileInfo // of a file

	first    input.Observation // read ahead by peek
	firstErr error
	peeked   bool

	arriving chan rowOrError // rows of a standard input that may be silent for long
	taken    input.Prefix    // consumed by the row taken from arriving last
}

type rowOrError struct {
	obs      input.Observation
	consumed input.Prefix
	err      error
}

// openSource opens an input and checks all of it that can be checked now: everything but a standard input.
func openSource(name string, o input.Options, stdin io.Reader) (*source, error) {
	s := &source{name: name, meta: inputMeta{TimeColumn: o.TimeColumn, ValueColumn: o.ValueColumn, ArrivalColumn: o.ArrivalColumn}}
	switch {
	case name == "-":
		s.name, s.meta.Kind = "stdin", kindStdin
		s.reader = input.NewReader(stdin, "stdin", o)
		return s, nil
	case strings.HasPrefix(name, examples.Prefix):
		return s, s.openExample(strings.TrimPrefix(name, examples.Prefix))
	}
	return s, s.openFile(name, o)
}

func (s *source) openExample(name string) error {
	e, ok := examples.Lookup(name)
	if !ok {
		return usageError(fmt.Errorf("there is no example %q; there are %s", name, strings.Join(examples.Names(), ", ")))
	}
	o := input.Options{} // examples have their own column names, whatever is configured for files
	sum, err := input.ScanBytes(s.name, e.CSV, o)
	if err != nil {
		return err
	}
	s.known(sum.Prefix)
	s.season = e.Season
	s.meta.Kind, s.meta.Name, s.meta.TimeColumn, s.meta.ValueColumn, s.meta.ArrivalColumn = kindExample, name, "time", "value", ""
	s.reader = input.NewReader(bytes.NewReader(e.CSV), s.name, o)
	return nil
}

func (s *source) openFile(name string, o input.Options) error {
	sum, err := input.Scan(name, o)
	if err != nil {
		return err
	}
	s.known(sum.Prefix)
	s.meta.Kind, s.meta.Path = kindFile, name
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	s.file = f
	if s.info, err = f.Stat(); err != nil {
		return err
	}
	s.reader = input.NewReader(f, name, o)
	return nil
}

func (s *source) known(p input.Prefix) {
	s.rows, s.meta.Rows, s.meta.Size, s.meta.SHA256 = p.Rows, p.Rows, p.Bytes, p.SHA256
}

// checkPrefix refuses an input that is not the one a run was started with, or that with rows added.
func (s *source) checkPrefix(want inputMeta) error {
	if want.Kind == kindStdin || s.meta.Kind == kindStdin || want.Size == 0 {
		return nil // the snapshot's consumed prefix is checked instead
	}
	var r io.Reader
	if s.meta.Kind == kindExample {
		e, _ := examples.Lookup(s.meta.Name)
		r = bytes.NewReader(e.CSV)
	} else {
		f, err := os.Open(s.name)
		if err != nil {
			return err
		}
		defer f.Close()
		r = f
	}
	h := sha256.New()
	if n, err := io.CopyN(h, r, want.Size); err != nil && !errors.Is(err, io.EOF) {
		return err
	} else if n < want.Size || input.Sum(h.Sum(nil)) != want.SHA256 {
		return usageError(fmt.Errorf("%s: not the input that the run was started with: its first %d bytes (%d rows) differ; the same input is needed, rows may only have been added at its end", s.name, want.Size, want.Rows))
	}
	return nil
}

// peek reads the first row of a standard input, so that an input without one creates nothing.
func (s *source) peek() error {
	s.first, s.firstErr = s.reader.Next()
	s.peeked = true
	return s.firstErr
}

// next returns the next row. A standard input may be silent for long: waiting for it ends with ctx.
func (s *source) next(ctx context.Context) (input.Observation, error) {
	if s.peeked {
		s.peeked = false
		return s.first, s.firstErr
	}
	if s.meta.Kind != kindStdin {
		return s.reader.Next()
	}
	if s.arriving == nil {
		s.arriving, s.taken = make(chan rowOrError), s.reader.Consumed()
		go s.pump(ctx)
	}
	select {
	case r := <-s.arriving:
		if r.err == nil {
			s.taken = r.consumed
		}
		return r.obs, r.err
	case <-ctx.Done():
		return input.Observation{}, context.Cause(ctx)
	}
}

// pump reads rows until the input or ctx ends. A read that never returns is left to the end of the process.
func (s *source) pump(ctx context.Context) {
	for {
		obs, err := s.reader.Next()
		select {
		case s.arriving <- rowOrError{obs, s.reader.Consumed(), err}:
		case <-ctx.Done():
			return
		}
		if err != nil {
			return
		}
	}
}

// consumed identifies the input up to the row that next returned last.
func (s *source) consumed() input.Prefix {
	if s.arriving != nil {
		return s.taken
	}
	return s.reader.Consumed()
}

func (s *source) close() {
	if s.file != nil {
		s.file.Close()
	}
}

// locate finds the input of a run again: where the user says, else where the manifest says. how is the way to say it.
func locate(args []string, m inputMeta, runs, how string) (string, error) {
	if len(args) > 0 {
		return args[0], nil
	}
	switch m.Kind {
	case kindExample:
		return examples.Prefix + m.Name, nil
	case kindFile:
		path := filepath.FromSlash(m.Path)
		if !filepath.IsAbs(path) {
			path = filepath.Join(runs, path)
		}
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			return "", usageError(fmt.Errorf("%s: the run's input is not there any more; say where it is: %s", path, how))
		}
		return path, nil
	}
	return "", usageError(fmt.Errorf("the run read standard input; give a file with the same input, or pipe the same input again, with - as the name: %s", how))
}
