//go:build unix

package ring

import (
	"errors"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// fill is the payload that the tests expect for a sequence number.
func fill(dst []uint64, seq uint64) []uint64 {
	for i := range dst {
		dst[i] = (seq+1)*0x9e3779b97f4a7c15 ^ uint64(i)<<32
	}
	return dst
}

func mustCreate(t testing.TB, cfg Config) *Producer {
	t.Helper()
	if cfg.Path == "" {
		cfg.Path = filepath.Join(t.TempDir(), "a.ring")
	}
	if cfg.PayloadLen == 0 {
		cfg.PayloadLen = 24
	}
	if cfg.Slots == 0 {
		cfg.Slots = 8
	}
	p, err := Create(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close(false) }) // ErrClosed where the test has closed it
	return p
}

func mustOpen(t testing.TB, path string) *Consumer {
	t.Helper()
	c, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func emitN(p *Producer, n int) {
	w := make([]uint64, p.words)
	for range n {
		p.Emit(fill(w, p.Position()))
	}
}

// tally is what a drain came to.
type tally struct {
	Got  []uint64
	Lost []loss
}

func (l *tally) total() uint64 {
	n := uint64(len(l.Got))
	for _, r := range l.Lost {
		n += r.to - r.from
	}
	return n
}

// drain reads until Empty and checks every payload and that the numbers leave no gap.
func drain(t testing.TB, c *Consumer) (out tally) {
	t.Helper()
	w, want := make([]uint64, c.header.Words()), make([]uint64, c.header.Words())
	for at := c.Position(); ; at = c.Position() {
		seq, st := c.Next(w)
		if seq != at {
			t.Fatalf("%v has number %d, want %d", st, seq, at)
		}
		switch st {
		case Got:
			if !slices.Equal(w, fill(want, seq)) {
				t.Fatalf("record %d = %x, want %x", seq, w, want)
			}
			out.Got = append(out.Got, seq)
		case Lost:
			from, to, reason := c.LostRange()
			if from != at || to <= from || c.Position() != to {
				t.Fatalf("lost [%d, %d), position %d -> %d", from, to, at, c.Position())
			}
			out.Lost = append(out.Lost, loss{from, to, reason})
		case Empty:
			return out
		default:
			t.Fatalf("status %v: %v", st, c.Err())
		}
	}
}

func TestRoundTrip(t *testing.T) {
	// 129 words are too many for the fused CRC, 1 to 5 exercise each of its tails.
	for _, words := range []int{1, 2, 3, 4, 5, 6, 7, 8, 26, 127, 128, 129, 1000} {
		p := mustCreate(t, Config{PayloadLen: 8 * words, Slots: 4})
		c := mustOpen(t, p.Path())
		for range 3 {
			emitN(p, 3)
			if got := drain(t, c); len(got.Got) != 3 || len(got.Lost) != 0 {
				t.Fatalf("%d words: got %+v", words, got)
			}
		}
		if c.Produced() != 9 || p.Position() != 9 {
			t.Errorf("%d words: produced %d, position %d, want 9", words, c.Produced(), p.Position())
		}
	}
}

func TestHeaderRoundTrip(t *testing.T) {
	start := time.Date(2026, 11, 22, 20, 18, 33, 5, time.UTC)
	cfg := Config{
		Path: filepath.Join(t.TempDir(), "x.ring"), RunID: "20261122T201833-9f3kq", Generation: 7,
		Schema: []byte("usp-schema v1\n"), Meta: []byte(`{"a":1}`), PayloadLen: 208, Slots: 16,
		StagingCapacity: 1000, Now: func() time.Time { return start },
	}
	p := mustCreate(t, cfg)
	got := mustOpen(t, cfg.Path).Header()
	if diff := cmp.Diff(p.Header(), got); diff != "" {
		t.Error(diff)
	}
	if got.SlotSize != 256 || got.StagingAreas != DefaultStagingAreas || !got.Start.Equal(start) || got.PID != os.Getpid() {
		t.Errorf("header %+v", got)
	}
	for _, name := range []string{cfg.Path, cfg.Path + ".stage0", cfg.Path + ".stage1"} {
		if info, err := os.Stat(name); err != nil || info.Mode() != 0o600 {
			t.Errorf("%s: %v %v, want mode 0600", name, info, err)
		}
	}
	names, err := filepath.Glob(filepath.Join(filepath.Dir(cfg.Path), ".*tmp*"))
	if err != nil || len(names) != 0 {
		t.Errorf("left behind: %v %v", names, err)
	}
}

func TestCreateRefuses(t *testing.T) {
	dir := t.TempDir()
	ok := Config{Path: filepath.Join(dir, "a.ring"), PayloadLen: 8, Slots: 2}
	for name, c := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"payload not words": {func(c *Config) { c.PayloadLen = 12 }, "multiple of 8"},
		"no payload":        {func(c *Config) { c.PayloadLen = 0 }, "multiple of 8"},
		"payload too long":  {func(c *Config) { c.PayloadLen = MaxPayload + 8 }, "multiple of 8"},
		"slots not 2^n":     {func(c *Config) { c.Slots = 3 }, "power of two"},
		"one slot":          {func(c *Config) { c.Slots = 1 }, "power of two"},
		"negative slots":    {func(c *Config) { c.Slots = -4 }, "power of two"},
		"schema too long":   {func(c *Config) { c.Schema = make([]byte, MaxSchema+1) }, "schema of"},
		"meta too long":     {func(c *Config) { c.Meta = make([]byte, MaxMeta+1) }, "metadata of"},
		"run id too long":   {func(c *Config) { c.RunID = strings.Repeat("x", 33) }, "run id"},
		"run id with zero":  {func(c *Config) { c.RunID = "a\x00b" }, "run id"},
		"areas, no size":    {func(c *Config) { c.StagingAreas = 1 }, "both or neither"},
		"too many areas":    {func(c *Config) { c.StagingAreas, c.StagingCapacity = 17, 1 }, "staging areas"},
		"negative capacity": {func(c *Config) { c.StagingCapacity = -1 }, "staging areas"},
		"ring too large":    {func(c *Config) { c.PayloadLen, c.Slots = MaxPayload, MaxSlots }, "at most"},
		"no directory":      {func(c *Config) { c.Path = filepath.Join(dir, "none", "a.ring") }, "no such file"},
	} {
		cfg := ok
		c.change(&cfg)
		p, err := Create(cfg)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want one about %q", name, err, c.want)
		}
		if p != nil {
			t.Errorf("%s: a producer with the error", name)
		}
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) != 0 {
		t.Errorf("left behind: %v %v", names, err)
	}
}

