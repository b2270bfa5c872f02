package jetstream_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"
	"golang.org/x/mod/sumdb/note"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/record"
	"github.com/usp-project/usp/sink"
	"github.com/usp-project/usp/sink/jetstream"
	"github.com/usp-project/usp/sink/sinktest"
)

// realRun is a run that usp itself has recorded.
func realRun(t *testing.T) rundir.Dir {
	t.Helper()
	dir := t.TempDir()
	program := filepath.Join(dir, "usp")
	build := exec.Command("go", "build", "-o", program, "./cmd/usp")
	build.Dir = "../.."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	run := exec.Command(program, "run", "--dir", filepath.Join(dir, "runs"), "example:sunspots")
	run.Env = append(os.Environ(), "HOME="+dir, "XDG_CONFIG_HOME="+filepath.Join(dir, "config"))
	run.Dir = dir
	if out, err := run.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	path, err := filepath.EvalSymlinks(filepath.Join(dir, "runs", "latest"))
	if err != nil {
		t.Fatal(err)
	}
	return rundir.At(path)
}

// key is the key that the manifest names.
func key(t *testing.T, dir rundir.Dir) note.Verifiers {
	t.Helper()
	m, _, err := rundir.ReadManifest(vfs.OS(), dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	v, err := note.NewVerifier(m.Signer)
	if err != nil {
		t.Fatal(err)
	}
	return note.VerifierList(v)
}

// sent is a message as a test changes it.
type sent struct {
	subject string
	header  nats.Header
	data    []byte
}

// received are messages as a stream has them.
func received(raw ...*natsjs.RawStreamMsg) (all []*sent) {
	for _, m := range raw {
		all = append(all, &sent{m.Subject, nats.Header(maps.Clone(m.Header)), bytes.Clone(m.Data)})
	}
	return all
}

func (m *sent) set(name string, value any) { m.header["Usp-"+name] = []string{fmt.Sprint(value)} }

func (m *sent) get(name string) uint64 {
	n, err := strconv.ParseUint(m.header.Get("Usp-"+name), 10, 64)
	if err != nil {
		panic(err)
	}
	return n
}

// frames cuts the payload where its frames begin.
func (m *sent) frames() (list [][]byte) {
	for data := m.data; len(data) > 0; {
		n := 4 + int(binary.LittleEndian.Uint32(data))
		list, data = append(list, data[:n]), data[n:]
	}
	return list
}

// reseal makes all sums right again, as a forger can who knows how they are made and has no key.
func reseal(all []*sent) {
	sums := map[string][]byte{}
	for _, m := range all {
		text := sums[m.subject]
		if text == nil {
			text = []byte("usp stream 1\n" + m.subject + "\n")
		}
		if kind := m.header.Get("Usp-Kind"); kind == "frames" || kind == "entries" {
			text = append(text, m.data...)
		}
		sums[m.subject] = text
		payload, chain := sha256.Sum256(m.data), sha256.Sum256(text)
		m.set("Sha256", hex.EncodeToString(payload[:]))
		m.set("Chain", hex.EncodeToString(chain[:]))
	}
}

// forge makes a stream on another server out of changed messages.
func forge(t *testing.T, all []*sent) natsjs.JetStream {
	t.Helper()
	c := connect(t, jetstream.Options{URL: serve(t, server.Options{}).ClientURL()})
	if _, err := c.JS.CreateStream(t.Context(), natsjs.StreamConfig{Name: "usp", Subjects: []string{"usp.>"}}); err != nil {
		t.Fatal(err)
	}
	publish(t, c.JS, all)
	return c.JS
}

// publish sends messages as anybody may, without what a server or a sink says of their places.
func publish(t *testing.T, js natsjs.JetStream, all []*sent) {
	t.Helper()
	for _, m := range all {
		header := maps.Clone(m.header)
		maps.DeleteFunc(header, func(k string, _ []string) bool { return strings.HasPrefix(k, "Nats-") })
		if _, err := js.PublishMsg(t.Context(), &nats.Msg{Subject: m.subject, Header: header, Data: m.data}); err != nil {
			t.Fatal(err)
		}
	}
}

// replace makes a stream anew, with other messages.
func replace(t *testing.T, js natsjs.JetStream, config natsjs.StreamConfig, all []*sent) {
	t.Helper()
	if err := js.DeleteStream(t.Context(), "usp"); err != nil {
		t.Fatal(err)
	}
	config.Name, config.Subjects = "usp", []string{"usp.>"}
	if _, err := js.CreateStream(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	publish(t, js, all)
}

// TestForged changes what a stream has of a real run in every way, and wants each found, with the ordinals it is about:
// by comparison with the run directory, and without it by what was signed.
func TestForged(t *testing.T) {
	dir := realRun(t)
	to := jetstream.Options{URL: serve(t, server.Options{}).ClientURL(), MessageBytes: 2 << 10, Dir: dir}
	o := sink.Options{Dir: dir, Name: "jetstream"}
	if err := sink.Bring(t.Context(), o, jetstream.New(to)); err != nil {
		t.Fatal(err)
	}
	c := connect(t, to)
	report, err := jetstream.Check(t.Context(), c.JS, "usp", dir.ID(), jetstream.Against{Dir: dir})
	if err != nil || !report.OK() || report.Behind() != 0 || report.Next == 0 || report.Heads != 1 || report.Signed != report.Entries || report.Mine != report.Signed || report.Entries < report.Records {
		t.Fatalf("the true stream: %+v, %v", report, err)
	}
	alone, err := jetstream.Check(t.Context(), c.JS, "usp", dir.ID(), jetstream.Against{Verifiers: key(t, dir)})
	if err != nil || !alone.OK() || alone.Signed != report.Signed {
		t.Fatalf("the true stream without the run: %+v, %v", alone, err)
	}
	telemetry, audit := "usp.telemetry."+dir.ID(), "usp.audit."+dir.ID()
	genuine := func() (all []*sent, frames, entries []*sent, head *sent) {
		all = received(append(messages(t, c, telemetry), messages(t, c, audit)...)...)
		for _, s := range all {
			switch s.header.Get("Usp-Kind") {
			case "frames":
				frames = append(frames, s)
			case "entries":
				entries = append(entries, s)
			case "head":
				head = s
			}
		}
		return all, frames, entries, head
	}
	_, f, e, _ := genuine()
	if len(f) < 4 || len(e) < 4 {
		t.Fatalf("%d messages with frames and %d with entries are too few", len(f), len(e))
	}
	swap := func(all []*sent, a, b *sent) {
		i, j := slices.Index(all, a), slices.Index(all, b)
		all[i], all[j] = all[j], all[i]
	}
	first, next := f[1].get("First"), f[1].get("Next")
	efirst, enext := e[1].get("First"), e[1].get("Next")
	const nobody = "-"
	for _, tt := range []struct {
		name   string
		change func(all, frames, entries []*sent, head *sent) []*sent
		with   string // what is to be found with the run directory
		alone  string // and without; "-": nothing can be
	}{
		{"nothing", func(all, _, _ []*sent, _ *sent) []*sent { return all }, nobody, nobody},
		{"a frame, sums made right", func(all, f, _ []*sent, _ *sent) []*sent {
			f[1].frames()[2][4+16+8*2]++
			reseal(all)
			return all
		}, fmt.Sprintf("differs: %s %d at", telemetry, first+2), nobody},
		{"a frame, its own sum made right", func(all, f, _ []*sent, _ *sent) []*sent {
			f[1].frames()[2][4+16+8*2]++
			sum := sha256.Sum256(f[1].data)
			f[1].set("Sha256", hex.EncodeToString(sum[:]))
			return all
		}, fmt.Sprintf("differs: %s %d at", telemetry, first+2), fmt.Sprintf("forged: %s %d to %d at", telemetry, first, next-1)},
		{"a frame, sums left", func(all, f, _ []*sent, _ *sent) []*sent {
			f[1].frames()[2][4+16+8*2]++
			return all
		}, fmt.Sprintf("malformed: %s %d at", telemetry, first), fmt.Sprintf("malformed: %s %d at", telemetry, first)},
		{"two messages swapped", func(all, f, _ []*sent, _ *sent) []*sent {
			swap(all, f[1], f[2])
			reseal(all)
			return all
		}, fmt.Sprintf("missing: %s %d to %d at", telemetry, first, next-1), fmt.Sprintf("repeated: %s %d to %d at", telemetry, first, next-1)},
		{"two messages swapped with their ordinals", func(all, f, _ []*sent, _ *sent) []*sent {
			f[1].data, f[2].data = f[2].data, f[1].data
			if len(f[1].frames()) != len(f[2].frames()) {
				panic("of different lengths: the test is to be changed")
			}
			reseal(all)
			return all
		}, fmt.Sprintf("differs: %s %d to", telemetry, first), fmt.Sprintf("forged: %s %d to %d at", telemetry, first, next-1)},
		{"a message dropped", func(all, f, _ []*sent, _ *sent) []*sent {
			all = slices.DeleteFunc(all, func(m *sent) bool { return m == f[1] })
			reseal(all)
			return all
		}, fmt.Sprintf("missing: %s %d to %d at", telemetry, first, next-1), fmt.Sprintf("missing: %s %d to %d at", telemetry, first, next-1)},
		{"a message doubled", func(all, f, _ []*sent, _ *sent) []*sent {
			return slices.Insert(all, slices.Index(all, f[1])+1, f[1])
		}, fmt.Sprintf("repeated: %s %d to %d at", telemetry, first, next-1), fmt.Sprintf("repeated: %s %d to %d at", telemetry, first, next-1)},
		{"frames behind the end", func(all, f, _ []*sent, _ *sent) []*sent {
			last := f[len(f)-1]
			more := &sent{last.subject, maps.Clone(last.header), f[1].frames()[0]}
			more.set("First", last.get("Next"))
			more.set("Next", last.get("Next")+1)
			more.set("Records", last.get("Records")+1)
			var frame record.Frame
			if err := record.DecodeFrame(more.data[4:], &frame); err != nil {
				panic(err)
			}
			more.set("Step", frame.Step())
			more.set("Time", frame.Time())
			all = slices.Insert(all, slices.Index(all, last)+1, more)
			reseal(all)
			return all
		}, fmt.Sprintf("absent: %s %d at", telemetry, report.Next), nobody},
		{"counts", func(all, f, _ []*sent, _ *sent) []*sent {
			f[1].set("Records", 12345)
			return all
		}, fmt.Sprintf("forged: %s %d to %d at", telemetry, first, next-1), fmt.Sprintf("forged: %s %d to %d at", telemetry, first, next-1)},
		{"schema", func(all, _, _ []*sent, _ *sent) []*sent {
			all[0].data = bytes.Replace(all[0].data, []byte("cusum"), []byte("musuc"), 1)
			reseal(all)
			return all
		}, fmt.Sprintf("differs: %s 0 at", telemetry), nobody},
		{"an entry, sums made right", func(all, _, e []*sent, _ *sent) []*sent {
			list := e[1].frames()
			list[1][len(list[1])-1]++
			reseal(all)
			return all
		}, fmt.Sprintf("differs: %s %d at", audit, efirst+1), fmt.Sprintf("forged: %s 0 to %d at", audit, report.Signed-1)},
		{"entries swapped, sums made right", func(all, _, e []*sent, _ *sent) []*sent {
			list := e[1].frames()
			e[1].data = slices.Concat(append([][]byte{list[1], list[0]}, list[2:]...)...)
			reseal(all)
			return all
		}, fmt.Sprintf("differs: %s %d to %d at", audit, efirst, efirst+1), fmt.Sprintf("forged: %s 0 to %d at", audit, report.Signed-1)},
		{"entries dropped", func(all, _, e []*sent, _ *sent) []*sent {
			all = slices.DeleteFunc(all, func(m *sent) bool { return m == e[1] })
			reseal(all)
			return all
		}, fmt.Sprintf("missing: %s %d to %d at", audit, efirst, enext-1), fmt.Sprintf("missing: %s %d to %d at", audit, efirst, enext-1)},
		{"the signature", func(all, _, _ []*sent, head *sent) []*sent {
			at := bytes.LastIndexByte(head.data, ' ') + 12
			if head.data[at] != 'A' {
				head.data[at] = 'A'
			} else {
				head.data[at] = 'B'
			}
			reseal(all)
			return all
		}, "forged: " + audit, "forged: " + audit},
		{"the size in the head", func(all, _, _ []*sent, head *sent) []*sent {
			size := fmt.Sprint(report.Signed)
			head.data = bytes.Replace(head.data, []byte("\n"+size+"\n"), []byte("\n"+size[:len(size)-1]+"\n"), 1)
			reseal(all)
			return all
		}, "forged: " + audit, "forged: " + audit},
		{"not a message of usp", func(all, f, _ []*sent, _ *sent) []*sent {
			return slices.Insert(all, slices.Index(all, f[1]), &sent{telemetry, nats.Header{}, []byte("hello")})
		}, fmt.Sprintf("malformed: %s %d at", telemetry, first), fmt.Sprintf("malformed: %s %d at", telemetry, first)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			js := forge(t, tt.change(genuine()))
			for _, x := range []struct {
				against jetstream.Against
				want    string
			}{{jetstream.Against{Dir: dir}, tt.with}, {jetstream.Against{Verifiers: key(t, dir)}, tt.alone}} {
				report, err := jetstream.Check(t.Context(), js, "usp", dir.ID(), x.against)
				if err != nil {
					t.Fatal(err)
				}
				var found []string
				for _, p := range report.Problems {
					found = append(found, p.String())
				}
				if x.want == nobody != report.OK() || x.want != nobody && !slices.ContainsFunc(found, func(s string) bool { return strings.HasPrefix(s, x.want) }) {
					t.Errorf("against %q found %q, want %q", x.against.Dir, found, x.want)
				}
			}
		})
	}
}

// logged gives a recording a digest log that is signed with the key in a file.
func logged(t *testing.T, r *sinktest.Recording, keyFile string) *digestlog.Log {
	t.Helper()
	signer, vkey, err := digestlog.LoadOrCreateKey(nil, keyFile, nil)
	if err != nil {
		t.Fatal(err)
	}
	m, _, err := rundir.ReadManifest(vfs.OS(), r.Dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(r.Dir.Manifest(0)); err != nil {
		t.Fatal(err)
	}
	m.Signer = vkey
	if _, err := rundir.WriteManifest(vfs.OS(), r.Dir, *m); err != nil {
		t.Fatal(err)
	}
	l, err := digestlog.Open(r.Dir.Digests(), digestlog.Options{RunID: r.Dir.ID(), Signer: signer, HeadPath: r.Dir.Head(), SegmentSize: 64 << 10})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// TestHeads brings a log head by head, with cursors that are lost and fall back in between; another log of the same run is
// refused.
func TestHeads(t *testing.T) {
	to := jetstream.Options{URL: serve(t, server.Options{}).ClientURL(), MessageBytes: 2 << 10}
	keyFile := filepath.Join(t.TempDir(), "keys", "key")
	g := grows(t, keyFile)
	r := g.Recording
	to.Dir = r.Dir
	var old []byte
	for i, n := range []int{1, 200, 700, 3, 1000} {
		g.emit(n)
		g.bring(to)
		cursor, err := os.ReadFile(r.Dir.Sink("jetstream"))
		if err != nil {
			t.Fatal(err)
		}
		switch i {
		case 1:
			old = cursor
		case 2:
			if err := os.Remove(r.Dir.Sink("jetstream")); err != nil {
				t.Fatal(err)
			}
		case 3:
			if err := os.WriteFile(r.Dir.Sink("jetstream"), old, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if report := same(t, to, r); report.Heads != i+1 || report.Signed != g.log.Size() || report.Entries != g.log.Size() || report.Mine != g.log.Size() {
			t.Fatalf("after %d heads: %+v", i+1, report)
		}
	}

	// Entries that came without their head, as when a process is killed between the two.
	g.emit(10)
	n := len(messages(t, connect(t, to), "usp.audit."+runID))
	g.bring(to)
	all := messages(t, connect(t, to), "usp.audit."+runID)
	if len(all) != n+2 || all[n].Header.Get("Usp-Kind") != "entries" || all[n+1].Header.Get("Usp-Kind") != "head" {
		t.Fatalf("%d messages, want entries and a head behind %d", len(all), n)
	}
	before := received(append(messages(t, connect(t, to), "usp.telemetry."+runID), all[:n+1]...)...)
	js := forge(t, before)
	headless := to
	headless.URL = js.Conn().ConnectedUrl()
	replace(t, js, natsjs.StreamConfig{Discard: natsjs.DiscardNew, DenyDelete: true, DenyPurge: true}, before)
	r.Emit(1)
	g.bring(headless)
	if report := same(t, headless, r); report.Signed != g.log.Size() || report.Heads != 6 {
		t.Errorf("the head did not come later: %+v", report)
	}

	// Another log of the same run id and the same telemetry.
	if err := g.log.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(r.Dir.Digests()); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(r.Dir.Head()); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(r.Dir.Digests(), 0o700); err != nil {
		t.Fatal(err)
	}
	g.log, g.step = logged(t, r, keyFile), 1
	g.emit(3000)
	if err := sink.Bring(t.Context(), bringing(r), jetstream.New(to)); !errors.Is(err, sink.ErrRefused) {
		t.Fatalf("%v, want %v", err, sink.ErrRefused)
	}
	if err := g.log.Abort(); err != nil {
		t.Fatal(err)
	}
	report, err := jetstream.Check(t.Context(), connect(t, to).JS, "usp", runID, jetstream.Against{Dir: r.Dir})
	if err != nil || report.OK() {
		t.Errorf("another log: %+v, %v", report, err)
	}
}
