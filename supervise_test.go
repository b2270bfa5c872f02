package usp

import (
	"bytes"
	"testing"
	"time"
)

// What recorder after recorder says is passed on once a minute.
func TestRepeats(t *testing.T) {
	var out bytes.Buffer
	now := time.Unix(0, 0)
	r := repeats{w: &out, now: func() time.Time { return now }}
	for i := range 130 {
		now = time.Unix(int64(i), 0)
		if n, err := r.Write([]byte("disk full\n")); n != 10 || err != nil {
			t.Fatal(n, err)
		}
	}
	r.Write([]byte("disk gone\n"))
	r.Write([]byte("disk full\n"))
	if want := "disk full\ndisk full\ndisk full\ndisk gone\ndisk full\n"; out.String() != want {
		t.Errorf("passed on:\n%swant:\n%s", out.String(), want)
	}
}
