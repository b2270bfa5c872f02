package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestPages wants a page for each command that usp has, with its flags, and the same bytes twice.
func TestPages(t *testing.T) {
	first, second := t.TempDir(), t.TempDir()
	for _, dir := range []string{first, second} {
		if err := write([]string{dir}, "1700000000"); err != nil {
			t.Fatal(err)
		}
	}
	pages, err := filepath.Glob(filepath.Join(first, "*.1"))
	if err != nil || len(pages) < 15 {
		t.Fatalf("%d pages, %v", len(pages), err)
	}
	for _, page := range pages {
		a, errA := os.ReadFile(page)
		b, errB := os.ReadFile(filepath.Join(second, filepath.Base(page)))
		if errA != nil || errB != nil || string(a) != string(b) || !strings.Contains(string(a), "Nov 2023") {
			t.Errorf("%s: %v, %v, %d and %d bytes", page, errA, errB, len(a), len(b))
		}
	}
	b, err := os.ReadFile(filepath.Join(first, "usp-run.1"))
	if err != nil || !strings.Contains(string(b), `\-\-snapshot\-interval`) && !strings.Contains(string(b), "--snapshot-interval") {
		t.Errorf("usp-run.1 lacks a flag: %v\n%.600s", err, b)
	}
	if write(nil, "") == nil {
		t.Error("no directory is no error")
	}
}
