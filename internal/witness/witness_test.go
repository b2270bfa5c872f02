package witness_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/internal/witness"
	"github.com/usp-project/usp/internal/witness/witnesstest"
)

const (
	runID  = "20261122T201833-9f3kq"
	origin = "usp/" + runID
	name   = "witness.example/w1"
)

var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newSigner(t testing.TB, name string, b byte) *witness.Signer {
	t.Helper()
	s, err := witness.NewSigner(name, ed25519.NewKeyFromSeed(bytes.Repeat([]byte{b}, ed25519.SeedSize)), func() time.Time { return noon })
	check(t, err)
	return s
}

// book is a log in memory, with its witness on the loopback.
type book struct {
	t       testing.TB
	fs      *vfs.Mem
	log     *digestlog.Log
	signer  note.Signer
	key     note.Verifier
	steps   uint64
	witness *witnesstest.Witness
	server  *httptest.Server
	client  *witness.Client
}

func newBook(t testing.TB) *book {
	t.Helper()
	b := &book{t: t, fs: vfs.NewMem(), witness: witnesstest.New(newSigner(t, name, 1))}
	var vkey string
	var err error
	b.signer, vkey, err = digestlog.LoadOrCreateKey(vfs.NewMem(), "/key", bytes.NewReader(bytes.Repeat([]byte{5}, 34)))
	check(t, err)
	b.key, err = note.NewVerifier(vkey)
	check(t, err)
	b.log = b.open("/run")
	b.witness.Trust("usp/", b.key)
	b.server = httptest.NewServer(b.witness)
	t.Cleanup(b.server.Close)
	b.client, err = witness.NewClient(b.server.URL+"/w/", []string{newSigner(t, name, 1).VerifierKey()}, nil)
	check(t, err)
	return b
}

func (b *book) open(dir string) *digestlog.Log {
	l, err := digestlog.Open(dir+"/digests", digestlog.Options{FS: b.fs, RunID: runID, Signer: b.signer, SegmentSize: 4 << 10, Now: func() time.Time { return noon }})
	check(b.t, err)
	return l
}

// grow appends n entries to a log and signs.
func (b *book) grow(l *digestlog.Log, n int) *digestlog.SignedTreeHead {
	for range n {
		b.steps++
		_, err := l.Append(&digestlog.Entry{Kind: digestlog.KindStep, Step: b.steps, Seq: b.steps, Digests: make([][32]byte, 2)})
		check(b.t, err)
	}
	check(b.t, l.Sync())
	h, err := l.SignHead()
	check(b.t, err)
	return &h
}

func (b *book) prove(from, to uint64) ([]tlog.Hash, error) {
	if from == 0 {
		return nil, nil
	}
	g, err := digestlog.ReadGrowth(b.fs, "/run/digests", from, to)
	if err != nil {
		return nil, err
	}
	return g.Proof(), nil
}

// TestCosign: a log that grows is cosigned each time, whatever the client believes that the witness has seen.
func TestCosign(t *testing.T) {
	b := newBook(t)
	var old uint64
	for i, n := range []int{1, 2, 1, 0, 40, 200} {
		h := b.grow(b.log, n)
		for _, believed := range []uint64{old, 0, h.Size + 7} {
			cosigned, err := b.client.Cosign(t.Context(), h, believed, b.prove)
			check(t, err)
			if _, err := digestlog.ParseHead(cosigned, note.VerifierList(b.key)); err != nil {
				t.Errorf("head %d: what is cosigned is no head any more: %v", i, err)
			}
			sigs, err := witness.Cosignatures(cosigned, newSigner(t, name, 1))
			check(t, err)
			at, err := witness.Time(sigs[0])
			if len(sigs) != 1 || err != nil || !at.Equal(noon) || !bytes.HasPrefix(cosigned, h.Note) {
				t.Errorf("head %d: %v at %v, %v\n%s", i, sigs, at, err, cosigned)
			}
			old = h.Size
		}
		if got := b.witness.Latest(origin); got.Size != h.Size || !bytes.Equal(got.Root, h.Root[:]) {
			t.Errorf("head %d: the witness has seen %+v", i, got)
		}
	}
}

