package snapshot_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"filippo.io/age"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/snapshot"
)

const large = 64 << 10 // the smallest section that is kept

// states are three states of a run: "history" stays, "weights" changes with the last one.
func states() [][]snapshot.Section {
	history, weights := noise(large+100), noise(large)
	other := bytes.Clone(weights)
	other[large-1] ^= 1
	at := func(w []byte, step byte) []snapshot.Section {
		return []snapshot.Section{{Name: "history", Data: history}, {Name: "step", Data: []byte{step}}, {Name: "weights", Data: w}}
	}
	return [][]snapshot.Section{at(weights, 1), at(weights, 2), at(other, 3)}
}

func reused(t testing.TB, fsys vfs.FS, step uint64, s []snapshot.Section, o snapshot.Options) snapshot.Info {
	t.Helper()
	o.FS = fsys
	info, err := snapshot.Write("/", meta(step), s, o)
	if err != nil {
		t.Fatal(err)
	}
	return info
}

// loads wants a snapshot to load and to be s.
func loads(fsys vfs.FS, info snapshot.Info, s []snapshot.Section) error {
	_, got, err := snapshot.Load(fsys, "/"+info.Name, &info.SHA256)
	if err != nil {
		return err
	}
	if !slices.EqualFunc(got, s, func(a, b snapshot.Section) bool { return a.Name == b.Name && bytes.Equal(a.Data, b.Data) }) {
		return errors.New("another state")
	}
	return nil
}

func baseNames(i snapshot.Info) (names []string) {
	for _, b := range i.Bases {
		names = append(names, b.Name)
	}
	return names
}

func TestReuse(t *testing.T) {
	for _, codec := range []snapshot.Codec{snapshot.None, snapshot.Zstd} {
		mem := vfs.NewMem()
		o := snapshot.Options{Codec: codec, Reuse: &snapshot.Reuse{}}
		open := 0
		mem.SetHook(func(op vfs.Op) {
			switch op.Kind {
			case vfs.OpOpen, vfs.OpCreate:
				open++
			case vfs.OpClose:
				open--
			}
		})
		all := states()
		var infos []snapshot.Info
		for i, s := range all {
			infos = append(infos, reused(t, mem, uint64(i+1), s, o))
		}
		first := snapshot.FileName(1, 2)
		for i, want := range []string{"[]", "[" + first + "]", "[" + first + "]"} {
			if got := fmt.Sprint(baseNames(infos[i])); got != want {
				t.Errorf("snapshot %d has bases %s, want %s", i+1, got, want)
			}
			if err := loads(mem, infos[i], all[i]); err != nil {
				t.Errorf("snapshot %d: %v", i+1, err)
			}
			if _, err := snapshot.Verify(mem, "/"+infos[i].Name, &infos[i].SHA256); err != nil {
				t.Errorf("snapshot %d: %v", i+1, err)
			}
		}
		if infos[1].Size > 2000 {
			t.Errorf("a snapshot in which nothing large changed has %d bytes", infos[1].Size)
		}
		list, err := snapshot.List(mem, "/")
		if err != nil || !slices.Equal(list[2].Bases, infos[2].Bases) || list[2].Bases[0].SHA256 != infos[0].SHA256 {
			t.Errorf("List says %v, %v", list[2].Bases, err)
		}
		_, sections, err := snapshot.Inspect(mem, "/"+infos[2].Name)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range sections {
			if (s.Base.Name == first) != (s.Name == "history") {
				t.Errorf("section %s lies in %q", s.Name, s.Base.Name)
			}
		}
		// What changed last lies in the third file now.
		fourth := reused(t, mem, 4, all[2], o)
		if got := baseNames(fourth); !slices.Equal(got, []string{first, infos[2].Name}) {
			t.Errorf("the fourth has bases %v", got)
		}
		if open != 0 {
			t.Errorf("%d files were not closed", open)
		}
	}
}

