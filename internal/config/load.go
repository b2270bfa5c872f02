package config

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/bits"
	"net"
	"os"
	"reflect"
	"slices"
	"strings"

	"github.com/usp-project/usp/internal/witness"
	"github.com/usp-project/usp/predictor"
	"github.com/usp-project/usp/remote"
	"github.com/usp-project/usp/snapshot"
)

// Source is where a setting may come from.
type Source uint8

// The sources, from the weakest to the strongest.
const (
	FromDefault Source = iota
	FromFile
	FromEnv
	FromFlag
)

// Origin says where the value of a setting comes from.
type Origin struct {
	Source Source
	Name   string // the file, variable or flag; empty for a default
	Line   int    // in the file
}

// String returns "default", "FILE:LINE", "NAME" of a variable, or "--FLAG".
func (o Origin) String() string {
	switch o.Source {
	case FromFile:
		return fmt.Sprintf("%s:%d", o.Name, o.Line)
	case FromEnv, FromFlag:
		return o.Name
	}
	return "default"
}

// Setting is a value that a flag gives to a key.
type Setting struct {
	Key   string // "run.dir"
	Value string // as an environment variable would hold it
	Flag  string // "--dir", for messages
}

// Options says what Load is to read. The zero value gives the defaults.
type Options struct {
	// File is the file that the user named; that it does not exist is an
	// error. If it is empty, USP_CONFIG of Env names it.
	File string
	// Search lists files of which the first that exists is read, if none is
	// named. See FileNames.
	Search []string
	// Env holds the environment as from os.Environ.
	Env []string
	// Flags are the settings given on the command line.
	Flags []Setting
	// ReadFile reads a file; the default is os.ReadFile.
	ReadFile func(name string) ([]byte, error)
}

// Loaded is a checked configuration.
type Loaded struct {
	Config
	File     string   // that was read; empty for none
	Warnings []string // one line each, for the user
	origins  map[string]Origin
}

// Origin says where the setting of that dotted name comes from.
func (l *Loaded) Origin(key string) Origin { return l.origins[key] }

// Load reads every source, the stronger over the weaker, and checks the
// result. What is wrong with the settings is an Errors with all faults; any
// other error is that a file cannot be read.
func Load(o Options) (*Loaded, error) {
	l := &Loaded{Config: Default(), origins: map[string]Origin{}}
	env := environ(o.Env)
	text, err := l.find(o, env)
	if err != nil {
		return nil, err
	}
	text = bytes.TrimPrefix(text, []byte("\ufeff"))
	var errs Errors
	if l.File != "" {
		places, bad := decode(&l.Config, l.File, text)
		errs = append(errs, bad...)
		for key, at := range places {
			l.origins[key] = Origin{FromFile, l.File, at.line}
		}
	}
	errs = append(errs, l.overlay(env)...)
	errs = append(errs, l.flags(o.Flags)...)
	errs = append(errs, l.check(text, errs)...)
	if len(errs) > 0 {
		errs.sort()
		return nil, errs
	}
	return l, nil
}

// Check reads one file alone, over the defaults.
func Check(name string, text []byte) (*Loaded, error) {
	return Load(Options{File: name, ReadFile: func(string) ([]byte, error) { return text, nil }})
}

func (l *Loaded) find(o Options, env map[string]string) ([]byte, error) {
	read := o.ReadFile
	if read == nil {
		read = os.ReadFile
	}
	named := o.File
	if named == "" {
		named = env["USP_CONFIG"]
	}
	if named != "" {
		text, err := read(named)
		if err != nil {
			return nil, fmt.Errorf("configuration %s: %w", named, cause(err))
		}
		l.File = named
		return text, nil
	}
	for _, name := range o.Search {
		text, err := read(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("configuration %s: %w", name, cause(err))
		}
		l.File = name
		return text, nil
	}
	return nil, nil
}

