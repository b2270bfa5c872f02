package snapshot_test

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"testing"

	"filippo.io/age"
	"go.uber.org/goleak"

	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/snapshot"
)

// small is a snapshot of a few hundred bytes that has every part of the format.
func small(t testing.TB, codec snapshot.Codec) []byte {
	mem := vfs.NewMem()
	zip := make([]byte, 300)
	copy(zip, "compressible")
	info := write(t, mem, meta(3), []snapshot.Section{{Name: "zip", Data: zip}, {Name: "raw", Data: noise(70)}, {Name: "empty"}}, codec)
	return get(t, mem, "/"+info.Name)
}

// classified says whether err is of exactly one documented class.
func classified(err error) error {
	var corrupt *snapshot.CorruptError
	n := 0
	for _, is := range []bool{errors.As(err, &corrupt), errors.Is(err, snapshot.ErrNotSnapshot), errors.Is(err, snapshot.ErrVersion), errors.Is(err, snapshot.ErrMismatch),
		errors.Is(err, snapshot.ErrEncrypted), errors.Is(err, snapshot.ErrWrongIdentity)} {
		if is {
			n++
		}
	}
	if n != 1 {
		return fmt.Errorf("error of %d classes: %w", n, err)
	}
	return nil
}

func TestEveryByteFlipped(t *testing.T) {
	for _, codec := range []snapshot.Codec{snapshot.None, snapshot.Zstd} {
		good := small(t, codec)
		mem := vfs.NewMem()
		for i := range good {
			for _, flip := range []byte{0x01, 0x80, 0xff} {
				bad := append([]byte(nil), good...)
				bad[i] ^= flip
				put(t, mem, "/x.snap", bad)
				_, sections, err := snapshot.Load(mem, "/x.snap", nil)
				if err == nil || sections != nil {
					t.Fatalf("codec %v: byte %d flipped by %#x: loaded, err %v", codec, i, flip, err)
				}
				if cerr := classified(err); cerr != nil {
					t.Fatalf("codec %v: byte %d flipped by %#x: %v", codec, i, flip, cerr)
				}
				checkPlace(t, good, i, err)
				if _, verr := snapshot.Verify(mem, "/x.snap", nil); verr == nil || verr.Error() != err.Error() {
					t.Fatalf("byte %d: Verify says %v, Load %v", i, verr, err)
				}
			}
		}
	}
}

// checkPlace wants the offset to be in the same part of the file as the damage.
func checkPlace(t *testing.T, good []byte, i int, err error) {
	t.Helper()
	var c *snapshot.CorruptError
	if !errors.As(err, &c) {
		if i >= 8 {
			t.Fatalf("byte %d flipped: %v, want a *CorruptError", i, err)
		}
		return
	}
	footer := int64(len(good) - 128)
	part := func(off int64) string {
		switch {
		case off < 256:
			return "header"
		case off >= footer:
			return "footer"
		}
		return "body"
	}
	if part(c.Offset) != part(int64(i)) {
		t.Fatalf("byte %d flipped, reported at %d: %v", i, c.Offset, err)
	}
}

func TestEveryPrefix(t *testing.T) {
	for _, codec := range []snapshot.Codec{snapshot.None, snapshot.Zstd} {
		good := small(t, codec)
		mem := vfs.NewMem()
		for n := range good {
			put(t, mem, "/x.snap", good[:n])
			_, sections, err := snapshot.Load(mem, "/x.snap", nil)
			if !errors.Is(err, snapshot.ErrTruncated) || sections != nil {
				t.Fatalf("cut to %d bytes: %v, want ErrTruncated", n, err)
			}
			var c *snapshot.CorruptError
			if !errors.As(err, &c) || c.File != "/x.snap" {
				t.Fatalf("cut to %d bytes: %v names no file", n, err)
			}
		}
		for _, extra := range [][]byte{{0}, good} {
			put(t, mem, "/x.snap", append(append([]byte(nil), good...), extra...))
			if _, _, err := snapshot.Load(mem, "/x.snap", nil); classified(err) != nil {
				t.Fatalf("%d bytes behind the end: %v", len(extra), err)
			}
		}
	}
}

// TestCrashAtEveryOperation cuts the power before each operation of a Write and
// wants what List calls good to load, and a Write that returned to be there.
func TestCrashAtEveryOperation(t *testing.T) {
	old := []snapshot.Section{{Name: "s", Data: noise(5000)}}
	next := []snapshot.Section{{Name: "s", Data: noise(9000)}}
	rng := rand.New(rand.NewPCG(1, 2))
	for _, policy := range []vfs.Policy{vfs.DropAll, vfs.KeepAll, vfs.Mixed, vfs.Garbage} {
		mem := vfs.NewMem()
		first := write(t, mem, meta(1), old, snapshot.None)
		crashes := 0
		mem.SetHook(func(vfs.Op) {
			crashes++
			for range 4 {
				checkCrash(t, mem.Crash(rng, policy), first, false)
			}
		})
		second := write(t, mem, meta(2), next, snapshot.None)
		mem.SetHook(nil)
		if crashes < 10 {
			t.Fatalf("only %d operations seen", crashes)
		}
		for range 20 {
			after := mem.Crash(rng, policy)
			checkCrash(t, after, first, true)
			if _, _, err := snapshot.Load(after, "/"+second.Name, &second.SHA256); err != nil {
				t.Fatalf("policy %v: acknowledged snapshot: %v", policy, err)
			}
		}
	}
}

