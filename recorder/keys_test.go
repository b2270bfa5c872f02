package recorder_test

import (
	"errors"
	"io/fs"
	"testing"

	"filippo.io/age"

	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/recorder"
	"github.com/usp-project/usp/snapshot"
)

func newIdentity(t testing.TB) *age.X25519Identity {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	check(t, err)
	return id
}

// TestEncryptedSnapshots wants what is encrypted to be read with its key only. Without the key, or with another, there is
// no falling back to an older snapshot; a damaged one is passed over all the same.
func TestEncryptedSnapshots(t *testing.T) {
	m := vfs.NewMem()
	p := newProducer(t, ringConfig{})
	o := options(m)
	key, other := newIdentity(t), newIdentity(t)
	o.Snapshot.Recipients = []string{key.Recipient().String()}
	x := start(t, p.Path(), o)
	for i := range 2 {
		p.emit(10)
		p.stage()
		p.waitFor(uint64(i + 1))
	}
	check(t, p.Close(true))
	x.finish()
	verifyOK(t, m)

	newest := func(ids ...age.Identity) (*recorder.Found, []error, error) {
		var rejected []error
		found, err := recorder.NewestSnapshot(m, runDir, func(err error) { rejected = append(rejected, err) }, ids...)
		return found, rejected, err
	}
	found, rejected, err := newest(other, key)
	if err != nil || found.Meta.Step != 20 || string(found.Sections[0].Data) != "state after 20" || len(rejected) != 0 {
		t.Fatalf("with the key: %+v, rejected %v, %v", found, rejected, err)
	}
	for _, tt := range []struct {
		ids  []age.Identity
		want error
	}{{nil, snapshot.ErrEncrypted}, {[]age.Identity{other}, snapshot.ErrWrongIdentity}} {
		if found, rejected, err := newest(tt.ids...); !errors.Is(err, tt.want) || found != nil || len(rejected) != 0 {
			t.Errorf("with %d other keys: %+v, rejected %v, %v", len(tt.ids), found, rejected, err)
		}
	}

	damage(t, m, snapshotPath(20, 0))
	found, rejected, err = newest(key)
	if err != nil || found.Meta.Step != 10 || len(rejected) != 1 {
		t.Errorf("a damaged one, with the key: %+v, rejected %v, %v", found, rejected, err)
	}
	for _, ids := range [][]age.Identity{nil, {other}} {
		_, rejected, err := newest(ids...)
		var why *recorder.RejectedError
		if err == nil || len(rejected) != 1 || !errors.As(rejected[0], &why) || why.Step != 20 {
			t.Errorf("a damaged one, with %d other keys: rejected %v, %v", len(ids), rejected, err)
		}
	}
	damage(t, m, snapshotPath(10, 0))
	if _, rejected, err := newest(); !errors.Is(err, recorder.ErrNoSnapshot) || len(rejected) != 2 {
		t.Errorf("all damaged, without a key: rejected %v, %v", rejected, err)
	}
}

// TestBadRecipient wants a bad key to be an error before anything is recorded, and the ring left as it was.
func TestBadRecipient(t *testing.T) {
	m := vfs.NewMem()
	p := newProducer(t, ringConfig{})
	o := options(m)
	o.Snapshot.Recipients = []string{newIdentity(t).Recipient().String(), "age1nothing"}
	_, err := recorder.Attach(p.Path(), o)
	if err == nil {
		t.Fatal("a bad key was accepted")
	}
	wantText(t, err, "recipient 2")
	if _, err := m.Stat(runDir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the run directory was made: %v", err)
	}
	o.Snapshot.Recipients = nil
	x := start(t, p.Path(), o)
	p.emit(3)
	check(t, p.Close(true))
	x.finish()
}