// cause leaves out the path, which the caller names.
func cause(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

func environ(list []string) map[string]string {
	env := map[string]string{}
	for _, kv := range list {
		if name, value, ok := strings.Cut(kv, "="); ok && strings.HasPrefix(name, "USP_") {
			env[name] = value
		}
	}
	return env
}

// overlay takes the settings of the environment. The values of variables that
// it does not know are never shown.
func (l *Loaded) overlay(env map[string]string) (errs Errors) {
	known := map[string]*field{}
	fields := fieldsOf(&l.Config)
	var names []string
	for i := range fields {
		known[fields[i].env()] = &fields[i]
		names = append(names, fields[i].env())
		if fields[i].name == "run.dir" {
			known["USP_DIR"] = &fields[i]
		}
	}
	for _, other := range []string{"USP_CONFIG", "USP_BIN", "USP_RECORDER_CHILD"} {
		known[other] = nil
		names = append(names, other)
	}
	names = append(names, "USP_DIR")
	for _, name := range sortedKeys(env) { // USP_DIR comes before USP_RUN_DIR, which is therefore the stronger
		f, ok := known[name]
		switch {
		case !ok:
			l.Warnings = append(l.Warnings, fmt.Sprintf("unknown environment variable %.60q is ignored%s", name, didYouMean(name, names)))
		case f == nil || env[name] == "": // set to nothing is not set
		default:
			if err := f.setText(env[name]); err != nil {
				errs = append(errs, &Error{Where: "environment variable " + name, Key: f.name, What: err.Error()})
				continue
			}
			l.origins[f.name] = Origin{Source: FromEnv, Name: name}
		}
	}
	return errs
}

func (l *Loaded) flags(list []Setting) (errs Errors) {
	fields := fieldsOf(&l.Config)
	for _, s := range list {
		i := slices.IndexFunc(fields, func(f field) bool { return f.name == s.Key })
		if i < 0 {
			errs = append(errs, &Error{Where: "flag " + s.Flag, What: fmt.Sprintf("unknown setting %.60q%s", s.Key, didYouMean(s.Key, Keys()))})
			continue
		}
		if err := fields[i].setText(s.Value); err != nil {
			errs = append(errs, &Error{Where: "flag " + s.Flag, Key: s.Key, What: err.Error()})
			continue
		}
		l.origins[s.Key] = Origin{Source: FromFlag, Name: s.Flag}
	}
	return errs
}

// check holds each value against its limits and the values against each other.
func (l *Loaded) check(text []byte, before Errors) (errs Errors) {
	bad := slices.Clone(before)
	fail := func(what string, keys ...string) {
		if slices.ContainsFunc(keys, bad.has) {
			return // this repeats another fault
		}
		at := max(0, slices.IndexFunc(keys, func(k string) bool { return l.Origin(k).Source != FromDefault }))
		errs = append(errs, l.located(keys[at], what, text))
	}
	for _, f := range fieldsOf(&l.Config) {
		if err := f.check(); err != nil {
			fail(err.Error(), f.name)
		}
	}
	c := &l.Config
	o := c.Orchestrator
	crossed := o.EpsilonMin > o.EpsilonMax
	if crossed {
		fail(fmt.Sprintf("epsilon_min, %v, is above epsilon_max, %v", o.EpsilonMin, o.EpsilonMax), "orchestrator.epsilon_min", "orchestrator.epsilon_max")
	}
	for _, f := range checkPredictor(c.PredictorConfig()) {
		if !crossed || f.key != "orchestrator.epsilon_max" {
			fail(f.what, f.key)
		}
	}
	bad = append(bad, errs...)
	if n := c.Ring.Slots; n&(n-1) != 0 {
		up := 1 << bits.Len(uint(n))
		fail(fmt.Sprintf("%d is not a power of two; write %d or %d", n, up/2, up), "ring.slots")
	}
	if c.Run.Dir == "" {
		fail(`is empty; name a directory, such as "runs"`, "run.dir")
	}
	if c.Run.TimeColumn == "" || c.Run.ValueColumn == "" || c.Run.TimeColumn == c.Run.ValueColumn {
		fail("time_column and value_column must name two different columns", "run.value_column", "run.time_column")
	}
	if at := c.Run.ArrivalColumn; at != "" && (at == c.Run.TimeColumn || at == c.Run.ValueColumn) {
		fail("must name another column than time_column and value_column", "run.arrival_column")
	}
	if c.Snapshot.Compression == "none" && c.Snapshot.Level != 0 {
		fail(`has no meaning with compression "none"; remove it or write compression = "zstd"`, "snapshot.level", "snapshot.compression")
	}
	if _, err := snapshot.ParseRecipients(c.Snapshot.Recipients...); err != nil {
		fail(err.Error(), "snapshot.recipients")
	}
	if c.Witness.URL != "" {
		if err := witness.CheckURL(c.Witness.URL); err != nil {
			fail(err.Error(), "witness.url")
		} else if len(c.Witness.Key) == 0 {
			fail("needs witness.key, which is empty: name the verifier key of this witness, without which its cosignatures mean nothing", "witness.url")
		}
	}
	for _, key := range c.Witness.Key {
		if _, err := witness.ParseKey(key); err != nil {
			fail(err.Error(), "witness.key")
		}
	}
	if e := c.OTLP.Endpoint; e != "" {
		if err := witness.CheckURL(e); err != nil {
			fail(err.Error(), "otlp.endpoint")
		}
	}
	if u := c.JetStream.URL; strings.Contains(u, "@") {
		fail("holds a user name or password; put credentials into a file and name that in jetstream.credentials_file", "jetstream.url")
	}
	if r := c.Snapshot.Remote; r != "" {
		if _, err := remote.ParseAddress(r); err != nil {
			fail(err.Error(), "snapshot.remote")
		}
	}
	if e := c.Snapshot.RemoteEndpoint; e != "" {
		if err := remote.CheckEndpoint(e); err != nil {
			fail(err.Error(), "snapshot.remote_endpoint")
		}
	}
	if l := c.Prometheus.Listen; l != "" {
		if host, _, err := net.SplitHostPort(l); err != nil {
			fail("is no address with a port, such as 127.0.0.1:9464", "prometheus.listen")
		} else if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
			fail("is not on loopback: it has no password; usp serve can be asked from elsewhere, with TLS and a token", "prometheus.listen")
		}
	}
	if strings.HasPrefix(strings.ToUpper(c.Snapshot.IdentityFile), "AGE-") {
		fail("is a secret key; put it into a file of mode 0600 and name that", "snapshot.identity_file")
	}
	if c.Recorder.CommitBytes > c.Recorder.SegmentSize && c.Recorder.CommitBytes != Default().Recorder.CommitBytes {
		fail(fmt.Sprintf("commit_bytes, %v, is more than segment_size, %v", c.Recorder.CommitBytes, c.Recorder.SegmentSize), "recorder.commit_bytes", "recorder.segment_size")
	}
	return errs
}