// TestReuseOff: without the option, for another run, another directory, an encrypted
// state, in a later group, for what is small or has another size, all is written.
func TestReuseOff(t *testing.T) {
	s := states()[0]
	to := []age.Recipient{identity(t).Recipient()}
	run := meta(2)
	run.RunID = "other"
	back := meta(1)
	back.Generation = 1
	for name, again := range map[string]func(mem vfs.FS, u *snapshot.Reuse) (snapshot.Info, error){
		"no option": func(mem vfs.FS, _ *snapshot.Reuse) (snapshot.Info, error) {
			return snapshot.Write("/", meta(2), s, snapshot.Options{FS: mem})
		},
		"new": func(mem vfs.FS, _ *snapshot.Reuse) (snapshot.Info, error) {
			return snapshot.Write("/", meta(2), s, snapshot.Options{FS: mem, Reuse: &snapshot.Reuse{}})
		},
		"other run": func(mem vfs.FS, u *snapshot.Reuse) (snapshot.Info, error) {
			return snapshot.Write("/", run, s, snapshot.Options{FS: mem, Reuse: u})
		},
		"older than the base": func(mem vfs.FS, u *snapshot.Reuse) (snapshot.Info, error) {
			return snapshot.Write("/", back, s, snapshot.Options{FS: mem, Reuse: u})
		},
		"other directory": func(mem vfs.FS, u *snapshot.Reuse) (snapshot.Info, error) {
			if err := mem.Mkdir("/d", 0o700); err != nil {
				return snapshot.Info{}, err
			}
			return snapshot.Write("/d", meta(2), s, snapshot.Options{FS: mem, Reuse: u})
		},
		"encrypted": func(mem vfs.FS, u *snapshot.Reuse) (snapshot.Info, error) {
			return snapshot.Write("/", meta(2), s, snapshot.Options{FS: mem, Reuse: u, Recipients: to})
		},
		"small, other sizes": func(mem vfs.FS, u *snapshot.Reuse) (snapshot.Info, error) {
			return snapshot.Write("/", meta(2), []snapshot.Section{{Name: "history", Data: noise(large)}, {Name: "step", Data: s[1].Data}}, snapshot.Options{FS: mem, Reuse: u})
		},
	} {
		t.Run(name, func(t *testing.T) {
			mem, u := vfs.NewMem(), &snapshot.Reuse{}
			reused(t, mem, 1, s, snapshot.Options{Reuse: u})
			info, err := again(mem, u)
			if err != nil || len(info.Bases) > 0 || info.BaseErr != nil {
				t.Errorf("bases %v, %v, %v", info.Bases, info.BaseErr, err)
			}
		})
	}
}

func TestReuseLimit(t *testing.T) {
	s := states()[0]
	for limit, want := range map[int]string{0: "0111111101", 1: "0101010101", 3: "0111011101"} {
		mem := vfs.NewMem()
		u := &snapshot.Reuse{Limit: limit}
		got := ""
		for step := range uint64(10) {
			got += fmt.Sprint(min(len(reused(t, mem, step+1, s, snapshot.Options{Reuse: u}).Bases), 1))
		}
		if got != want {
			t.Errorf("limit %d: referring snapshots %s, want %s", limit, got, want)
		}
	}
}

// TestReuseBadBase: an older file that has gone bad is not referred to. That is said,
// unless the bytes themselves differ, as those of a section that changed do.
func TestReuseBadBase(t *testing.T) {
	s := states()[0]
	for name, harm := range map[string]func(mem *vfs.Mem, path string){
		"gone":  func(mem *vfs.Mem, path string) { _ = mem.Remove(path) },
		"state": func(mem *vfs.Mem, path string) { flipByte(t, mem, path, 300) },
		"index": func(mem *vfs.Mem, path string) { flipByte(t, mem, path, -150) },
	} {
		mem, u := vfs.NewMem(), &snapshot.Reuse{}
		first := reused(t, mem, 1, s, snapshot.Options{Reuse: u})
		harm(mem, "/"+first.Name)
		info := reused(t, mem, 2, s, snapshot.Options{Reuse: u})
		if name != "state" && (info.BaseErr == nil || !strings.Contains(info.BaseErr.Error(), first.Name)) {
			t.Errorf("%s: %v does not name the base", name, info.BaseErr)
		}
		if err := loads(mem, info, s); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, sections, _ := snapshot.Inspect(mem, "/"+info.Name); sections[0].Base.Name != "" {
			t.Errorf("%s: refers to it", name)
		}
	}
}