// TestCosignAnyGrowth is TestCosign at random.
func TestCosignAnyGrowth(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		b := newBook(t)
		defer b.server.Close()
		for range rapid.IntRange(1, 5).Draw(rt, "heads") {
			h := b.grow(b.log, rapid.IntRange(1, 70).Draw(rt, "entries"))
			if rapid.Bool().Draw(rt, "skipped") {
				continue
			}
			if _, err := b.client.Cosign(t.Context(), h, rapid.Uint64Range(0, 2*h.Size).Draw(rt, "old"), b.prove); err != nil {
				rt.Fatal(err)
			}
		}
	})
}

// TestAttacks: a log that was put back, or written again, is not cosigned, and the client says which it was.
func TestAttacks(t *testing.T) {
	b := newBook(t)
	early := b.grow(b.log, 10)
	last := b.grow(b.log, 10)
	_, err := b.client.Cosign(t.Context(), last, 0, b.prove)
	check(t, err)
	if _, err := b.client.Cosign(t.Context(), early, 0, b.prove); !errors.Is(err, witness.ErrAhead) || !strings.Contains(err.Error(), "20 entries against 10") {
		t.Errorf("rolled back: %v", err)
	}
	other := b.open("/other")
	same := b.grow(other, 20)
	proveOther := func(from, to uint64) ([]tlog.Hash, error) {
		if from == 0 {
			return nil, nil
		}
		g, err := digestlog.ReadGrowth(b.fs, "/other/digests", from, to)
		if err != nil {
			return nil, err
		}
		return g.Proof(), nil
	}
	if _, err := b.client.Cosign(t.Context(), same, 0, proveOther); !errors.Is(err, witness.ErrForked) {
		t.Errorf("another log of the same size: %v", err)
	}
	longer := b.grow(other, 5)
	if _, err := b.client.Cosign(t.Context(), longer, 20, proveOther); !errors.Is(err, witness.ErrProof) {
		t.Errorf("a longer other log: %v", err)
	}
	if got := b.witness.Latest(origin); got.Size != 20 || !bytes.Equal(got.Root, last.Root[:]) {
		t.Errorf("the witness was talked into %+v", got)
	}
	if _, err := b.client.Cosign(t.Context(), b.grow(b.log, 1), 20, b.prove); err != nil {
		t.Errorf("the true log: %v", err)
	}
}

// TestRefusals: the witness's reasons, each by its own error.
func TestRefusals(t *testing.T) {
	b := newBook(t)
	h := b.grow(b.log, 3)
	_, strangeKey, err := digestlog.LoadOrCreateKey(vfs.NewMem(), "/key", bytes.NewReader(bytes.Repeat([]byte{6}, 34)))
	check(t, err)
	strange, err := note.NewVerifier(strangeKey)
	check(t, err)
	b.witness.Trust("usp/", strange)
	if _, err := b.client.Cosign(t.Context(), h, 0, b.prove); !errors.Is(err, witness.ErrNotTrusted) || !strings.Contains(err.Error(), b.server.URL) {
		t.Errorf("unknown key: %v", err)
	}
	b.witness.Trust("usp/")
	elsewhere := witnesstest.New(newSigner(t, name, 1))
	server := httptest.NewServer(elsewhere)
	defer server.Close()
	c, err := witness.NewClient(server.URL, []string{newSigner(t, name, 1).VerifierKey()}, nil)
	check(t, err)
	if _, err := c.Cosign(t.Context(), h, 0, b.prove); !errors.Is(err, witness.ErrUnknownLog) {
		t.Errorf("unknown log: %v", err)
	}
	b.witness.Trust("usp/", b.key)
	c, err = witness.NewClient(b.server.URL, []string{newSigner(t, name, 2).VerifierKey()}, nil)
	check(t, err)
	if _, err := c.Cosign(t.Context(), h, 0, b.prove); !errors.Is(err, witness.ErrNoAnswer) {
		t.Errorf("another key of the witness: %v", err)
	}
}