func TestTwoProducersRefused(t *testing.T) {
	p := mustCreate(t, Config{RunID: "first", StagingCapacity: 64})
	again := Config{Path: p.Path(), RunID: "second", PayloadLen: 8, Slots: 2, StagingCapacity: 64}
	_, err := Create(again)
	if !errors.Is(err, ErrExist) || !errors.Is(err, fs.ErrExist) || !strings.Contains(err.Error(), "live producer") {
		t.Errorf("second producer: %v", err)
	}
	// The second must not have touched what the first staged or emits.
	emitN(p, 1)
	c := mustOpen(t, p.Path())
	if got := drain(t, c); len(got.Got) != 1 || c.Header().RunID != "first" {
		t.Errorf("after the refusal: %+v", got)
	}
	if !p.Stage(1, 0, 3, func(b []byte) { copy(b, "abc") }) {
		t.Error("no area after the refusal")
	}
	if s, ok := c.Staged(); !ok || string(s.Bytes()) != "abc" {
		t.Error("staged content lost after the refusal")
	}
	if err := p.Close(false); err != nil {
		t.Fatal(err)
	}
	if _, err := Create(again); !errors.Is(err, ErrExist) || !strings.Contains(err.Error(), "gone") {
		t.Errorf("after the first is gone: %v", err)
	}
	if err := os.WriteFile(p.Path()+"x", []byte("something"), 0o600); err != nil {
		t.Fatal(err)
	}
	again.Path += "x"
	if _, err := Create(again); !errors.Is(err, ErrExist) || !strings.Contains(err.Error(), "not a usable ring") {
		t.Errorf("over another file: %v", err)
	}
}

