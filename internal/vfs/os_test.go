package vfs_test

import (
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
