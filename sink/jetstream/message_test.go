package jetstream

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"maps"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
	"pgregory.net/rapid"

	"github.com/usp-project/usp/internal/rundir"
)

func TestToken(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		id := rapid.StringMatching(`[a-zA-Z0-9_-][a-zA-Z0-9._-]{0,31}`).Filter(rundir.ValidID).Draw(t, "id")
		subject := telemetryPrefix + token(id)
		if strings.Count(subject, ".") != 2 || strings.ContainsAny(subject, " *>") {
			t.Fatalf("%q is no subject of three tokens", subject)
		}
		if got, ok := runOf(subject, telemetryPrefix); !ok || got != id {
			t.Fatalf("%q is of run %q, %v; want %q", subject, got, ok, id)
		}
	})
	for _, subject := range []string{"usp.telemetry.a.b", "usp.telemetry.", "usp.audit.a", "usp.telemetry.%41", "usp.telemetry.%2e", "usp.telemetry.%", "usp.telemetry.latest", "usp.telemetry.%2Ea"} {
		if run, ok := runOf(subject, telemetryPrefix); ok {
			t.Errorf("%q is of run %q", subject, run)
		}
	}
}

// some are headers of every kind.
func some(payload []byte) []header {
	sum := sha256.Sum256(payload)
	counts := tally{Records: 1 << 60, Lost: 3, Step: 4, Time: -5}
	return []header{
		{kind: kindFrames, first: 1, next: 9, payload: sum, chain: sum, generation: 1<<32 - 1, schema: sum, segment: 1, tally: counts},
		{kind: kindFrames, first: 1, next: 9, payload: sum, incomplete: true},
		{kind: kindSchema, first: 7, next: 7, payload: sum, generation: 2, schema: sum, tally: counts},
		{kind: kindSchema, first: 7, next: 7, payload: sum, schema: sum, host: "rack 7/ü%", program: "usp run"},
		{kind: kindEntries, first: 0, next: 1<<64 - 1, payload: sum, chain: sum},
		{kind: kindHead, first: 7, next: 7, payload: sum, status: "clean"},
		{kind: kindHead, first: 7, next: 7, payload: sum},
	}
}

// TestNames has names of hosts and programs that cannot be shown left out by who sends, and refused of who does not.
func TestNames(t *testing.T) {
	for _, name := range []string{"a\nb", "\x1b[2J", "a\u202eb", "\xff", strings.Repeat("x", maxName+1), "\x00"} {
		h := header{kind: kindSchema, payload: sha256.Sum256(nil), host: name, program: "p"}
		m := h.encode("run", "usp", 0)
		if got, err := decode(m, nil); err != nil || got.host != "" || got.program != "p" {
			t.Errorf("%.20q: %+v, %v; want it left out", name, got, err)
		}
		m["Usp-Host"] = []string{url.PathEscape(name)}
		if got, err := decode(m, nil); !errors.Is(err, errMessage) {
			t.Errorf("%.20q was taken: %+v", name, got)
		}
	}
	h := header{kind: kindSchema, payload: sha256.Sum256(nil)}
	for _, v := range [][]string{{"a", "b"}, {"%"}, {"%zz"}, {""}} {
		m := h.encode("run", "usp", 0)
		if m["Usp-Program"] = v; m.Get("Usp-Host") != "" {
			t.Errorf("a host that is not known is %q", m.Get("Usp-Host"))
		}
		if got, err := decode(m, nil); !errors.Is(err, errMessage) {
			t.Errorf("%q was taken: %+v", v, got)
		}
	}
}

// TestDecode reads what is written, and refuses it when a header is missing, doubled, or not written as it is by encode.
func TestDecode(t *testing.T) {
	payload := []byte("payload")
	for _, want := range some(payload) {
		m := want.encode("run", "usp", 17)
		if got, err := decode(m, payload); err != nil || got != want {
			t.Errorf("%+v, %v; want %+v", got, err, want)
		}
		if _, err := decode(m, []byte("payl0ad")); !errors.Is(err, errMessage) {
			t.Errorf("%s with another payload: %v", want.kind, err)
		}
		if m.Get("Nats-Expected-Last-Subject-Sequence") != "17" || m.Get("Nats-Expected-Stream") != "usp" || !strings.HasPrefix(m.Get("Nats-Msg-Id"), "run/"+want.kind) {
			t.Errorf("%v", m)
		}
		for _, name := range slices.Sorted(maps.Keys(m)) {
			v, ours := m[name], strings.HasPrefix(name, prefix)
			if !ours || name == prefix+"Incomplete" || name == prefix+"Status" || name == prefix+"Host" || name == prefix+"Program" {
				continue
			}
			for _, bad := range [][]string{nil, {v[0], v[0]}, {" " + v[0]}, {"0" + v[0]}, {v[0] + "x"}, {""}, {"+1"}, {"18446744073709551616"}} {
				x := maps.Clone(m)
				x[name] = bad
				if h, err := decode(x, payload); err == nil && !(name == prefix+"Time" && bad != nil) {
					t.Errorf("%s with %s: %q is %+v", want.kind, name, bad, h)
				}
			}
		}
		m[prefix+"Version"] = []string{"2"}
		if _, err := decode(m, payload); err == nil || errors.Is(err, errMessage) || !strings.Contains(err.Error(), "newer") {
			t.Errorf("a later version: %v", err)
		}
	}
	back := header{kind: kindFrames, first: 9, next: 8, payload: sha256.Sum256(payload)}
	if _, err := decode(back.encode("run", "usp", 0), payload); !errors.Is(err, errMessage) {
		t.Errorf("from 9 to 8: %v", err)
	}
	if _, err := decode(nats.Header{}, nil); !errors.Is(err, errMessage) {
		t.Errorf("no headers: %v", err)
	}
}

