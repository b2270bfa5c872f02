package jetstream_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"

	"github.com/usp-project/usp/internal/fleet"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/sink"
	"github.com/usp-project/usp/sink/jetstream"
	"github.com/usp-project/usp/sink/sinktest"
)

func newFleet(t testing.TB, o fleet.Options) *fleet.Fleet {
	t.Helper()
	f, err := fleet.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Close)
	return f
}

func look(t testing.TB, f *fleet.Fleet) fleet.View {
	t.Helper()
	if err := f.Look(t.Context()); err != nil {
		t.Fatal(err)
	}
	return f.View()
}

// mirror brings a recording to the stream under several names.
func mirror(t testing.TB, to jetstream.Options, r *sinktest.Recording, ids ...string) {
	t.Helper()
	for _, id := range ids {
		k := jetstream.New(to)
		if _, err := k.Begin(t.Context(), sink.Run{ID: id, Schema: r.Schema}, sink.Cursor{}); err != nil {
			t.Fatal(err)
		}
		f := sink.Follow(vfs.OS(), r.Dir, 0)
		b, err := f.Next()
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(k.Write(t.Context(), b), f.Close()); err != nil {
			t.Fatal(err)
		}
		if _, err := k.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := k.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestFleet lists several runs, one of them with a dot in its name, one of somebody else's making, and a subject that is no run's.
func TestFleet(t *testing.T) {
	to := jetstream.Options{URL: serve(t, server.Options{}).ClientURL()}
	r := sinktest.Record(t)
	r.Emit(50)
	r.Lose(5)
	r.Emit(20)
	mirror(t, to, r, "b", "a.b", "a")
	js := connect(t, to).JS
	for _, subject := range []string{"usp.telemetry.bad", "usp.telemetry.%41"} {
		if _, err := js.Publish(t.Context(), subject, []byte("\x1b[2Jhello")); err != nil {
			t.Fatal(err)
		}
	}
	f := newFleet(t, fleet.Options{Stream: to})
	v := look(t, f)
	if len(v.Runs) != 4 || v.Fault != "" || v.Keys {
		t.Fatalf("%+v", v)
	}
	last := sinktest.Payload(r.Schema, 75)
	for i, id := range []string{"b", "a.b", "a", "bad"} {
		x := v.Runs[i]
		if x.ID != id || (id == "bad") != (x.Fault != "") || (id == "bad") != (x.State == fleet.Unreadable) {
			t.Errorf("run %d is %+v, want %s", i, x, id)
		}
		if id == "bad" {
			continue
		}
		if x.Stored != 70 || x.Lost != 5 || x.Emitted != 75 || x.Step != 75 || x.Time.UnixNano() != int64(last[1]) || x.Messages != 2 || x.State != fleet.Recording || x.Age > 20 {
			t.Errorf("%s: %+v", id, x)
		}
		if len(x.Figures) != 3 || x.Figures[0].Name != "loss" || x.Figures[0].Value != 75*64+.5 {
			t.Errorf("%s: figures %+v", id, x.Figures)
		}
	}

	// What comes later is taken in, one by one and many at once; what was read is not asked for again.
	mirror(t, to, r, "c")
	if v = look(t, f); len(v.Runs) != 5 {
		t.Errorf("%d runs, want 5", len(v.Runs))
	}
	var many []string
	for i := range 100 {
		many = append(many, fmt.Sprintf("m%d", i))
	}
	mirror(t, to, r, many...)
	if v = look(t, f); len(v.Runs) != 105 {
		t.Errorf("%d runs, want 105", len(v.Runs))
	}
	for _, x := range v.Runs {
		if x.ID != "bad" && (x.Stored != 70 || len(x.Figures) != 3 || x.Messages < 2) {
			t.Errorf("%+v", x)
		}
	}

	if err := newFleet(t, fleet.Options{Stream: jetstream.Options{URL: to.URL, Stream: "other"}}).Look(t.Context()); !errors.Is(err, natsjs.ErrStreamNotFound) {
		t.Errorf("a stream that is not there: %v", err)
	}
	if _, err := jetstream.Check(t.Context(), js, "usp", "nobody", jetstream.Against{}); !errors.Is(err, jetstream.ErrNotMirrored) {
		t.Errorf("a run that is not there: %v", err)
	}
	few := newFleet(t, fleet.Options{Stream: to, Runs: 10})
	if v = look(t, few); len(v.Runs) != 10 || v.Hidden != 95 {
		t.Errorf("%d runs kept, %d not", len(v.Runs), v.Hidden)
	}
}

// TestFleetOfReal has a run of usp itself: where it is recorded, its head with the right key and with another, and its end.
func TestFleetOfReal(t *testing.T) {
	dir := realRun(t)
	to := jetstream.Options{URL: serve(t, server.Options{}).ClientURL(), MessageBytes: 2 << 10, Dir: dir}
	if err := sink.Bring(t.Context(), sink.Options{Dir: dir, Name: "jetstream"}, jetstream.New(to)); err != nil {
		t.Fatal(err)
	}
	m, _, err := rundir.ReadManifest(vfs.OS(), dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	v := look(t, newFleet(t, fleet.Options{Stream: to, Keys: []string{m.Signer}}))
	if len(v.Runs) != 1 {
		t.Fatalf("%+v", v)
	}
	x := v.Runs[0]
	if x.Host != m.Host.Name || x.Program != "usp run" || x.State != "clean" || x.Stored != 309 || !x.Head.Verified || x.Head.Size != x.Entries || x.Entries < 309 || x.Schema == "" {
		t.Errorf("%+v", x)
	}
	if v = look(t, newFleet(t, fleet.Options{Stream: to})); v.Runs[0].Head.Verified {
		t.Errorf("verified without a key: %+v", v.Runs[0].Head)
	}

	// The place from which it has so many records, to the message.
	c := connect(t, to)
	reader, err := jetstream.OpenReader(t.Context(), c, "usp")
	if err != nil {
		t.Fatal(err)
	}
	newest, err := reader.Newest(t.Context(), dir.ID(), false)
	if err != nil {
		t.Fatal(err)
	}
	for _, most := range []uint64{0, 1, 100, 308, 309, 10_000} {
		at, err := reader.Before(t.Context(), newest, most)
		if err != nil {
			t.Fatal(err)
		}
		m, err := reader.Behind(t.Context(), dir.ID(), false, at)
		if err != nil || m == nil {
			t.Fatalf("%v, %v", m, err)
		}
		if most >= 309 {
			if at != 0 {
				t.Errorf("all %d records begin behind %d", most, at)
			}
			continue
		}
		if left := newest.Records - m.Records; left > most {
			t.Errorf("behind %d there are %d records yet, want at most %d", at, left, most)
		}
		if before, err := reader.At(t.Context(), at); err != nil || before != nil && !before.Audit && newest.Records-before.Records <= most {
			t.Errorf("the message %d in front of it, %+v, %v, is far enough", at, before, err)
		}
	}

	// Its newest records, though it has many messages.
	f := newFleet(t, fleet.Options{Stream: to, Records: 100})
	look(t, f)
	records := f.Open(dir.ID())
	for more := true; more; {
		if more, err = records.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if e := records.Extent(); e.Last != 309 || e.Records < 100 || e.Records > 130 || e.Fault != "" || e.Schema == nil {
		t.Errorf("%+v", e)
	}
}

// resumed is a recording of several generations in a stream: so many records, then back to a step and as many as the next number says,
// and so on.
func resumed(t *testing.T, records int, more ...int) (jetstream.Options, *sinktest.Recording) {
	t.Helper()
	to := jetstream.Options{URL: serve(t, server.Options{}).ClientURL(), MessageBytes: 2 << 10}
	r := sinktest.Record(t)
	r.Emit(records)
	for i := 0; i < len(more); i += 2 {
		r.Rewind(uint64(more[i]))
		r.Emit(more[i+1])
	}
	to.Dir = r.Dir
	if err := sink.Bring(t.Context(), bringing(r), jetstream.New(to)); err != nil {
		t.Fatal(err)
	}
	return to, r
}

// TestFleetResumed has records of several generations.
func TestFleetResumed(t *testing.T) {
	to, r := resumed(t, 300, 200, 50, 220, 100)
	same(t, to, r)
	f := newFleet(t, fleet.Options{Stream: to})
	if v := look(t, f); v.Runs[0].Generation != 2 || v.Runs[0].Stored != 450 || v.Runs[0].Fault != "" {
		t.Errorf("%+v", v.Runs[0])
	}
	for _, most := range []int{20_000, 40} {
		f := newFleet(t, fleet.Options{Stream: to, Records: most})
		look(t, f)
		records := f.Open(runID)
		if more, err := records.Refresh(t.Context()); more || err != nil {
			t.Fatal(more, err)
		}
		e := records.Extent()
		if e.Last != 320 || most > 1000 && (e.First != 1 || e.Records != 320) || most < 1000 && (e.Records < 40 || e.Records > 80) {
			t.Errorf("of the newest %d: %+v", most, e)
		}
	}
}

// TestFleetMoved has each generation be recorded on another machine: the newest one counts.
func TestFleetMoved(t *testing.T) {
	to, r := resumed(t, 300, 200, 300, 250, 300)
	all := received(messages(t, connect(t, to), "usp.telemetry."+r.Dir.ID())...)
	for _, x := range all {
		if x.header.Get("Usp-Kind") == "schema" {
			x.set("Host", fmt.Sprintf("machine-%d", x.get("Generation")))
		}
	}
	for _, tt := range []struct {
		n    int
		want string
	}{{10, "machine-0"}, {len(all), "machine-2"}} {
		at := all[:tt.n]
		v := look(t, newFleet(t, fleet.Options{Stream: jetstream.Options{URL: forge(t, at).Conn().ConnectedUrl()}}))
		if len(v.Runs) != 1 || v.Runs[0].Host != tt.want || v.Runs[0].Generation != uint32(at[len(at)-1].get("Generation")) {
			t.Errorf("%d messages: %+v, want %s", tt.n, v.Runs, tt.want)
		}
	}
}

// TestFleetOfOlderSinks has a stream of sinks that told of a schema once, though a later generation has it too.
func TestFleetOfOlderSinks(t *testing.T) {
	to, r := resumed(t, 300, 200, 300)
	all := received(messages(t, connect(t, to), "usp.telemetry."+r.Dir.ID())...)
	all = append(all[:1], slices.DeleteFunc(all[1:], func(m *sent) bool { return m.header.Get("Usp-Kind") == "schema" })...)
	old := jetstream.Options{URL: forge(t, all).Conn().ConnectedUrl()}
	f := newFleet(t, fleet.Options{Stream: old, Records: 50})
	if v := look(t, f); len(v.Runs) != 1 || v.Runs[0].Fault != "" || len(v.Runs[0].Figures) != 3 || v.Runs[0].Generation != 1 {
		t.Errorf("%+v", v.Runs)
	}
	records := f.Open(runID)
	if _, err := records.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	if e := records.Extent(); e.Last != 500 || e.Records < 50 || e.Fault != "" || e.Schema == nil {
		t.Errorf("%+v", e)
	}

	// Without any the records are not drawn, and why is said.
	none := jetstream.Options{URL: forge(t, all[1:]).Conn().ConnectedUrl()}
	f = newFleet(t, fleet.Options{Stream: none})
	if v := look(t, f); len(v.Runs) != 1 || !strings.Contains(v.Runs[0].Fault, "does not say") || v.Runs[0].Stored != 600 {
		t.Errorf("%+v", v.Runs)
	}
	records = f.Open(runID)
	if _, err := records.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	if e := records.Extent(); e.Records != 0 || !strings.Contains(e.Fault, "does not say") {
		t.Errorf("%+v", e)
	}
}

// TestFleetPutBack has a stream that lost what it had: the heads that were seen tell.
func TestFleetPutBack(t *testing.T) {
	to := jetstream.Options{URL: serve(t, server.Options{}).ClientURL()}
	g := grows(t, filepath.Join(t.TempDir(), "keys", "key"))
	to.Dir = g.Dir
	m, _, err := rundir.ReadManifest(vfs.OS(), g.Dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	g.emit(5)
	g.bring(to)
	c := connect(t, to)
	before := received(append(messages(t, c, "usp.telemetry."+runID), messages(t, c, "usp.audit."+runID)...)...)
	f := newFleet(t, fleet.Options{Stream: to, Keys: []string{m.Signer}})
	g.emit(5)
	g.bring(to)
	if x := look(t, f).Runs[0]; !x.Head.Verified || x.Head.Size != g.log.Size() {
		t.Fatalf("%+v", x)
	}
	replace(t, c.JS, natsjs.StreamConfig{}, before)
	if x := look(t, f).Runs[0]; x.Head.Verified || !x.Head.Forged || !strings.Contains(x.Head.Fault, "put back") {
		t.Errorf("an older state passes: %+v", x.Head)
	}
}

// TestFleetServerAway has a server that goes and comes: what was seen stays, and says that it is old.
func TestFleetServerAway(t *testing.T) {
	o := server.Options{Port: port(t), StoreDir: t.TempDir()}
	s := serve(t, o)
	to := jetstream.Options{URL: s.ClientURL()}
	r := sinktest.Record(t)
	r.Emit(10)
	mirror(t, to, r, "a")
	f := newFleet(t, fleet.Options{Stream: to, Poll: 10 * time.Millisecond})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); f.Run(ctx) }()
	defer func() { cancel(); <-ended }()
	until := func(what string, is func(v fleet.View) bool) {
		t.Helper()
		for range 2000 {
			if is(f.View()) {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		t.Fatalf("%s: %+v", what, f.View())
	}
	until("the first look", func(v fleet.View) bool { return len(v.Runs) == 1 && v.Fault == "" })
	stop(s)
	until("the server is away", func(v fleet.View) bool { return len(v.Runs) == 1 && v.Fault != "" })
	if _, err := f.Open("a").Refresh(t.Context()); err == nil {
		t.Error("records were read without a server")
	}
	serve(t, o)
	mirror(t, to, r, "b")
	until("it is back", func(v fleet.View) bool { return len(v.Runs) == 2 && v.Fault == "" })
}

// TestFleetRefused has addresses and credentials that are none, and tells them from a server that is not there.
func TestFleetRefused(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "creds")
	if err := os.WriteFile(secret, []byte("SUSECRETSECRET"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := serve(t, server.Options{Username: "u", Password: "hunter2"})
	nobody, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := nobody.Addr().String()
	if err := nobody.Close(); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		o       jetstream.Options
		refused bool
	}{
		{jetstream.Options{URL: "nats://u:hunter2@" + s.Addr().String()}, true},
		{jetstream.Options{URL: "http://127.0.0.1"}, true},
		{jetstream.Options{URL: s.ClientURL(), CredentialsFile: secret}, true},
		{jetstream.Options{URL: s.ClientURL(), CredentialsFile: secret + "no"}, true},
		{jetstream.Options{URL: s.ClientURL()}, true},
		{jetstream.Options{URL: "nats://" + address}, false},
	} {
		err := newFleet(t, fleet.Options{Stream: tt.o}).Look(t.Context())
		if err == nil || errors.Is(err, sink.ErrRefused) != tt.refused || strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), "SECRETSECRET") {
			t.Errorf("%s: %v", tt.o.URL, err)
		}
	}
}

// TestFleetOfMany says how long the first look at two thousand runs takes, and one at which nothing is new.
func TestFleetOfMany(t *testing.T) {
	if testing.Short() {
		t.Skip("NOT CHECKED with -short: two thousand runs")
	}
	to := jetstream.Options{URL: serve(t, server.Options{}).ClientURL()}
	r := sinktest.Record(t)
	r.Emit(50)
	mirror(t, to, r, "r0000")
	c := connect(t, to)
	all := received(messages(t, c, "usp.telemetry.r0000")...)
	var acks []natsjs.PubAckFuture
	for i := 1; i < 2000; i++ {
		for _, x := range all {
			h := nats.Header{}
			for name, v := range x.header {
				if strings.HasPrefix(name, "Usp-") {
					h[name] = v
				}
			}
			ack, err := c.JS.PublishMsgAsync(&nats.Msg{Subject: fmt.Sprintf("usp.telemetry.r%04d", i), Header: h, Data: x.data})
			if err != nil {
				t.Fatal(err)
			}
			acks = append(acks, ack)
		}
	}
	for _, a := range acks {
		select {
		case <-a.Ok():
		case err := <-a.Err():
			t.Fatal(err)
		}
	}
	f := newFleet(t, fleet.Options{Stream: to})
	began := time.Now()
	v := look(t, f)
	first := time.Since(began)
	began = time.Now()
	look(t, f)
	t.Logf("the first look at %d runs took %v, the next %v", len(v.Runs), first, time.Since(began))
	if len(v.Runs) != 2000 || slices.ContainsFunc(v.Runs, func(x fleet.Run) bool { return x.Stored != 50 || len(x.Figures) != 3 }) {
		t.Errorf("%d runs, such as %+v", len(v.Runs), v.Runs[0])
	}
}

// TestFleetRights has who shows a fleet have the rights that doc/fleet.md asks for and no others, and then fewer: it is told
// soon, and as what it is.
func TestFleetRights(t *testing.T) {
	dir := t.TempDir()
	user := func(name string, publish ...string) *server.NkeyUser {
		t.Helper()
		_, public, seed := pair(t, nkeys.CreateUser)
		if err := os.WriteFile(filepath.Join(dir, name), seed, 0o600); err != nil {
			t.Fatal(err)
		}
		return &server.NkeyUser{Nkey: public, Permissions: &server.Permissions{
			Publish: &server.SubjectPermission{Allow: publish}, Subscribe: &server.SubjectPermission{Allow: []string{"_INBOX.>"}},
		}}
	}
	s := serve(t, server.Options{Nkeys: []*server.NkeyUser{
		user("records", ">"), user("shows", "$JS.API.STREAM.INFO.usp", "$JS.API.STREAM.MSG.GET.usp"), user("lists", "$JS.API.STREAM.INFO.usp"), user("nothing", "nothing"),
	}})
	as := func(name string) jetstream.Options {
		return jetstream.Options{URL: s.ClientURL(), CredentialsFile: filepath.Join(dir, name)}
	}
	r := sinktest.Record(t)
	r.Emit(50)
	mirror(t, as("records"), r, "a")
	f := newFleet(t, fleet.Options{Stream: as("shows")})
	if v := look(t, f); len(v.Runs) != 1 || v.Runs[0].Stored != 50 || len(v.Runs[0].Figures) != 3 {
		t.Errorf("%+v", v)
	}
	if _, err := f.Open("a").Refresh(t.Context()); err != nil || f.Open("a").Extent().Records != 50 {
		t.Errorf("%+v, %v", f.Open("a").Extent(), err)
	}
	for _, name := range []string{"lists", "nothing"} {
		began := time.Now()
		err := newFleet(t, fleet.Options{Stream: as(name)}).Look(t.Context())
		if !errors.Is(err, sink.ErrRefused) || !strings.Contains(err.Error(), "$JS.API.STREAM") {
			t.Errorf("%s: %v, want what is not permitted", name, err)
		}
		if took := time.Since(began); took > 4*time.Second {
			t.Errorf("%s was told after %v", name, took)
		}
	}
}
