package vfs_test

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/usp-project/usp/internal/vfs"
)

// A named pipe in the place of a file keeps nobody waiting; one that somebody writes into, such as a shell makes, is read to its end.
func TestReadPipe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Skipf("NOT CHECKED: no named pipe can be made here: %v", err)
	}
	opened := make(chan vfs.File, 1)
	go func() {
		f, err := vfs.OS().OpenFile(path, os.O_RDONLY, 0)
		if err != nil {
			t.Error(err)
		}
		opened <- f
	}()
	var f vfs.File
	select {
	case f = <-opened:
	case <-time.After(5 * time.Second):
		t.Fatal("it waits for a writer")
	}
	defer f.Close()
	if got, err := io.ReadAll(f); err != nil || len(got) > 0 {
		t.Errorf("an empty pipe holds %q, %v", got, err)
	}
	w, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		w.WriteString("head")
		w.Close()
	}()
	if got, err := io.ReadAll(f); err != nil || string(got) != "head" {
		t.Errorf("the pipe held %q, %v", got, err)
	}
}

// TestWriteAtPieces: what is written piece by piece is all there, at its place, and what fails is the piece that did.
func TestWriteAtPieces(t *testing.T) {
	const piece = 16 << 10
	for _, n := range []int{0, 1, piece - 1, piece, piece + 1, 3*piece + 5} {
		name := filepath.Join(t.TempDir(), "f")
		f, err := vfs.OS().OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		data := make([]byte, n)
		for i := range data {
			data[i] = byte(i*7 + i>>8)
		}
		if got, err := f.WriteAt(data, 10); got != n || err != nil {
			t.Errorf("%d bytes: %d, %v", n, got, err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		want := append(make([]byte, min(n, 1)*10), data...)
		if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes: the file has %d, %v", n, len(got), err)
		}
		if got, err := f.WriteAt(data, 0); n > 0 && (got != 0 || err == nil) {
			t.Errorf("closed: %d, %v", got, err)
		}
	}
}