// TestIDs wants another id for each other content, above all for a longer message that begins with the same frame.
func TestIDs(t *testing.T) {
	seen := map[string]bool{}
	for _, next := range []uint64{2, 3} {
		for _, payload := range []string{"a", "b"} {
			for _, chain := range []string{"c", "d"} {
				h := header{kind: kindFrames, first: 1, next: next, payload: sha256.Sum256([]byte(payload)), chain: sha256.Sum256([]byte(chain))}
				id := h.encode("run", "usp", 0).Get("Nats-Msg-Id")
				if seen[id] {
					t.Errorf("%s twice", id)
				}
				seen[id] = true
			}
		}
	}
}

func TestSplit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := rapid.SliceOf(rapid.SliceOf(rapid.Byte())).Draw(t, "frames")
		var payload []byte
		for _, f := range want {
			payload = appendFrame(payload, f)
		}
		n := 0
		for f, err := range split(payload) {
			if err != nil || !equalFrame(f, want[n]) {
				t.Fatalf("frame %d is %x, %v; want %x", n, f, err, want[n])
			}
			n++
		}
		if n != len(want) {
			t.Fatalf("%d frames, want %d", n, len(want))
		}
		cut := rapid.IntRange(0, len(payload)).Draw(t, "cut")
		var whole []byte
		var failed error
		for f, err := range split(payload[:cut]) {
			if whole, failed = append(whole, f...), err; err != nil {
				break
			}
		}
		if !bytes.HasPrefix(payload, whole) || (failed == nil) != (len(whole) == cut) {
			t.Fatalf("cut at %d: %d bytes of frames, %v", cut, len(whole), failed)
		}
	})
}

// TestTape goes on from a place that was written down as if it had not stopped, wherever the frames were cut.
func TestTape(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		frames := rapid.SliceOfN(rapid.SliceOf(rapid.Byte()), 1, 20).Draw(t, "frames")
		at := rapid.IntRange(0, len(frames)-1).Draw(t, "at")
		whole, part := newTape("usp.telemetry.a"), newTape("usp.telemetry.a")
		for i, f := range frames {
			if whole.add(appendFrame(nil, f)); i == at {
				part.Records = 7
				s := state{Telemetry: part.place(), Audit: newTape("usp.audit.a").place()}
				part, _ = tapes(s.encode(), "a")
				if part.Records != 7 || part.next != uint64(i) {
					t.Fatalf("%+v", part)
				}
			}
			part.add(appendFrame(nil, f))
		}
		if whole.sum() != part.sum() || whole.next != part.next {
			t.Fatal("another sum")
		}
		if other := newTape("usp.telemetry.b"); other.sum() == newTape("usp.telemetry.a").sum() {
			t.Fatal("two runs have one sum")
		}
	})
	for _, bad := range []string{"", "x", "{}", `{"telemetry":{"next":5,"hash":"AAAA"}}`} {
		if a, b := tapes([]byte(bad), "a"); a.next != 0 || b.next != 0 || a.sum() != newTape("usp.telemetry.a").sum() {
			t.Errorf("state %q: at %d and %d", bad, a.next, b.next)
		}
	}
}

func TestCovers(t *testing.T) {
	for _, tt := range []struct {
		pattern, subject string
		want             bool
	}{
		{"usp.telemetry.*", "usp.telemetry.*", true}, {"usp.*.*", "usp.telemetry.*", true}, {"usp.>", "usp.telemetry.*", true}, {">", "usp.audit.*", true},
		{"usp.telemetry.a", "usp.telemetry.*", false}, {"usp.*", "usp.telemetry.*", false}, {"usp.audit.*", "usp.telemetry.*", false}, {"usp.telemetry.*.>", "usp.telemetry.*", false},
		{"usp.telemetry", "usp.telemetry.*", false}, {"", "usp.telemetry.*", false},
	} {
		if got := covers(tt.pattern, tt.subject); got != tt.want {
			t.Errorf("%q covers %q: %v", tt.pattern, tt.subject, got)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, h := range some([]byte("payload")) {
		m := h.encode("run", "usp", 0)
		f.Add(m.Get(prefix+"Kind"), m.Get(prefix+"First"), m.Get(prefix+"Sha256"), m.Get(prefix+"Time"), []byte("payload"))
	}
	f.Fuzz(func(t *testing.T, kind, first, sum, time string, payload []byte) {
		h := some(payload)[0]
		m := h.encode("run", "usp", 0)
		m[prefix+"Kind"], m[prefix+"First"], m[prefix+"Sha256"], m[prefix+"Time"] = []string{kind}, []string{first}, []string{sum}, []string{time}
		got, err := decode(m, payload)
		if err == nil && got.kind == kindFrames && (got.encode("run", "usp", 0).Get(prefix+"First") != first || got.payload != sha256.Sum256(payload)) {
			t.Errorf("%+v is not what it says", got)
		}
		for range split(payload) {
		}
	})
}
