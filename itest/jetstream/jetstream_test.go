// Package jetstream_test holds the mirror of runs in JetStream against real servers.
package jetstream_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/record"
	"github.com/usp-project/usp/sink"
	"github.com/usp-project/usp/sink/jetstream"
	"github.com/usp-project/usp/sink/sinktest"
)

const runID = "20261129T000000-s1nk5"

func connect(t testing.TB, o jetstream.Options) *jetstream.Conn {
	t.Helper()
	c, err := jetstream.Connect(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// messages reads all messages of a subject.
func messages(t testing.TB, c *jetstream.Conn, subject string) (all []*natsjs.RawStreamMsg) {
	t.Helper()
	s, err := c.JS.Stream(t.Context(), "usp")
	if err != nil {
		t.Fatal(err)
	}
	for next := uint64(1); ; {
		m, err := s.GetMsg(t.Context(), next, natsjs.WithGetMsgSubject(subject))
		if errors.Is(err, natsjs.ErrMsgNotFound) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all, next = append(all, m), m.Sequence+1
	}
}

// rows reads the records of a run with what is in the stream and nothing else.
func rows(t testing.TB, o jetstream.Options, run string) (rows []sinktest.Row, lost uint64) {
	t.Helper()
	for _, m := range messages(t, connect(t, o), "usp.telemetry."+run) {
		if m.Header.Get("Usp-Kind") == "schema" {
			if _, err := record.ParseSchema(m.Data); err != nil {
				t.Fatal(err)
			}
			continue
		}
		var f record.Frame
		for data := m.Data; len(data) > 0; {
			n := 4 + int(binary.LittleEndian.Uint32(data))
			if err := record.DecodeFrame(data[4:n], &f); err != nil {
				t.Fatal(err)
			}
			if data = data[n:]; f.Kind == record.KindLost {
				lost += f.To - f.Seq
				continue
			}
			rows = append(rows, sinktest.Row{Generation: f.Generation, Seq: f.Seq, Step: f.Step()})
		}
	}
	return rows, lost
}

func TestConformance(t *testing.T) {
	sinktest.Test(t, func(t *testing.T) sinktest.Destination {
		s := serve(t, server.Options{})
		p := newProxy(t, s.Addr().String())
		o, through := jetstream.Options{URL: s.ClientURL()}, jetstream.Options{URL: p.url(), MessageBytes: 4 << 10}
		return sinktest.Destination{
			Open:  func() sink.Sink { return jetstream.New(through) },
			Fault: p.fault, Late: true,
			Held: func(t *testing.T) (all [][]byte) {
				for _, m := range messages(t, connect(t, o), "usp.>") {
					all = append(all, m.Data, fmt.Append(nil, m.Subject, m.Header))
				}
				return all
			},
			Rows: func(t *testing.T) []sinktest.Row { r, _ := rows(t, o, runID); return r },
			Lost: func(t *testing.T) uint64 { _, n := rows(t, o, runID); return n },
		}
	})
}

// bringing are the options of a quick sink.
func bringing(r *sinktest.Recording) sink.Options {
	return sink.Options{
		Dir: r.Dir, Name: "jetstream", SyncEvery: 20 * time.Millisecond, Timeout: 10 * time.Second,
		Pace: sink.Pace{Poll: 5 * time.Millisecond, RetryFirst: 5 * time.Millisecond, RetryLongest: 100 * time.Millisecond},
	}
}

// same wants that the stream has exactly what the run directory has.
func same(t testing.TB, o jetstream.Options, r *sinktest.Recording) *jetstream.Report {
	t.Helper()
	report, err := jetstream.Check(t.Context(), connect(t, o).JS, "usp", runID, jetstream.Against{Dir: r.Dir})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range report.Problems {
		t.Error(p.String())
	}
	if report.Next != r.Frames() || report.Local != r.Frames() || report.Behind() != 0 {
		t.Errorf("the stream has %d frames, and the check found %d in the run directory, which has %d", report.Next, report.Local, r.Frames())
	}
	return report
}

// TestCanary looks for a digest field's values and name in every message.
func TestCanary(t *testing.T) {
	o := jetstream.Options{URL: serve(t, server.Options{}).ClientURL()}
	r := sinktest.Record(t)
	r.Emit(1000)
	if err := sink.Bring(t.Context(), bringing(r), jetstream.New(o)); err != nil {
		t.Fatal(err)
	}
	payload := sinktest.Payload(r.Schema, 7)
	var raw []string
	for _, w := range payload[r.Schema.StoredWords():] {
		raw = append(raw, string(binary.LittleEndian.AppendUint64(nil, w)), string(binary.BigEndian.AppendUint64(nil, w)))
	}
	if len(raw) == 0 {
		t.Fatal("no digest field in the schema")
	}
	all := messages(t, connect(t, o), "usp.telemetry."+runID)
	if len(all) < 2 {
		t.Fatalf("%d messages", len(all))
	}
	for _, m := range all {
		text := string(m.Data) + fmt.Sprint(m.Header)
		for _, c := range append(raw, sinktest.Canaries()...) {
			if strings.Contains(text, c) {
				t.Errorf("message %d has %q in it", m.Sequence, c)
			}
		}
	}
}

// TestLostAcknowledgements has a connection that throws away what the server says, at moments of its own choosing: what
// was stored and not acknowledged is not stored again.
func TestLostAcknowledgements(t *testing.T) {
	s := serve(t, server.Options{})
	p := newProxy(t, s.Addr().String())
	direct, through := jetstream.Options{URL: s.ClientURL()}, jetstream.Options{URL: p.url(), MessageBytes: 2 << 10}
	r := sinktest.Record(t)
	rnd := rand.New(rand.NewPCG(1, 2))
	o := bringing(r)
	o.Timeout = 100 * time.Millisecond
	follow, end := sinktest.Until()
	o.Follow = follow
	done := make(chan error, 1)
	go func() { done <- sink.Bring(t.Context(), o, jetstream.New(through)) }()
	for range 20 {
		for range 5 {
			r.Emit(1 + rnd.IntN(60))
			time.Sleep(time.Duration(rnd.IntN(10)) * time.Millisecond)
		}
		p.set(func() { p.mute = true })
		r.Emit(100)
		time.Sleep(time.Duration(rnd.IntN(150)) * time.Millisecond)
		p.set(func() { p.mute = false })
	}
	end()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	same(t, direct, r)

	// And once with certainty: all of it stored, nothing acknowledged, and then a process that knows nothing.
	r.Emit(500)
	first := jetstream.New(through)
	status, err := sink.ReadStatus(vfs.OS(), r.Dir, "jetstream")
	if err != nil {
		t.Fatal(err)
	}
	from, err := first.Begin(t.Context(), sink.Run{ID: runID, Schema: r.Schema}, status.Cursor())
	if err != nil {
		t.Fatal(err)
	}
	f := sink.Follow(vfs.OS(), r.Dir, from.Next)
	defer f.Close()
	b, err := f.Next()
	if err != nil {
		t.Fatal(err)
	}
	p.set(func() { p.mute = true })
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := first.Write(ctx, b); err == nil {
		t.Error("written, although nothing is acknowledged")
	}
	p.set(func() { p.mute = false })
	have, _ := rows(t, direct, runID)
	for began := time.Now(); uint64(len(have)) <= from.Next && time.Since(began) < 5*time.Second; time.Sleep(20 * time.Millisecond) {
		have, _ = rows(t, direct, runID) // what it was sent it may not have stored yet
	}
	if uint64(len(have)) <= from.Next {
		t.Fatalf("the server has %d records, as before; the test tests nothing", len(have))
	}
	if err := sink.Bring(t.Context(), bringing(r), jetstream.New(direct)); err != nil {
		t.Fatal(err)
	}
	same(t, direct, r)
}

// TestLateMessage has a message of a process that is gone come to the server when the next process has begun already.
func TestLateMessage(t *testing.T) {
	s := serve(t, server.Options{})
	p := newProxy(t, s.Addr().String())
	direct, through := jetstream.Options{URL: s.ClientURL()}, jetstream.Options{URL: p.url()}
	r := sinktest.Record(t)
	r.Emit(50)
	if err := sink.Bring(t.Context(), bringing(r), jetstream.New(direct)); err != nil {
		t.Fatal(err)
	}
	r.Emit(50)
	run := sink.Run{ID: runID, Schema: r.Schema}
	write := func(k sink.Sink, from sink.Cursor, ctx context.Context) error {
		f := sink.Follow(vfs.OS(), r.Dir, from.Next)
		defer f.Close()
		b, err := f.Next()
		if err != nil {
			t.Fatal(err)
		}
		if err := k.Write(ctx, b); err != nil {
			return err
		}
		_, err = k.Sync(ctx)
		return err
	}
	old, next := jetstream.New(through), jetstream.New(direct)
	from, err := old.Begin(t.Context(), run, sink.Cursor{})
	if err != nil {
		t.Fatal(err)
	}
	p.set(func() { p.hold = true })
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := write(old, from, ctx); err == nil {
		t.Fatal("written, although nothing is passed on")
	}
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	r.Emit(50) // so the next message is a longer one of the same first frame
	if from, err = next.Begin(t.Context(), run, sink.Cursor{}); err != nil {
		t.Fatal(err)
	}
	p.set(func() { p.hold = false })
	for range 100 {
		if have, _ := rows(t, direct, runID); len(have) == 100 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if have, _ := rows(t, direct, runID); len(have) != 100 {
		t.Fatalf("the stream has %d records, want the 50 late ones behind 50; the test tests nothing", len(have))
	}
	if err := write(next, from, t.Context()); err == nil {
		t.Error("written behind a message that it does not know")
	}
	if err := sink.Bring(t.Context(), bringing(r), next); err != nil {
		t.Fatal(err)
	}
	same(t, direct, r)
}

// TestServerAway has no server for a while, with a run that goes on.
func TestServerAway(t *testing.T) {
	o := server.Options{Port: port(t), StoreDir: t.TempDir()}
	s := serve(t, o)
	to := jetstream.Options{URL: s.ClientURL()}
	r := sinktest.Record(t)
	to.Dir = r.Dir
	b := bringing(r)
	follow, end := sinktest.Until()
	b.Follow = follow
	done := make(chan error, 1)
	go func() { done <- sink.Bring(t.Context(), b, jetstream.New(to)) }()
	r.Emit(1000)
	for range 1000 {
		if status, err := sink.ReadStatus(vfs.OS(), r.Dir, "jetstream"); err == nil && status.Next > 0 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	stop(s)
	for range 40 {
		r.Emit(500)
		r.Lose(3)
		time.Sleep(20 * time.Millisecond)
	}
	status, err := sink.ReadStatus(vfs.OS(), r.Dir, "jetstream")
	for began := time.Now(); err == nil && status.Fault == "" && time.Since(began) < 10*time.Second; time.Sleep(20 * time.Millisecond) {
		status, err = sink.ReadStatus(vfs.OS(), r.Dir, "jetstream")
	}
	if err != nil || status.Fault == "" || status.Next == 0 {
		t.Errorf("the status says %+v, %v; want some frames and a fault", status, err)
	}
	select {
	case err := <-done:
		t.Fatalf("given up: %v", err)
	default:
	}
	serve(t, o)
	end()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if report := same(t, to, r); report.Lost != 120 {
		t.Errorf("%d lost, want 120", report.Lost)
	}
}

// TestInTime has calls come back soon after their time is over, whatever the server does not do.
func TestInTime(t *testing.T) {
	s := serve(t, server.Options{MaxPayload: 16 << 20})
	p := newProxy(t, s.Addr().String())
	r := sinktest.Record(t)
	r.Emit(1)
	run := sink.Run{ID: runID, Schema: r.Schema}
	soon := func(what string, call func(context.Context) error) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		began := time.Now()
		if err := call(ctx); err == nil {
			t.Errorf("%s: no error", what)
		}
		if took := time.Since(began); took > 3500*time.Millisecond { // less than dialTimeout of the sink, which ends what nobody else does
			t.Errorf("%s took %v, want 200 ms", what, took)
		}
	}
	begin := func(k sink.Sink) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := k.Begin(ctx, run, sink.Cursor{})
			return err
		}
	}
	// A server that accepts and says nothing.
	p.set(func() { p.mute = true })
	soon("Begin", begin(jetstream.New(jetstream.Options{URL: p.url()})))
	p.set(func() { p.mute = false })

	// One that stops to read in the middle: of a message that no buffer on the way takes.
	k := jetstream.New(jetstream.Options{URL: p.url(), MessageBytes: 14 << 20})
	if err := begin(k)(t.Context()); err != nil {
		t.Fatal(err)
	}
	f := sink.Follow(vfs.OS(), r.Dir, 0)
	defer f.Close()
	b, err := f.Next()
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Write(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	if _, err := k.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.Emit(200_000)
	p.set(func() { p.stall = true })
	soon("Write", func(ctx context.Context) error {
		for {
			b, err := f.Next()
			if err != nil {
				t.Fatal("everything written to a server that reads nothing")
			}
			if err := k.Write(ctx, b); err != nil {
				return err
			}
		}
	})
	soon("Sync", func(ctx context.Context) error { _, err := k.Sync(ctx); return err })
	if err := k.Close(); err != nil {
		t.Error(err)
	}
	p.set(func() { p.stall = false })

	// A connection that is lost while an answer is waited for, long before the time is over.
	p.set(func() { p.muteAt = "$JS.API.STREAM.INFO" })
	soon("Begin without a connection", func(context.Context) error {
		time.AfterFunc(300*time.Millisecond, p.cut)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		return begin(k)(ctx)
	})
	p.set(func() { p.mute, p.muteAt = false, "" })
	if err := begin(k)(t.Context()); err != nil {
		t.Fatal(err)
	}
	g := sink.Follow(vfs.OS(), r.Dir, 1)
	defer g.Close()
	if b, err = g.Next(); err != nil {
		t.Fatal(err)
	}
	p.set(func() { p.mute = true })
	soon("Sync without a connection", func(context.Context) error {
		time.AfterFunc(300*time.Millisecond, p.cut)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		return errors.Join(k.Write(ctx, b), func() error { _, err := k.Sync(ctx); return err }())
	})
	p.set(func() { p.mute = false })
	if err := sink.Bring(t.Context(), bringing(r), k); err != nil {
		t.Fatal(err)
	}
	same(t, jetstream.Options{URL: s.ClientURL()}, r)
}

// TestStreamFellBack has a server that lost what it had acknowledged: it is put back to an older state of its disk.
func TestStreamFellBack(t *testing.T) {
	o := server.Options{Port: port(t), StoreDir: t.TempDir()}
	s := serve(t, o)
	to := jetstream.Options{URL: s.ClientURL(), MessageBytes: 2 << 10}
	r := sinktest.Record(t)
	bring := func() {
		t.Helper()
		if err := sink.Bring(t.Context(), bringing(r), jetstream.New(to)); err != nil {
			t.Fatal(err)
		}
	}
	r.Emit(500)
	bring()
	stop(s)
	old := t.TempDir()
	if err := os.CopyFS(filepath.Join(old, "store"), os.DirFS(o.StoreDir)); err != nil {
		t.Fatal(err)
	}
	s = serve(t, o)
	r.Emit(500)
	bring()
	same(t, to, r)
	stop(s)

	o.StoreDir = filepath.Join(old, "store")
	serve(t, o)
	if have, _ := rows(t, to, runID); len(have) != 500 {
		t.Fatalf("the old state has %d records, want 500", len(have))
	}
	r.Emit(10)
	bring()
	same(t, to, r)

	// And the whole stream is gone.
	if err := connect(t, to).JS.DeleteStream(t.Context(), "usp"); err != nil {
		t.Fatal(err)
	}
	bring()
	same(t, to, r)
}

// TestOtherHistory refuses to go on with a run directory that is not the one whose beginning the stream has.
func TestOtherHistory(t *testing.T) {
	to := jetstream.Options{URL: serve(t, server.Options{}).ClientURL()}
	r := sinktest.Record(t)
	r.Emit(100)
	if err := sink.Bring(t.Context(), bringing(r), jetstream.New(to)); err != nil {
		t.Fatal(err)
	}
	before := len(messages(t, connect(t, to), ">"))

	other := sinktest.Record(t) // the same run id
	other.Emit(99)
	other.Lose(1)
	other.Emit(100)
	if err := sink.Bring(t.Context(), bringing(other), jetstream.New(to)); !errors.Is(err, sink.ErrRefused) || !strings.Contains(err.Error(), "up to ordinal 100") {
		t.Errorf("another history: %v, want a refusal", err)
	}
	// With the cursor of the first, as when the power went before frames were on the disk, and the run went on without them.
	cursor, err := os.ReadFile(r.Dir.Sink("jetstream"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(other.Dir.Sink("jetstream"), cursor, 0o600); err != nil {
		t.Fatal(err)
	}
	to.Dir = other.Dir
	if err := sink.Bring(t.Context(), bringing(other), jetstream.New(to)); !errors.Is(err, sink.ErrRefused) || !strings.Contains(err.Error(), "up to ordinal 100") {
		t.Errorf("another history with the same cursor: %v, want a refusal", err)
	}
	short := sinktest.Record(t)
	short.Emit(60)
	to.Dir = short.Dir
	if err := sink.Bring(t.Context(), bringing(short), jetstream.New(to)); !errors.Is(err, sink.ErrAhead) {
		t.Errorf("a run that is shorter than the stream: %v, want ErrAhead", err)
	}
	if after := len(messages(t, connect(t, to), ">")); after != before {
		t.Errorf("%d messages were stored nevertheless", after-before)
	}
}