// TestCreateTakesOverStaleStaging: staging files without their ring belong to nobody.
func TestCreateTakesOverStaleStaging(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.ring")
	if err := os.WriteFile(path+".stage1", []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := mustCreate(t, Config{Path: path, StagingCapacity: 8})
	c := mustOpen(t, path)
	for range 2 {
		if !p.Stage(0, 0, 1, func([]byte) {}) {
			t.Error("no free area")
		}
	}
	for range 2 {
		if _, ok := c.Staged(); !ok {
			t.Error("no staged state")
		}
	}
}

// TestNoSpace: a ring that does not fit is refused at once, not by a signal later.
func TestNoSpace(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("elsewhere the file system would have to be filled for it: not tried")
	}
	dir := t.TempDir()
	cfg := Config{Path: filepath.Join(dir, "a.ring"), PayloadLen: 8, Slots: 2, StagingAreas: 1}
	cfg.StagingCapacity = int64(describe(dir, "").Free) + 1<<30
	if _, err := Create(cfg); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("a staging area larger than the file system: %v", err)
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) != 0 {
		t.Errorf("left behind: %v %v", names, err)
	}
	cfg.StagingCapacity = 1 << 20
	p := mustCreate(t, cfg)
	for _, name := range []string{p.Path(), p.Path() + ".stage0"} {
		var st unix.Stat_t
		if err := unix.Stat(name, &st); err != nil || st.Blocks*512 < st.Size {
			t.Errorf("%s: %d of %d bytes are allocated: %v", name, st.Blocks*512, st.Size, err)
		}
	}
}

func TestOverrunAccounting(t *testing.T) {
	const slots = 8
	for _, c := range []struct {
		name    string
		emit    int
		close   bool
		want    []loss
		wantGot int
	}{
		{"exactly full", 8, false, nil, 8},
		{"one over, alive", 9, false, []loss{{0, 2, Overrun}}, 7}, // the oldest is the next to go: given up
		{"one over, closed", 9, true, []loss{{0, 1, Overrun}}, 8},
		{"many laps, alive", 83, false, []loss{{0, 76, Overrun}}, 7},
		{"many laps, closed", 83, true, []loss{{0, 75, Overrun}}, 8},
		{"nothing", 0, true, nil, 0},
	} {
		p := mustCreate(t, Config{Slots: slots})
		r := mustOpen(t, p.Path())
		emitN(p, c.emit)
		if c.close {
			if err := p.Close(true); err != nil {
				t.Fatal(err)
			}
		}
		got := drain(t, r)
		if len(got.Got) != c.wantGot || !slices.Equal(got.Lost, c.want) {
			t.Errorf("%s: got %v lost %v, want %d and %v", c.name, got.Got, got.Lost, c.wantGot, c.want)
		}
		if got.total() != uint64(c.emit) || r.Produced() != uint64(c.emit) {
			t.Errorf("%s: got + lost = %d, produced %d, emitted %d", c.name, got.total(), r.Produced(), c.emit)
		}
	}
}

// TestRepeatedOverruns: a consumer that is lapped again and again gives up more
// each time, at most half the ring, and starts anew after a calm lap.
func TestRepeatedOverruns(t *testing.T) {
	p := mustCreate(t, Config{Slots: 16})
	c := mustOpen(t, p.Path())
	w := make([]uint64, p.words)
	var gaveUp []uint64
	for range 6 {
		emitN(p, 32)
		if _, st := c.Next(w); st != Lost {
			t.Fatalf("status %v, want lost", st)
		}
		_, to, _ := c.LostRange()
		gaveUp = append(gaveUp, to-(p.Position()-16))
	}
	if want := []uint64{1, 2, 4, 8, 8, 8}; !slices.Equal(gaveUp, want) {
		t.Errorf("gave up %v, want %v", gaveUp, want)
	}
	for range 8 {
		drain(t, c)
		emitN(p, 4)
	}
	emitN(p, 32)
	c.Next(w)
	if _, to, _ := c.LostRange(); to != p.Position()-15 {
		t.Errorf("after a calm lap resumed at %d of %d", to, p.Position())
	}
}

