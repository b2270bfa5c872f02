// Package fleet is what a stream of sink/jetstream says of all runs that are mirrored in it, kept up to date: how each run
// stands, and the newest records of those that somebody looks at. It is for who shows them, and changes nothing.
//
// Who may write to a stream can write anything, so nothing in it is taken for true. What a Run says is what its newest messages
// say, and only that its signed head is by one of the given keys, and not behind one that was seen before, is vouched for: see
// Head. Names, counts and memory are bounded whatever is in the stream: the number of runs, the size of what is kept of each,
// and the records of the few that are open.
//
// A look at a stream that has not changed is one small request. No consumer is made, and nothing is left at the server.
package fleet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/usp-project/usp/sink/jetstream"
)

// Options say where the fleet is. Each field but Stream.URL has a working zero value.
type Options struct {
	Stream jetstream.Options // of which the place and the credentials count
	Keys   []string          // verifier keys of those who sign heads; none: nothing is vouched for

	Runs    int // most runs that are kept, those with the newest messages; default 20 000
	Records int // newest records of a run that are kept while somebody looks at it; default 20 000

	Poll   time.Duration    // between two looks; default 250 ms
	Silent time.Duration    // after which a run that has not ended and sends nothing is called silent; default 30 s
	Now    func() time.Time // default time.Now
	Logger *slog.Logger     // default discards
}

const (
	defaultRuns    = 20_000
	defaultRecords = 20_000
	defaultPoll    = 250 * time.Millisecond
	defaultSilent  = 30 * time.Second

	// MostRecords is the greatest Options.Records.
	MostRecords = 1_000_000

	lookFor  = 20 * time.Second // the longest look
	inFlight = 64               // requests of a look at a time
	few      = 64               // new messages that are read one by one
	patience = 4                // a look is followed by a pause of so many times what it took
	slowest  = 10 * time.Second
)

