package main

import (
	"context"
	"errors"
	"path/filepath"
	"testing"

	"filippo.io/age"

	"github.com/usp-project/usp"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/record"
	"github.com/usp-project/usp/recorder"
	"github.com/usp-project/usp/snapshot"
)

// TestLibraryWithBinary records a program of one's own with the usp binary as its recorder: the options of the program count,
// the keys for its snapshots before all, and a resume needs one of them.
func TestLibraryWithBinary(t *testing.T) {
	w := newWorld(t)
	t.Setenv("USP_BIN", w.bin)
	t.Setenv("HOME", w.dir)
	t.Setenv("XDG_CONFIG_HOME", filepath.Join(w.dir, ".config"))
	schema, err := record.NewSchema("keys.v1", record.Field{Name: "loss", Class: record.Metric})
	if err != nil {
		t.Fatal(err)
	}
	key, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	o := usp.Options{Schema: schema, Ring: usp.RingOptions{Dir: w.ring}, Recorder: recorder.Options{
		Runs: filepath.Join(w.dir, "mine"), Snapshot: recorder.SnapshotOptions{Recipients: []string{"age1none"}},
	}}
	if _, err := usp.Start(context.Background(), o); err == nil {
		t.Fatal("a key that is none was accepted")
	}
	o.Recorder.Snapshot.Recipients = []string{key.Recipient().String()}
	run, err := usp.Start(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	values := record.NewValues(schema)
	for step := uint64(1); step <= 10; step++ {
		values.SetFloat64(0, 1)
		run.Emit(step, 0, values)
	}
	if !run.SnapshotLast(10, usp.Section{Name: "weights", Data: []byte("twelve bytes")}) {
		t.Fatal("no snapshot was taken")
	}
	sum, err := run.Close()
	if err != nil {
		t.Fatal(err)
	}
	if sum.Dir != run.Dir() || sum.Snapshots != 1 {
		t.Errorf("recorded into %s, %d snapshots; want %s and 1", sum.Dir, sum.Snapshots, run.Dir())
	}
	infos, err := snapshot.List(vfs.OS(), filepath.Join(run.Dir(), "snapshots"))
	if err != nil || len(infos) != 1 || !infos[0].Encrypted {
		t.Fatalf("the snapshot is not encrypted: %+v, %v", infos, err)
	}
	if _, _, err := usp.Resume(context.Background(), run.Dir(), o); !errors.Is(err, snapshot.ErrEncrypted) {
		t.Fatalf("a resume without the key: %v", err)
	}
	other, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	o.Identities = []age.Identity{other}
	if _, _, err := usp.Resume(context.Background(), run.Dir(), o); !errors.Is(err, snapshot.ErrWrongIdentity) {
		t.Fatalf("a resume with another key: %v", err)
	}
	o.Identities = append(o.Identities, key)
	again, state, err := usp.Resume(context.Background(), run.Dir(), o)
	if err != nil {
		t.Fatal(err)
	}
	if state.Step != 10 || string(state.Section("weights")) != "twelve bytes" {
		t.Errorf("resumed with %+v", state)
	}
	if _, err := again.Close(); err != nil {
		t.Error(err)
	}
}