func checkCrash(t *testing.T, after *vfs.Mem, first snapshot.Info, done bool) {
	t.Helper()
	list, err := snapshot.List(after, "/")
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range list {
		if i.Err != nil {
			t.Fatalf("after a crash (done %v): %v", done, i.Err)
		}
		if _, err := snapshot.Verify(after, "/"+i.Name, nil); err != nil {
			t.Fatalf("after a crash (done %v): %v", done, err)
		}
	}
	if _, _, err := snapshot.Load(after, "/"+first.Name, &first.SHA256); err != nil {
		t.Fatalf("older snapshot after a crash: %v", err)
	}
}

// TestErrorAtEveryOperation fails each operation once. The error must come out,
// and a failed Write must leave no name behind that a later one would trip over.
func TestErrorAtEveryOperation(t *testing.T) {
	s := []snapshot.Section{{Name: "s", Data: noise(5000)}}
	for nth := 1; ; nth++ {
		mem := vfs.NewMem()
		in := vfs.Inject(mem, vfs.Rule{Nth: nth})
		_, err := snapshot.Write("/", meta(1), s, snapshot.Options{FS: in})
		if len(in.Fired()) == 0 {
			if err != nil || nth < 10 {
				t.Fatalf("after %d operations: %v", nth, err)
			}
			return
		}
		op := in.Fired()[0]
		if op.Kind == vfs.OpClose && err == nil {
			continue // closing a file that was only read
		}
		if !errors.Is(err, syscall.EIO) {
			t.Errorf("%v failed, Write says %v", op, err)
		}
		// What is there under the name is whole: an error after the link may leave it.
		if _, verr := snapshot.Verify(mem, "/"+snapshot.FileName(1, 2), nil); verr != nil && !errors.Is(verr, fs.ErrNotExist) {
			t.Errorf("%v failed: %v", op, verr)
		}
	}
}

// TestOrder wants state and padding to be read back before the footer makes the
// file whole, and a file to be read once more, synced, and only then linked.
func TestOrder(t *testing.T) {
	mem := vfs.NewMem()
	var order []vfs.OpKind
	mem.SetHook(func(op vfs.Op) {
		if k := op.Kind & (vfs.OpWrite | vfs.OpSync | vfs.OpRead | vfs.OpLink | vfs.OpSyncDir); k != 0 && (len(order) == 0 || order[len(order)-1] != k) {
			order = append(order, k)
		}
	})
	write(t, mem, meta(1), []snapshot.Section{{Name: "s", Data: noise(5000)}}, snapshot.None)
	want := []vfs.OpKind{vfs.OpWrite, vfs.OpRead, vfs.OpWrite, vfs.OpRead, vfs.OpWrite, vfs.OpRead, vfs.OpSync, vfs.OpLink, vfs.OpSyncDir}
	if !slices.Equal(order, want) {
		t.Errorf("order %v, want %v", order, want)
	}
}

// TestReadBackFindsLostWrite lets the disk forget a write without saying so.
func TestReadBackFindsLostWrite(t *testing.T) {
	s := []snapshot.Section{{Name: "s", Data: noise(5000)}}
	for _, codec := range []snapshot.Codec{snapshot.None, snapshot.Zstd} {
		mem := vfs.NewMem()
		lying := &flipFS{FS: mem}
		_, err := snapshot.Write("/", meta(1), s, snapshot.Options{FS: lying, Codec: codec})
		if err == nil {
			t.Errorf("codec %v: a write that stored other bytes was not found", codec)
		}
		if list, _ := mem.ReadDir("/"); len(list) != 0 {
			t.Errorf("left behind %v", list)
		}
	}
}

// TestReadBackComparesState wants what was written to be decoded and compared with
// the state: here the state is made another one behind the encoder's back.
func TestReadBackComparesState(t *testing.T) {
	to := []age.Recipient{identity(t).Recipient()}
	for _, o := range []snapshot.Options{{}, {Codec: snapshot.Zstd}, {Recipients: to}, {Codec: snapshot.Zstd, Recipients: to}} {
		mem := vfs.NewMem()
		state := make([]byte, 5000)
		mem.SetHook(func(op vfs.Op) {
			if op.Kind == vfs.OpRead {
				state[17] = 1
			}
		})
		o.FS = mem
		_, err := snapshot.Write("/", meta(1), []snapshot.Section{{Name: "s", Data: state}}, o)
		if err == nil || !strings.Contains(err.Error(), "differs from the state") {
			t.Errorf("codec %v, %d recipients: %v", o.Codec, len(o.Recipients), err)
		}
	}
}

// flipFS stores one wrong byte of each large write.
type flipFS struct{ vfs.FS }

func (f *flipFS) OpenFile(name string, flag int, perm fs.FileMode) (vfs.File, error) {
	file, err := f.FS.OpenFile(name, flag, perm)
	return flipFile{file}, err
}

type flipFile struct{ vfs.File }

func (f flipFile) Write(b []byte) (int, error) {
	if len(b) > 1000 {
		b = append([]byte(nil), b...)
		b[999] ^= 4
	}
	return f.File.Write(b)
}

// TestWriteJoins wants the goroutine that hashes to have ended when Write returns,
// however it returns.
func TestWriteJoins(t *testing.T) {
	s := []snapshot.Section{{Name: "s", Data: noise(3 << 20)}}
	for _, codec := range []snapshot.Codec{snapshot.None, snapshot.Zstd} {
		for _, rule := range []vfs.Rule{{Op: vfs.OpCreate}, {Op: vfs.OpWrite, Nth: 2}, {Op: vfs.OpRead, Nth: 2}, {Op: vfs.OpSync}, {Nth: 1000}} {
			in := vfs.Inject(vfs.NewMem(), rule)
			_, err := snapshot.Write("/", meta(1), s, snapshot.Options{FS: in, Codec: codec})
			if (err != nil) != (len(in.Fired()) > 0) {
				t.Errorf("codec %v, %v: %v", codec, rule, err)
			}
			goleak.VerifyNone(t)
		}
	}
}
