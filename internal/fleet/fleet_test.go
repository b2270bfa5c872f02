package fleet

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"
	"golang.org/x/mod/sumdb/note"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/predictor"
	"github.com/usp-project/usp/record"
	"github.com/usp-project/usp/sink/jetstream"
)

// began is when the server of these tests got its first message.
var began = time.Date(2026, 11, 29, 0, 0, 0, 0, time.UTC)

// sent is a message as a sink makes it, in whose place anybody may put others.
func sent(t testing.TB, sequence uint64, subject, kind string, fields map[string]string, payload []byte) found {
	t.Helper()
	sum := sha256.Sum256(payload)
	h := nats.Header{"Usp-Version": {"1"}, "Usp-Kind": {kind}, "Usp-Sha256": {hex.EncodeToString(sum[:])}, "Usp-Chain": {strings.Repeat("0", 64)}, "Usp-First": {"0"}, "Usp-Next": {"0"}}
	if strings.HasPrefix(subject, "usp.telemetry.") {
		for _, name := range []string{"Generation", "Records", "Lost", "Step", "Time", "Segment"} {
			h["Usp-"+name] = []string{"0"}
		}
		h["Usp-Schema"] = []string{strings.Repeat("0", 64)}
	}
	for name, v := range fields {
		h["Usp-"+name] = []string{v}
	}
	m, ok, err := jetstream.Decode(&natsjs.RawStreamMsg{Subject: subject, Sequence: sequence, Header: h, Data: payload, Time: began.Add(time.Duration(sequence) * time.Second)})
	if !ok {
		t.Fatalf("%s is no run's", subject)
	}
	return found{m, err}
}

// framed puts frames into a payload.
func framed(frames ...[]byte) (payload []byte) {
	for _, f := range frames {
		payload = append(binary.LittleEndian.AppendUint32(payload, uint32(len(f))), f...)
	}
	return payload
}

func newFleet(t testing.TB, keys ...string) *Fleet {
	t.Helper()
	f, err := New(Options{Keys: keys, Now: func() time.Time { return began }})
	if err != nil {
		t.Fatal(err)
	}
	f.looked = began
	f.stand.At = began.Add(10 * time.Second)
	return f
}