// TestAnswers lets a server that is no honest witness answer.
func TestAnswers(t *testing.T) {
	b := newBook(t)
	h := b.grow(b.log, 3)
	signer := newSigner(t, name, 1)
	text, _, _ := strings.Cut(string(h.Note), "\n\n")
	line := func(text string, s *witness.Signer) string {
		signed, err := note.Sign(&note.Note{Text: text + "\n"}, s)
		check(t, err)
		_, sigs, _ := strings.Cut(string(signed), "\n\n")
		return sigs
	}
	good, other := line(text, signer), line(text, newSigner(t, "other.example", 7))
	for _, tc := range []struct {
		name   string
		status int
		body   string
		want   string // of the error; empty: none
	}{
		{"good", 200, good, ""},
		{"among others", 200, other + good, ""},
		{"only others", 200, other, "with a key that was named"},
		{"of another head", 200, line(strings.Replace(text, "\n3\n", "\n4\n", 1), signer), "its answer cannot be used"},
		{"nothing", 200, "", "with a key that was named"},
		{"no signature lines", 200, "thank you\n", "its answer cannot be used"},
		{"endless", 200, strings.Repeat("x", 1<<17), "an answer of more than"},
		{"conflict without a size", 409, "", "does not say which"},
		{"conflict with nonsense", 409, "012\n", "does not say which"},
		{"conflict with what it was told", 409, "0\n", "has seen the log with 0 entries"},
		{"bad request", 400, "", "status 400"},
		{"redirect", 307, "", "status 307"},
		{"broken", 500, "", "status 500"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			asked := 0
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				asked++
				w.Header().Set("Location", b.server.URL+"/add-checkpoint")
				w.WriteHeader(tc.status)
				fmt.Fprint(w, tc.body)
			}))
			defer server.Close()
			c, err := witness.NewClient(server.URL, []string{signer.VerifierKey()}, nil)
			check(t, err)
			cosigned, err := c.Cosign(t.Context(), h, 0, b.prove)
			switch {
			case tc.want == "":
				if err != nil || string(cosigned) != string(h.Note)+good {
					t.Errorf("%v, %q", err, cosigned)
				}
			case err == nil || !strings.Contains(err.Error(), tc.want):
				t.Errorf("got %v, want %q", err, tc.want)
			}
			if asked != 1 {
				t.Errorf("asked %d times", asked)
			}
		})
	}
	if n := b.witness.Requests(); n != 0 {
		t.Errorf("a redirect was followed %d times", n)
	}
	// One that never agrees with itself is not asked for ever.
	n := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		n++
		w.WriteHeader(409)
		fmt.Fprintf(w, "%d\n", n%3)
	}))
	defer server.Close()
	c, err := witness.NewClient(server.URL, []string{signer.VerifierKey()}, nil)
	check(t, err)
	if _, err := c.Cosign(t.Context(), h, 0, b.prove); err == nil || n != 3 {
		t.Errorf("asked %d times, %v", n, err)
	}
}