func (o Options) withDefaults() Options {
	o.Stream.Stream = cmp.Or(o.Stream.Stream, jetstream.DefaultStream)
	o.Runs, o.Records = cmp.Or(o.Runs, defaultRuns), min(cmp.Or(o.Records, defaultRecords), MostRecords)
	o.Poll, o.Silent = cmp.Or(o.Poll, defaultPoll), cmp.Or(o.Silent, defaultSilent)
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// ErrTooMany is wrapped by the error for a stream with more subjects than jetstream.MaxSubjects.
var ErrTooMany = errors.New("too many subjects")

// Fleet is the runs of one stream. It is made by New, and used by many goroutines.
type Fleet struct {
	o    Options
	keys note.Verifiers

	looking sync.Mutex // held through a look
	conn    *jetstream.Conn
	reader  *jetstream.Reader

	mu     sync.Mutex
	runs   map[string]*run
	best   map[string]seenHead // of runs that may be gone from the stream
	stand  jetstream.Stand
	looked time.Time // when the last look succeeded
	took   time.Duration
	fault  string // why the last one did not; "": it did
	hidden int    // runs that are not kept
	open   []*Records
	shared *jetstream.Reader // reader, for who does not look
}

// New makes a Fleet. It connects to nothing yet: see Run and Look.
func New(o Options) (*Fleet, error) {
	keys, err := ParseKeys(o.Keys)
	if err != nil {
		return nil, err
	}
	return &Fleet{o: o.withDefaults(), keys: keys, runs: map[string]*run{}, best: map[string]seenHead{}}, nil
}

// Run looks at the stream again and again until ctx ends, and connects again where that is lost. What goes wrong is in View.Fault.
func (f *Fleet) Run(ctx context.Context) {
	defer f.Close()
	pause := f.o.Poll
	for ctx.Err() == nil {
		began := f.o.Now()
		if err := f.Look(ctx); err != nil && ctx.Err() == nil {
			f.o.Logger.Debug("the stream of the fleet was not read", "error", err)
			pause = min(2*pause, slowest)
		} else {
			pause = min(max(f.o.Poll, patience*f.o.Now().Sub(began)), slowest)
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-ctx.Done():
		}
		t.Stop()
	}
}

// Close closes the connection. A later Look opens another one.
func (f *Fleet) Close() {
	f.looking.Lock()
	defer f.looking.Unlock()
	f.disconnect()
}

func (f *Fleet) disconnect() {
	if f.conn != nil {
		f.conn.Close()
	}
	f.conn, f.reader = nil, nil
	f.mu.Lock()
	f.shared = nil
	f.mu.Unlock()
}

// Look takes in what is new. Its errors wrap sink.ErrRefused for credentials that the server does not take and addresses that are none,
// natsjs.ErrStreamNotFound where there is no such stream, ErrTooMany; others are of a server that does not answer.
func (f *Fleet) Look(ctx context.Context) error {
	f.looking.Lock()
	defer f.looking.Unlock()
	began := f.o.Now()
	bounded, cancel := context.WithTimeout(ctx, lookFor)
	defer cancel()
	err := f.look(bounded)
	f.mu.Lock()
	if err == nil {
		f.looked, f.took, f.fault = f.o.Now(), f.o.Now().Sub(began), ""
	} else {
		f.fault = err.Error()
	}
	f.mu.Unlock()
	if err != nil {
		f.disconnect()
	}
	return err
}

// connected is the reader; it connects if need be.
func (f *Fleet) connected(ctx context.Context) (*jetstream.Reader, error) {
	if f.reader != nil {
		return f.reader, nil
	}
	c, err := jetstream.Connect(ctx, f.o.Stream)
	if err != nil {
		return nil, err
	}
	r, err := jetstream.OpenReader(ctx, c, f.o.Stream.Stream)
	if err != nil {
		c.Close()
		return nil, err
	}
	f.conn, f.reader = c, r
	f.mu.Lock()
	f.shared = r
	f.mu.Unlock()
	return r, nil
}

func (f *Fleet) look(ctx context.Context) error {
	r, err := f.connected(ctx)
	if err != nil {
		return err
	}
	now, err := r.Stand(ctx)
	if err != nil {
		return err
	}
	f.mu.Lock()
	before, first := f.stand, f.looked.IsZero()
	f.mu.Unlock()
	switch {
	case now.Subjects > jetstream.MaxSubjects:
		return fmt.Errorf("stream %s: %w: %d, and usp lists at most %d: somebody writes what no run has", f.o.Stream.Stream, ErrTooMany, now.Subjects, jetstream.MaxSubjects)
	case now.Last < before.Last:
		// It is another stream of that name, or was put back. The heads that were seen stay, so that it shows.
		f.mu.Lock()
		clear(f.runs)
		f.open = nil
		f.mu.Unlock()
		err = f.list(ctx, r)
	case now.Last == before.Last && !first:
	case now.Last-before.Last <= few && !first:
		err = f.follow(ctx, r, before.Last, now.Last)
	default:
		err = f.list(ctx, r)
	}
	if err == nil {
		err = f.describe(ctx, r)
	}
	if err == nil {
		f.mu.Lock()
		f.stand = now
		f.mu.Unlock()
	}
	return err
}

// follow takes in a few messages, each by its place.
func (f *Fleet) follow(ctx context.Context, r *jetstream.Reader, from, to uint64) error {
	list := make([]found, to-from)
	err := each(ctx, len(list), func(i int) error {
		m, err := r.At(ctx, from+1+uint64(i))
		if m == nil {
			return err
		}
		list[i] = found{m, err}
		return nil
	})
	if err != nil {
		return err
	}
	for _, x := range list {
		if x.m != nil {
			f.take(x.m.Run, x)
			f.count(x.m)
		}
	}
	return nil
}

// found is a message, and why it is none of usp's.
type found struct {
	m   *jetstream.Message
	err error
}

// list takes in the newest messages of all runs that have other ones than before.
func (f *Fleet) list(ctx context.Context, r *jetstream.Reader) error {
	there, err := r.Runs(ctx)
	if err != nil {
		return err
	}
	type task struct {
		id    string
		audit bool
	}
	var tasks []task
	f.mu.Lock()
	ids := make([]string, 0, len(there))
	for id := range there {
		ids = append(ids, id)
	}
	// Ids begin with the time at which a run was begun: of too many the newest are kept.
	slices.SortFunc(ids, func(a, b string) int { return cmp.Compare(b, a) })
	kept := ids[:min(len(ids), f.o.Runs)]
	f.hidden = len(ids) - len(kept)
	for id := range f.runs {
		if _, ok := slices.BinarySearchFunc(kept, id, func(a, b string) int { return cmp.Compare(b, a) }); !ok {
			delete(f.runs, id)
		}
	}
	for _, id := range kept {
		x := f.runs[id]
		if x == nil {
			x = &run{}
			f.runs[id] = x
		}
		if n := there[id]; n != x.messages {
			if n.Telemetry != x.messages.Telemetry {
				tasks = append(tasks, task{id, false})
			}
			if n.Audit != x.messages.Audit {
				tasks = append(tasks, task{id, true})
			}
			x.messages = n
		}
	}
	f.mu.Unlock()
	err = each(ctx, len(tasks), func(i int) error {
		m, err := r.Newest(ctx, tasks[i].id, tasks[i].audit)
		if m == nil {
			return err // it cannot be read, or is not there any more
		}
		f.take(tasks[i].id, found{m, err})
		return nil
	})
	if err != nil {
		f.mu.Lock()
		for _, t := range tasks { // the next look asks again
			if x := f.runs[t.id]; x != nil {
				x.messages = jetstream.Messages{}
			}
		}
		f.mu.Unlock()
	}
	return err
}

// describe reads how the newest records of runs are to be read, where that is not known yet.
func (f *Fleet) describe(ctx context.Context, r *jetstream.Reader) error {
	var tasks []*jetstream.Message
	f.mu.Lock()
	for _, x := range f.runs {
		if x.newest != nil && !x.described {
			tasks = append(tasks, x.newest)
		}
	}
	f.mu.Unlock()
	return each(ctx, len(tasks), func(i int) error {
		m := tasks[i]
		d, err := r.Describe(ctx, m)
		if err != nil && !errors.Is(err, jetstream.ErrNoSchema) {
			return err
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		if x := f.runs[m.Run]; x != nil {
			x.describe(m, d, err)
		}
		return nil
	})
}

// each calls do with 0 to n-1, many at a time, until one fails.
func each(ctx context.Context, n int, do func(i int) error) error {
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		next  int
		first error
	)
	for range min(n, inFlight) {
		wg.Go(func() {
			for {
				mu.Lock()
				i := next
				next++
				stop := first != nil || i >= n
				mu.Unlock()
				if stop {
					return
				}
				err := do(i)
				if err == nil && ctx.Err() != nil {
					err = context.Cause(ctx)
				}
				if err != nil {
					mu.Lock()
					first = cmp.Or(first, err)
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	return first
}