// signed makes heads of logs with a key of their own.
func signed(t testing.TB, seed byte) (key string, head func(run string, entries int) []byte) {
	t.Helper()
	signer, key, err := digestlog.LoadOrCreateKey(vfs.NewMem(), "/key", rand.NewChaCha8([32]byte{seed}))
	if err != nil {
		t.Fatal(err)
	}
	return key, func(run string, entries int) []byte {
		t.Helper()
		fsys := vfs.NewMem()
		l, err := digestlog.Open("/log", digestlog.Options{FS: fsys, RunID: run, Signer: signer, HeadPath: "/head", Now: func() time.Time { return began }})
		if err != nil {
			t.Fatal(err)
		}
		for i := range entries {
			if _, err := l.Append(&digestlog.Entry{Kind: digestlog.KindStep, Step: uint64(i + 1), Seq: uint64(i), Digests: make([][32]byte, 1)}); err != nil {
				t.Fatal(err)
			}
		}
		if err := l.Sync(); err != nil {
			t.Fatal(err)
		}
		if _, err := l.SignHead(); err != nil {
			t.Fatal(err)
		}
		b, err := vfs.ReadFile(fsys, filepath.Join("/", "head"), 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
}

// TestHeads has heads that are verified, and each way in which one is worth nothing.
func TestHeads(t *testing.T) {
	key, mine := signed(t, 1)
	_, other := signed(t, 2)
	const run = "20261129T000000-abcde"
	next := func(n int) map[string]string {
		return map[string]string{"First": fmt.Sprint(n), "Next": fmt.Sprint(n)}
	}
	broken := mine(run, 5)
	broken[len(broken)-10] ^= 1
	for _, tt := range []struct {
		name     string
		keys     []string
		heads    [][]byte
		sizes    []int
		verified bool
		forged   bool
		says     string
	}{
		{"good", []string{key, key}, [][]byte{mine(run, 5)}, []int{5}, true, false, ""},
		{"no key", nil, [][]byte{mine(run, 5)}, []int{5}, false, false, "no key"},
		{"another key", []string{key}, [][]byte{other(run, 5)}, []int{5}, false, false, "none of the keys"},
		{"of another run", []string{key}, [][]byte{mine("20261129T000000-other", 5)}, []int{5}, false, true, "the head of the run"},
		{"another size", []string{key}, [][]byte{mine(run, 5)}, []int{6}, false, true, "signed over 5"},
		{"broken", []string{key}, [][]byte{broken}, []int{5}, false, true, ""},
		{"no head", []string{key}, [][]byte{[]byte("hello")}, []int{5}, false, true, ""},
		{"growing", []string{key}, [][]byte{mine(run, 5), mine(run, 8)}, []int{5, 8}, true, false, ""},
		{"put back", []string{key}, [][]byte{mine(run, 8), mine(run, 5)}, []int{8, 5}, false, true, "put back"},
	} {
		f := newFleet(t, tt.keys...)
		for i, h := range tt.heads {
			f.take(run, sent(t, uint64(i+1), "usp.audit."+run, "head", next(tt.sizes[i]), h))
		}
		got, ok := f.Find(run)
		if !ok || got.Head.Verified != tt.verified || got.Head.Forged != tt.forged || !strings.Contains(got.Head.Fault, tt.says) || got.Head.Size != uint64(tt.sizes[len(tt.sizes)-1]) {
			t.Errorf("%s: %+v", tt.name, got.Head)
		}
		if name, _, _ := strings.Cut(key, "+"); tt.verified && !strings.HasPrefix(got.Head.Signer, name) {
			t.Errorf("%s: signed by %q", tt.name, got.Head.Signer)
		}
	}

	// Two histories of one length, by the same key.
	f := newFleet(t, key)
	f.take(run, sent(t, 1, "usp.audit."+run, "head", next(5), mine(run, 5)))
	f.best[run] = seenHead{5, [32]byte{1}}
	f.take(run, sent(t, 2, "usp.audit."+run, "head", next(5), mine(run, 5)))
	if got, _ := f.Find(run); got.Head.Verified || !strings.Contains(got.Head.Fault, "two histories") {
		t.Errorf("two histories: %+v", got.Head)
	}
}

// TestRun has a run as it is described, emits, falls silent and ends.
func TestRun(t *testing.T) {
	const run = "r"
	f := newFleet(t)
	s := predictor.Schema(4)
	rest, err := record.NewSchema(s.Name(), storedFields(s)...)
	if err != nil {
		t.Fatal(err)
	}
	f.take(run, sent(t, 1, "usp.telemetry.r", "schema", map[string]string{"Host": "rack%207", "Program": "usp%20run"}, rest.Text()))
	words := make([]uint64, rest.StoredWords())
	words[0] = 41
	entropy, _ := rest.Index("entropy")
	words[rest.Offset(entropy)] = math.Float64bits(0.75)
	f.take(run, sent(t, 2, "usp.telemetry.r", "frames", map[string]string{"Next": "2", "Records": "40", "Lost": "1", "Step": "41"},
		framed(record.AppendRecord(nil, 0, 40, words), record.AppendLost(nil, 0, 41, 42, record.LostOverrun))))
	got, ok := f.Find(run)
	if !ok || got.State != Recording || got.Host != "rack 7" || got.Program != "usp run" || got.Schema != s.Name() || got.Stored != 40 || got.Lost != 1 || got.Emitted != 41 || got.Step != 41 || got.Age != 8 {
		t.Errorf("%+v", got)
	}
	shown := map[string]Number{}
	for _, x := range got.Figures {
		shown[x.Name] = x.Value
	}
	if shown["entropy"] != 0.75 || len(shown) < 4 {
		t.Errorf("figures %v", got.Figures)
	}
	f.stand.At = began.Add(time.Minute)
	if got, _ = f.Find(run); got.State != Silent || got.Age != 58 {
		t.Errorf("after a minute: %+v", got)
	}
	f.take(run, sent(t, 3, "usp.audit.r", "head", map[string]string{"Status": "crashed"}, nil))
	if got, _ = f.Find(run); got.State != "crashed" {
		t.Errorf("ended: %+v", got)
	}
	f.take(run, sent(t, 4, "usp.audit.r", "head", map[string]string{"Status": "<script>"}, nil))
	if got, _ = f.Find(run); got.State != Silent {
		t.Errorf("a state of somebody's making: %+v", got)
	}
	f.take(run, sent(t, 3, "usp.telemetry.r", "frames", map[string]string{"Records": "7"}, nil))
	f.take(run, sent(t, 2, "usp.telemetry.r", "frames", map[string]string{"Records": "8"}, nil))
	if got, _ = f.Find(run); got.Stored != 7 {
		t.Errorf("an older message was taken: %+v", got)
	}
	f.take(run, sent(t, 9, "usp.telemetry.r", "hello", nil, nil))
	if got, _ = f.Find(run); got.State != Unreadable || got.Fault == "" {
		t.Errorf("garbled: %+v", got)
	}
}

func storedFields(s *record.Schema) (list []record.Field) {
	for _, x := range s.Fields() {
		if x.Class != record.Digest {
			list = append(list, x)
		}
	}
	return list
}

// TestBounds has more runs than are kept.
func TestBounds(t *testing.T) {
	f := newFleet(t)
	f.o.Runs = 10
	for i := range 50 {
		id := fmt.Sprintf("r%d", i)
		f.take(id, sent(t, uint64(i+1), "usp.telemetry."+id, "frames", nil, nil))
	}
	if v := f.View(); len(v.Runs) != 10 || v.Hidden == 0 {
		t.Errorf("%d runs are kept, %d are not", len(v.Runs), v.Hidden)
	}
}

// TestKeys wants keys to be keys.
func TestKeys(t *testing.T) {
	key, _ := signed(t, 1)
	for _, bad := range []string{"xyz", key[1:], key + "x", "PRIVATE+KEY+usp+00000000+AA"} {
		if _, err := New(Options{Keys: []string{key, bad}}); err == nil || !strings.Contains(err.Error(), "number 2 ") || strings.Contains(err.Error(), bad) {
			t.Errorf("%q as a key: %v", bad, err)
		}
	}
	if keys, err := ParseKeys([]string{" " + key, key}); err != nil || keys == nil {
		t.Errorf("%v, %v", keys, err)
	} else if _, err := note.Open([]byte("x"), keys); err == nil {
		t.Error("a note that is none was opened")
	}
}

// FuzzTake has anything be in a stream: it is shown bounded, in text, with JSON that can be read, and never as verified.
func FuzzTake(f *testing.F) {
	key, head := signed(f, 1)
	f.Add(false, "frames", "1", "9", "0", "rack", framed(record.AppendRecord(nil, 0, 7, []uint64{1, 2})))
	f.Add(false, "schema", "1", "1", "0", "\u202e", predictor.Schema(4).Text())
	f.Add(true, "head", "5", "5", "clean", "", head("r", 5))
	f.Add(true, "entries", "0", "18446744073709551615", "clean", "", []byte{1})
	f.Fuzz(func(t *testing.T, audit bool, kind, first, next, text, host string, payload []byte) {
		x := newFleet(t, key)
		subject := "usp.telemetry.q"
		if audit {
			subject = "usp.audit.q"
		}
		fields := map[string]string{"First": first, "Next": next, "Records": text, "Lost": next, "Step": first, "Time": text, "Generation": first, "Status": text, "Host": host, "Program": host}
		m := sent(t, 1, subject, kind, fields, payload)
		x.take("q", m)
		r := &Records{fleet: x, id: "q", known: true, described: true, begun: true}
		if m.err == nil && !audit {
			r.sum, r.of = m.m.Schema, m.m.Generation
			if err := r.take(t.Context(), nil, m.m); err != nil {
				t.Fatal(err)
			}
			if e := r.Extent(); e.Records < 0 || e.Records > len(payload)/16 || e.First > e.Last {
				t.Fatalf("%+v", e)
			}
		}
		v := x.View()
		for _, run := range v.Runs {
			if run.Head.Verified {
				t.Errorf("verified: %+v", run.Head)
			}
			for _, s := range []string{run.Host, run.Program, run.Fault, run.Head.Fault, run.State, run.Schema} {
				if len(s) > 4*mostFault+4 || strings.ContainsAny(s, "\x1b\n\r\x00\u202e") {
					t.Errorf("shown is %q", s)
				}
			}
			if b, err := json.Marshal(run); err != nil || !json.Valid(b) {
				t.Errorf("%s, %v", b, err)
			}
		}
	})
}