// TestTimeout: a witness that does not answer is left when the context ends.
func TestTimeout(t *testing.T) {
	b := newBook(t)
	h := b.grow(b.log, 3)
	release := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	defer server.Close()
	defer close(release)
	c, err := witness.NewClient(server.URL, []string{newSigner(t, name, 1).VerifierKey()}, nil)
	check(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := c.Cosign(ctx, h, 0, b.prove); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
}

// TestStrictWitness: the witness refuses what its specification wants refused, so that a client that passes here passes elsewhere.
func TestStrictWitness(t *testing.T) {
	b := newBook(t)
	h := b.grow(b.log, 8)
	hash := strings.Repeat("A", 43) + "=\n"
	for _, tc := range []struct {
		body   string
		status int
	}{
		{"", 400}, {"old 0\n\n", 400}, {"old 00\n\n" + string(h.Note), 400}, {"old -1\n\n" + string(h.Note), 400}, {"old 9\n\n" + string(h.Note), 400},
		{"new 0\n\n" + string(h.Note), 400}, {"old 0\nx\n\n" + string(h.Note), 400}, {"old 1\n" + strings.Repeat(hash, 64) + "\n" + string(h.Note), 400},
		{"old 1\n\n" + string(h.Note), 409}, {"old 0\n" + hash + "\n" + string(h.Note), 422}, {"old 0\n\n" + string(h.Note[:len(h.Note)-3]), 403},
		{"old 0\n\n" + strings.Replace(string(h.Note), "usp/", "abc/", 1), 404},
		{"old 0\n\n" + string(h.Note), 200}, {"old 8\n\n" + string(h.Note), 200}, {"old 8\n" + hash + "\n" + string(h.Note), 422}, {"old 0\n\n" + string(h.Note), 409},
	} {
		resp, err := http.Post(b.server.URL+"/add-checkpoint", "text/plain", strings.NewReader(tc.body))
		check(t, err)
		check(t, resp.Body.Close())
		if resp.StatusCode != tc.status {
			t.Errorf("%.60q: status %d, want %d", tc.body, resp.StatusCode, tc.status)
		}
	}
}

// TestKeys reads and refuses verifier keys.
func TestKeys(t *testing.T) {
	s := newSigner(t, name, 1)
	v, err := witness.ParseKey(s.VerifierKey())
	check(t, err)
	if v.Name() != name || v.KeyHash() != s.KeyHash() {
		t.Errorf("%s %x", v.Name(), v.KeyHash())
	}
	good := s.VerifierKey()
	for _, bad := range []string{
		"", "a", "a+b", "+00000000+BA==", good[:len(good)-4], strings.Replace(good, name, "x", 1), strings.Replace(good, "+", "+0", 1),
		"usp-3ac1+aa+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW", "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW", "a b" + good,
	} {
		if _, err := witness.ParseKey(bad); !errors.Is(err, witness.ErrKey) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestCheckURL(t *testing.T) {
	for _, good := range []string{"http://localhost", "https://witness.example/submit/", "http://[::1]:80/x"} {
		if err := witness.CheckURL(good); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	for _, bad := range []string{"", "witness.example", "ftp://x", "file:///x", "http://", "https://me:s3cret@x/", "https://x/?token=s3cret", "https://x/#s3cret", "http://x/%zzs3cret"} {
		if err := witness.CheckURL(bad); err == nil || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func FuzzParseKey(f *testing.F) {
	f.Add(newSigner(f, name, 1).VerifierKey())
	f.Add("PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW")
	f.Add("a+00000000+BA==")
	f.Fuzz(func(t *testing.T, text string) {
		v, err := witness.ParseKey(text)
		if err != nil {
			if !errors.Is(err, witness.ErrKey) {
				t.Errorf("%v", err)
			}
			return
		}
		if v.Name() == "" || v.Verify([]byte("x\n"), make([]byte, 72)) || v.Verify(nil, nil) {
			t.Errorf("%q verifies what nobody has signed", text)
		}
	})
}

func FuzzCosignatures(f *testing.F) {
	s := newSigner(f, name, 1)
	signed, err := note.Sign(&note.Note{Text: origin + "\n1\nx\n"}, s)
	check(f, err)
	f.Add(signed)
	f.Add([]byte("x\n\n— " + name + " AAAA\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		sigs, err := witness.Cosignatures(b, s)
		if err == nil && len(sigs) > 0 && !bytes.HasPrefix(b, signed[:bytes.Index(signed, []byte("\n\n"))]) {
			t.Errorf("a cosignature on %q", b)
		}
		for _, sig := range sigs {
			if at, err := witness.Time(sig); err != nil || !at.Equal(noon) {
				t.Errorf("%v, %v", at, err)
			}
		}
	})
}

// TestOtherImplementation: a cosignature that another implementation (transparency-dev/formats) has made with the key of the tests.
func TestOtherImplementation(t *testing.T) {
	const theirs = `usp/20261122T201833-9f3kq
30
23JuDoPHoaFcqzxLc/4307R1VdT2k00oOrbN2Y4UiI8=

— witness.example/w1 CtfTXgAAAABrBkkRcTVh3N+uDL/0VdVIUeTu6z9f46Mi6EemYoliG5dUecqYJPfkT7wEUsTUXka+FybZHmoarwI7occyaRap71Z0DA==
`
	key, err := witness.ParseKey(newSigner(t, name, 1).VerifierKey())
	check(t, err)
	sigs, err := witness.Cosignatures([]byte(theirs), key)
	check(t, err)
	if len(sigs) != 1 || key.KeyHash() != 0x0ad7d35e {
		t.Fatalf("%v, key %08x", sigs, key.KeyHash())
	}
	if at, err := witness.Time(sigs[0]); err != nil || at.Unix() != 0x6b064911 {
		t.Errorf("%v, %v", at, err)
	}
}