type problem struct{ key, what string }

// checkPredictor asks the predictor about each of its settings alone, because
// it reports the first fault only.
func checkPredictor(c predictor.Config) (list []problem) {
	for _, part := range []struct {
		section string
		of      func(*predictor.Config) reflect.Value
	}{
		{"predictor", func(c *predictor.Config) reflect.Value { return reflect.ValueOf(c).Elem() }},
		{"orchestrator", func(c *predictor.Config) reflect.Value { return reflect.ValueOf(&c.Orchestrator).Elem() }},
	} {
		list = append(list, checkPart(part.section, &c, part.of)...)
	}
	return list
}

func checkPart(section string, c *predictor.Config, of func(*predictor.Config) reflect.Value) (list []problem) {
	all := of(c)
	for i := range all.NumField() {
		name := all.Type().Field(i).Tag.Get("toml")
		if name == "-" || all.Field(i).Kind() == reflect.String { // a name was held against its list
			continue
		}
		key := section + "." + name
		if all.Field(i).IsZero() && name != "season" {
			list = append(list, problem{key, "0 is not allowed; remove the key for its default"}) // the predictor would take it so
			continue
		}
		one := predictor.Config{Orchestrator: predictor.Orchestrator{EpsilonMin: c.Orchestrator.EpsilonMin}} // which limits another
		of(&one).Field(i).Set(all.Field(i))
		err := one.Validate()
		if err == nil {
			continue
		}
		text, ok := strings.CutPrefix(err.Error(), "predictor: "+name+" is ")
		if ok {
			list = append(list, problem{key, strings.Replace(text, ", want ", " is outside the allowed ", 1)})
		}
	}
	return list
}

// located makes an error of a value from wherever it came.
func (l *Loaded) located(key, what string, text []byte) *Error {
	o := l.origins[key]
	switch o.Source {
	case FromFile:
		for _, it := range items(text) {
			if strings.Join(it.path, ".") == key {
				at := position(text, int(it.at.Offset))
				return &Error{
					Where:   fmt.Sprintf("%s:%d:%d", o.Name, at.line, at.column),
					Key:     key,
					What:    key + ": " + what,
					at:      at,
					Excerpt: excerpt(key, text, at, int(it.at.Length)),
				}
			}
		}
	case FromEnv:
		return &Error{Where: "environment variable " + o.Name, Key: key, What: what}
	case FromFlag:
		return &Error{Where: "flag " + o.Name, Key: key, What: what}
	}
	return &Error{Where: o.String(), Key: key, What: key + ": " + what}
}

func sortedKeys(m map[string]string) []string {
	var names []string
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