func flipByte(t testing.TB, mem *vfs.Mem, path string, at int) {
	t.Helper()
	b := get(t, mem, path)
	b[(at+len(b))%len(b)] ^= 1
	put(t, mem, path, b)
}

// TestBaseEveryByteFlipped: with any byte of either file changed the snapshot does not
// load, unless the byte is of the base and not needed, and the error names both.
func TestBaseEveryByteFlipped(t *testing.T) {
	mem := vfs.NewMem()
	o := snapshot.Options{Codec: snapshot.Zstd, Reuse: &snapshot.Reuse{}}
	state := []snapshot.Section{{Name: "history", Data: make([]byte, large)}, {Name: "own", Data: noise(40)}}
	base := reused(t, mem, 1, state, o)
	state[1].Data = noise(50)
	info := reused(t, mem, 2, state, o)
	if len(info.Bases) != 1 {
		t.Fatal("nothing is kept")
	}
	loose := 0
	for _, file := range []string{base.Name, info.Name} {
		good := get(t, mem, "/"+file)
		for i := range good {
			bad := bytes.Clone(good)
			bad[i] ^= 0x41
			put(t, mem, "/"+file, bad)
			_, sections, err := snapshot.Load(mem, "/"+info.Name, nil)
			_, verr := snapshot.Verify(mem, "/"+info.Name, nil)
			if fmt.Sprint(err) != fmt.Sprint(verr) {
				t.Fatalf("%s, byte %d: Load says %v, Verify %v", file, i, err, verr)
			}
			if err == nil && file == base.Name && slices.EqualFunc(sections, state, func(a, b snapshot.Section) bool { return bytes.Equal(a.Data, b.Data) }) {
				loose++ // of the base's own section, its padding, or the SHA-256 of all
				continue
			}
			if err == nil || sections != nil {
				t.Fatalf("%s, byte %d flipped: loaded, %v", file, i, err)
			}
			if cerr := classified(err); cerr != nil {
				t.Fatalf("%s, byte %d: %v", file, i, cerr)
			}
			if b := (*snapshot.BaseError)(nil); file == base.Name && (!errors.As(err, &b) || b.Base != base.Name || b.Section != "history" || !strings.Contains(err.Error(), info.Name)) {
				t.Fatalf("byte %d of the base flipped: %v", i, err)
			}
		}
		put(t, mem, "/"+file, good)
	}
	if loose == 0 || loose > 200 {
		t.Errorf("%d bytes of the base do not matter", loose)
	}
	if err := mem.Remove("/" + base.Name); err != nil {
		t.Fatal(err)
	}
	_, _, err := snapshot.Load(mem, "/"+info.Name, nil)
	if b := (*snapshot.BaseError)(nil); !errors.As(err, &b) || b.Base != base.Name || !errors.Is(b.Err, fs.ErrNotExist) || classified(err) != nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without its base: %v", err)
	}
}

// TestBaseDevice: an error of the device is not called damage.
func TestBaseDevice(t *testing.T) {
	mem := vfs.NewMem()
	o := snapshot.Options{Reuse: &snapshot.Reuse{}}
	base := reused(t, mem, 1, states()[0], o)
	info := reused(t, mem, 2, states()[0], o)
	in := vfs.Inject(mem, vfs.Rule{Op: vfs.OpRead, Path: base.Name, Nth: 5})
	_, _, err := snapshot.Load(in, "/"+info.Name, nil)
	if len(in.Fired()) == 0 || !errors.Is(err, syscall.EIO) || errors.As(err, new(*snapshot.CorruptError)) {
		t.Errorf("%v, want EIO and no damage", err)
	}
}

