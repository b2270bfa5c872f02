package snapshot_test

import (
	"bytes"
	"errors"
	"runtime"
	"testing"

	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/snapshot"
)

// FuzzLoad wants no panic and bounded memory, and that whatever loads without
// compression is written back to the same bytes.
func FuzzLoad(f *testing.F) {
	for _, codec := range []snapshot.Codec{snapshot.None, snapshot.Zstd} {
		f.Add(small(f, codec))
		f.Add(small(f, codec)[:400])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		mem := vfs.NewMem()
		put(t, mem, "/x.snap", b)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		m, sections, err := snapshot.Load(mem, "/x.snap", nil)
		runtime.ReadMemStats(&after)
		if used, limit := after.TotalAlloc-before.TotalAlloc, uint64(64<<20+2048*len(b)); used > limit {
			t.Fatalf("%d bytes were allocated for a file of %d", used, len(b))
		}
		if errors.Is(err, snapshot.ErrEncrypted) {
			return // FuzzLoadResealed goes on from here
		}
		if _, verr := snapshot.Verify(mem, "/x.snap", nil); (verr == nil) != (err == nil) {
			t.Fatalf("Load says %v, Verify %v", err, verr)
		}
		if err != nil {
			return
		}
		_, infos, err := snapshot.Inspect(mem, "/x.snap")
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range infos {
			if i.Codec != snapshot.None { // another encoder's bytes may be other ones
				sameState(t, mem, m, sections)
				return
			}
		}
		info, err := snapshot.Write("/", m, sections, snapshot.Options{FS: mem})
		if err != nil {
			t.Fatalf("what loads cannot be written: %v", err)
		}
		got := get(t, mem, "/"+info.Name)
		copy(got[60:64], b[60:64]) // the codec of the writer's policy
		if !bytes.Equal(got[:252], b[:252]) {
			t.Fatalf("the header is written back as %x, was %x", got[:252], b[:252])
		}
		if !bytes.Equal(got[256:len(got)-128], b[256:len(b)-128]) {
			t.Fatal("written back differently")
		}
	})
}

// sameState writes a state and wants it back.
func sameState(t *testing.T, mem *vfs.Mem, m snapshot.Meta, sections []snapshot.Section) {
	t.Helper()
	info, err := snapshot.Write("/", m, sections, snapshot.Options{FS: mem, Codec: snapshot.Zstd})
	if err != nil {
		t.Fatalf("what loads cannot be written: %v", err)
	}
	m2, again, err := snapshot.Load(mem, "/"+info.Name, nil)
	if err != nil || m2 != m || len(again) != len(sections) {
		t.Fatalf("%v: %+v, was %+v", err, m2, m)
	}
	for i := range sections {
		if again[i].Name != sections[i].Name || !bytes.Equal(again[i].Data, sections[i].Data) {
			t.Fatalf("section %d changed", i)
		}
	}
}

func FuzzParseSections(f *testing.F) {
	f.Add(snapshot.AppendSections(nil, nil))
	f.Add(snapshot.AppendSections(nil, []snapshot.Section{{Name: "a", Data: []byte("x")}, {Name: "b"}, {Name: "c", Data: noise(64)}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		sections, err := snapshot.ParseSections(b)
		if err != nil {
			return
		}
		encoded := snapshot.AppendSections(nil, sections)
		if !bytes.Equal(encoded, b) {
			t.Fatalf("parsed %x and encoded %x", b, encoded)
		}
		again, err := snapshot.ParseSections(encoded)
		if err != nil || len(again) != len(sections) {
			t.Fatalf("again: %d sections, %v", len(again), err)
		}
		for i := range sections {
			if again[i].Name != sections[i].Name || !bytes.Equal(again[i].Data, sections[i].Data) {
				t.Fatalf("section %d changed", i)
			}
		}
	})
}

func TestContainerDamage(t *testing.T) {
	s := []snapshot.Section{{Name: "a", Data: noise(100)}, {Name: "b", Data: nil}}
	good := snapshot.AppendSections([]byte("prefix"), s)[len("prefix"):]
	table := 32 + 2*80
	for i := range table {
		bad := bytes.Clone(good)
		bad[i] ^= 1
		if _, err := snapshot.ParseSections(bad); err == nil {
			t.Errorf("byte %d of header and table flipped: parsed", i)
		}
	}
	for n := range good {
		if _, err := snapshot.ParseSections(good[:n]); err == nil {
			t.Errorf("cut to %d bytes: parsed", n)
		}
	}
	got, err := snapshot.ParseSections(good)
	if err != nil {
		t.Fatal(err)
	}
	if off := bytes.Index(good, s[0].Data); off%64 != 0 || &got[0].Data[0] != &good[off] {
		t.Error("the section is not a 64-aligned view into the container")
	}
	dst := make([]byte, 0, snapshot.SectionsSize(s))
	if n := testing.AllocsPerRun(10, func() { snapshot.AppendSections(dst, s) }); n != 0 {
		t.Errorf("AppendSections allocates %v times", n)
	}
}