func TestModel(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		dir, err := os.MkdirTemp(t.TempDir(), "")
		if err != nil {
			r.Fatal(err)
		}
		words := rapid.IntRange(1, 40).Draw(r, "words")
		p, err := Create(Config{Path: filepath.Join(dir, "a"), PayloadLen: 8 * words, Slots: 1 << rapid.IntRange(1, 5).Draw(r, "log2 slots")})
		if err != nil {
			r.Fatal(err)
		}
		defer p.Close(true)
		c, err := Open(p.Path())
		if err != nil {
			r.Fatal(err)
		}
		defer c.Close()
		var counted uint64
		w, want := make([]uint64, 4*words), make([]uint64, words)
		for range rapid.IntRange(1, 20).Draw(r, "turns") {
			emitN(p, rapid.IntRange(0, 100).Draw(r, "emit"))
			for range rapid.IntRange(0, 10).Draw(r, "read") {
				seq, n, st := c.NextBatch(w[:words*rapid.IntRange(1, 4).Draw(r, "batch")])
				for i := range n {
					if !slices.Equal(w[i*words:(i+1)*words], fill(want, seq+uint64(i))) {
						r.Fatalf("record %d is not as emitted", seq+uint64(i))
					}
				}
				counted += uint64(n)
				if st == Lost {
					from, to, _ := c.LostRange()
					counted += to - from
				}
				if st == Empty && counted != p.Position() {
					r.Fatalf("empty after %d of %d", counted, p.Position())
				}
				if counted != c.Position() {
					r.Fatalf("counted %d, position %d", counted, c.Position())
				}
			}
		}
	})
}

func TestSeek(t *testing.T) {
	p := mustCreate(t, Config{Slots: 8})
	c := mustOpen(t, p.Path())
	emitN(p, 6)
	c.Seek(4)
	if got := drain(t, c); !slices.Equal(got.Got, []uint64{4, 5}) {
		t.Errorf("from 4: %v", got.Got)
	}
	c.Seek(8)
	if _, st := c.Next(make([]uint64, 3)); st != Empty {
		t.Errorf("beyond the end: %v", st)
	}
	if c.Produced() != 6 {
		t.Errorf("produced %d after a seek beyond the end, want 6", c.Produced())
	}
	c.Seek(math.MaxUint64)
	if _, st := c.Next(make([]uint64, 3)); st != Empty || c.Position() != maxSeq {
		t.Errorf("as far as can be: %v at %d", st, c.Position())
	}
	c.Seek(8)
	emitN(p, 3)
	if got := drain(t, c); !slices.Equal(got.Got, []uint64{8}) {
		t.Errorf("caught up: %v", got.Got)
	}
}

func TestEmitAllocatesNothing(t *testing.T) {
	p := mustCreate(t, Config{PayloadLen: 208, Slots: 64, StagingCapacity: 4096})
	c := mustOpen(t, p.Path())
	w := make([]uint64, 26)
	if n := testing.AllocsPerRun(1000, func() { p.Emit(w); p.Beat() }); n != 0 {
		t.Errorf("Emit allocates %v", n)
	}
	zero := func(b []byte) { clear(b) }
	if n := testing.AllocsPerRun(100, func() { p.Stage(1, 2, 4096, zero) }); n != 0 {
		t.Errorf("Stage allocates %v", n)
	}
	if n := testing.AllocsPerRun(100, func() { p.Emit(w); c.Next(w) }); n != 0 {
		t.Errorf("Next allocates %v", n)
	}
}

func TestSlotCRC(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		c := newSlotCRC(8 * rapid.IntRange(1, 1000).Draw(r, "words"))
		for _, done := range rapid.SliceOf(rapid.Uint64()).Draw(r, "done") {
			if got, want := c.prefix(done), c.prefixSlow(done); got != want {
				r.Fatalf("prefix(%#x) = %08x, want %08x", done, got, want)
			}
		}
	})
}

func TestStrings(t *testing.T) {
	for want, s := range map[string]interface{ String() string }{
		"empty": Empty, "got": Got, "lost": Lost, "failed": Failed, "status(9)": Status(9),
		"overrun": Overrun, "torn": Torn, "reason(9)": LostReason(9),
		"open": StateOpen, "closed": StateClosed, "state(9)": ProducerState(9),
	} {
		if s.String() != want {
			t.Errorf("%q, want %q", s.String(), want)
		}
	}
	if StateFailed.String() != "failed" {
		t.Error(StateFailed)
	}
}