// TestReuseCrashAtEveryOperation cuts the power before each operation of a Write
// that refers to an older file.
func TestReuseCrashAtEveryOperation(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for _, policy := range []vfs.Policy{vfs.DropAll, vfs.KeepAll, vfs.Mixed, vfs.Garbage} {
		mem := vfs.NewMem()
		o := snapshot.Options{Reuse: &snapshot.Reuse{}}
		all := states()
		first := reused(t, mem, 1, all[0], o)
		crashes := 0
		mem.SetHook(func(vfs.Op) {
			crashes++
			checkCrash(t, mem.Crash(rng, policy), first, false)
		})
		infos := []snapshot.Info{first, reused(t, mem, 2, all[1], o), reused(t, mem, 3, all[2], o)}
		mem.SetHook(nil)
		after := mem.Crash(rng, policy)
		for i, info := range infos {
			if err := loads(after, info, all[i]); err != nil {
				t.Fatalf("policy %v: acknowledged snapshot %d: %v", policy, i+1, err)
			}
		}
		if crashes < 20 || len(infos[2].Bases) != 1 {
			t.Fatalf("%d operations seen, bases %v", crashes, infos[2].Bases)
		}
	}
}

// TestReuseErrorAtEveryOperation fails each operation once: Write then fails, or the
// snapshot is as good as any.
func TestReuseErrorAtEveryOperation(t *testing.T) {
	all := states()
	for nth := 1; ; nth++ {
		mem, u := vfs.NewMem(), &snapshot.Reuse{}
		reused(t, mem, 1, all[0], snapshot.Options{Reuse: u})
		in := vfs.Inject(mem, vfs.Rule{Nth: nth})
		info, err := snapshot.Write("/", meta(2), all[1], snapshot.Options{FS: in, Reuse: u})
		if len(in.Fired()) == 0 {
			if err != nil || nth < 15 {
				t.Fatalf("after %d operations: %v", nth, err)
			}
			return
		}
		if err != nil {
			if !errors.Is(err, syscall.EIO) {
				t.Errorf("%v failed, Write says %v", in.Fired(), err)
			}
			_ = mem.Remove("/" + snapshot.FileName(2, 2)) // an error behind the link may leave it
			info = reused(t, mem, 2, all[1], snapshot.Options{Reuse: u})
		} else if info.BaseErr == nil && in.Fired()[0].Kind != vfs.OpClose {
			t.Errorf("%v failed, and nothing was said", in.Fired())
		}
		if err := loads(mem, info, all[1]); err != nil {
			t.Errorf("%v failed: %v", in.Fired(), err)
		}
		goleak.VerifyNone(t)
	}
}

// TestReuseRapid writes any run of states, some sections of which stay, removes what
// any retention gives up, and wants all that is left to load after each removal, and at
// the end, if anything was removed, one to load with any single file lost.
func TestReuseRapid(t *testing.T) {
	pool := noise(3 * large)
	rapid.Check(t, func(t *rapid.T) {
		mem := vfs.NewMem()
		u := &snapshot.Reuse{Limit: rapid.IntRange(0, 4).Draw(t, "limit")}
		r := snapshot.Retention{KeepLast: rapid.IntRange(1, 4).Draw(t, "last"), KeepEvery: rapid.Uint64Range(0, 9).Draw(t, "every"), MaxAge: time.Duration(rapid.IntRange(0, 9).Draw(t, "age")) * time.Hour}
		var kept []snapshot.Info
		written := map[string][]snapshot.Section{}
		state := map[string][]byte{}
		for step := range uint64(rapid.IntRange(1, 20).Draw(t, "snapshots")) {
			var s []snapshot.Section
			for _, name := range []string{"a", "b", "c"} {
				if state[name] == nil || rapid.IntRange(0, 2).Draw(t, "change") == 0 {
					n := large - 1 + rapid.IntRange(0, 2).Draw(t, "size")
					at := rapid.IntRange(0, large).Draw(t, "from")
					state[name] = pool[at : at+n]
				}
				s = append(s, snapshot.Section{Name: name, Data: state[name]})
			}
			m := meta(step)
			m.Created = epoch.Add(time.Duration(step) * time.Hour)
			codec := snapshot.Codec(rapid.IntRange(0, 1).Draw(t, "codec"))
			info, err := snapshot.Write("/", m, s, snapshot.Options{FS: mem, Codec: codec, Reuse: u})
			if err != nil || info.BaseErr != nil {
				t.Fatal(err, info.BaseErr)
			}
			written[info.Name] = s
			kept = append(kept, info)
			for _, gone := range snapshot.Plan(kept, r, m.Created) {
				if err := mem.Remove("/" + gone.Name); err != nil {
					t.Fatal(err)
				}
				kept = slices.DeleteFunc(kept, func(i snapshot.Info) bool { return i.Name == gone.Name })
				for _, i := range kept {
					if err := loads(mem, i, written[i.Name]); err != nil {
						t.Fatalf("step %d, %s removed: %v", step, gone.Name, err)
					}
				}
			}
		}
		if len(written) > len(kept) {
			oneLost(t, mem, kept, written)
		}
		if limit := u.Limit; limit > 0 && len(kept) > r.KeepLast+3*(limit+1)+len(written)/max(int(r.KeepEvery), 1)*(limit+1) {
			t.Fatalf("%d kept of %d", len(kept), len(written))
		}
	})
}

