package segment_test

import (
	"bytes"
	"errors"
	"io"
	"runtime"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/usp-project/usp/internal/segment"
	"github.com/usp-project/usp/internal/vfs"
)

// seeds are the vectors, and files that the Writer has made: sealed, left open, and with batches of several sizes.
func seeds(f *testing.F) {
	f.Helper()
	for _, v := range vectors() {
		f.Add(v.data)
	}
	for _, seal := range []bool{true, false} {
		m := newFS(f)
		w, err := segment.Create(dir, 100, segment.Options{FS: m, Kind: segment.KindTelemetry, RunID: "run", Meta: []byte("meta"), Size: 8192})
		check(f, err)
		for i := range 20 {
			check(f, w.Append(bytes.Repeat([]byte{byte(i)}, 1+37*i)))
			if i%3 == 0 {
				check(f, w.Sync())
			}
		}
		check(f, w.Sync())
		path := w.Path()
		if seal {
			_, err = w.Seal()
			check(f, err)
		} else {
			check(f, w.Abort())
		}
		b, err := vfs.ReadFile(m, path, 1<<20)
		check(f, err)
		f.Add(b)
	}
}

// FuzzReader gives any bytes to the Reader and to Repair: neither may panic or hang, what is found before
// the repair is found after it, and a repaired file is sealed.
func FuzzReader(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		m := newFS(t)
		path := write(t, m, data)
		before, ok := ordinals(t, m, path)
		s, err := segment.Repair(m, path)
		if ok != (err == nil) {
			t.Fatalf("readable: %v, repair: %v", ok, err)
		}
		if !ok || s.Size == 0 {
			return
		}
		after, _ := ordinals(t, m, path)
		if diff := cmp.Diff(before, after); diff != "" {
			t.Fatal(diff)
		}
		again, err := segment.Repair(m, path)
		if s.Torn = 0; err != nil || again != s {
			t.Fatalf("second repair: %+v, %v; first %+v", again, err, s)
		}
	})
}

// ordinals reads all that can be read.
func ordinals(t *testing.T, fsys vfs.FS, path string) (found []uint64, ok bool) {
	r, err := segment.Open(fsys, path)
	if err != nil {
		return nil, false
	}
	defer r.Close()
	for {
		_, ordinal, err := r.Next()
		var corrupt *segment.CorruptError
		if errors.As(err, &corrupt) {
			continue
		}
		if err != nil {
			return found, true
		}
		if len(found) > 0 && ordinal <= found[len(found)-1] {
			t.Fatalf("ordinal %d after %d", ordinal, found[len(found)-1])
		}
		found = append(found, ordinal)
	}
}

// FuzzRewrite reads frames from any bytes and has the Writer write them again: what is read from that is the same, and
// reading took no more memory than the file is large, but for fixed buffers.
func FuzzRewrite(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		m := newFS(t)
		path := write(t, m, data)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		header, frames, err := everyFrame(m, path)
		runtime.ReadMemStats(&after)
		if used, limit := after.TotalAlloc-before.TotalAlloc, uint64(8<<20+64*len(data)); used > limit {
			t.Fatalf("%d bytes were allocated for a file of %d", used, len(data))
		}
		if err != nil || len(header.RunID) == 0 {
			return // the Writer refuses a run without a name
		}
		check(t, m.Remove(path))
		w, err := segment.Create(dir, header.Base, segment.Options{FS: m, Kind: header.Kind, RunID: header.RunID, Meta: header.Meta, Size: -1})
		if err != nil {
			t.Fatalf("a header that is read cannot be written: %v", err)
		}
		for i, b := range frames {
			check(t, w.Append(b))
			if i%5 == 0 {
				check(t, w.Sync())
			}
		}
		path = w.Path()
		_, err = w.Seal()
		check(t, err)
		if len(frames) == 0 {
			return // it held nothing and is gone
		}
		header2, frames2, err := everyFrame(m, path)
		check(t, err)
		header2.Created, header2.Version = header.Created, header.Version // a Writer writes the newest
		if diff := cmp.Diff(header, header2); diff != "" {
			t.Fatal(diff)
		}
		if diff := cmp.Diff(frames, frames2); diff != "" {
			t.Fatal(diff)
		}
	})
}

// everyFrame reads every frame that can be read, past what is damaged.
func everyFrame(m vfs.FS, path string) (h segment.Header, frames [][]byte, err error) {
	r, err := segment.Open(m, path)
	if err != nil {
		return h, nil, err
	}
	defer r.Close()
	h = r.Header()
	var corrupt *segment.CorruptError
	var torn *segment.TornError
	for {
		b, _, err := r.Next()
		switch {
		case err == nil:
			frames = append(frames, bytes.Clone(b))
		case errors.As(err, &corrupt):
		case err == io.EOF, errors.As(err, &torn):
			return h, frames, nil
		default:
			return h, frames, err
		}
	}
}