// oneLost takes each file away in turn: another one must load still.
func oneLost(t *rapid.T, mem *vfs.Mem, kept []snapshot.Info, written map[string][]snapshot.Section) {
	for _, lost := range kept {
		if err := mem.Rename("/"+lost.Name, "/lost"); err != nil {
			t.Fatal(err)
		}
		good := 0
		for _, i := range kept {
			if i.Name != lost.Name && loads(mem, i, written[i.Name]) == nil {
				good++
			}
		}
		if good == 0 {
			t.Fatalf("without %s none of %d loads", lost.Name, len(kept))
		}
		if err := mem.Rename("/lost", "/"+lost.Name); err != nil {
			t.Fatal(err)
		}
	}
}

// TestPlanBases is Plan on lists made by hand: name of the step, then its bases.
func TestPlanBases(t *testing.T) {
	list := func(rows ...[]uint64) (infos []snapshot.Info) {
		for i, row := range rows {
			info := aged(row[0], i)
			for _, b := range row[1:] {
				info.Bases = append(info.Bases, snapshot.Base{Name: snapshot.FileName(b, 2), SHA256: sha256.Sum256(nil)})
			}
			infos = append(infos, info)
		}
		return infos
	}
	last := func(n int) snapshot.Retention { return snapshot.Retention{KeepLast: n} }
	evidence := list([]uint64{1}, []uint64{2}, []uint64{3, 1}, []uint64{4}, []uint64{5})
	evidence[2].Err = errors.New("not to be counted")
	for name, tc := range map[string]struct {
		infos []snapshot.Info
		r     snapshot.Retention
		want  string
	}{
		"two that share are one":      {list([]uint64{1}, []uint64{2}, []uint64{3, 2}, []uint64{4, 2}), last(1), "[]"},
		"and what they share is one":  {list([]uint64{1}, []uint64{2}, []uint64{3}, []uint64{4, 3}), last(1), "[1]"},
		"a base stays":                {list([]uint64{1}, []uint64{2}, []uint64{3, 1}, []uint64{4}, []uint64{5}), last(3), "[2]"},
		"a base goes with the last":   {list([]uint64{1}, []uint64{2, 1}, []uint64{3, 1, 2}, []uint64{4}, []uint64{5}), last(2), "[3 2 1]"},
		"a base of a base stays":      {list([]uint64{1}, []uint64{2, 1}, []uint64{3, 2}, []uint64{4}, []uint64{5}), last(3), "[]"},
		"one in error keeps its base": {evidence, last(2), "[2]"},
		"blocks":                      {list([]uint64{1}, []uint64{2, 1}, []uint64{10, 2}, []uint64{11}, []uint64{20}, []uint64{21}), snapshot.Retention{KeepLast: 1, KeepEvery: 10}, "[11]"},
	} {
		t.Run(name, func(t *testing.T) {
			steps := []uint64{}
			for _, i := range snapshot.Plan(tc.infos, tc.r, epoch.Add(10*time.Hour)) {
				steps = append(steps, i.Step)
			}
			if got := fmt.Sprint(steps); got != tc.want {
				t.Errorf("gives up %s, want %s", got, tc.want)
			}
		})
	}
}
