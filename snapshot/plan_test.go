package snapshot_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/usp-project/usp/snapshot"
)

var epoch = time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)

// aged is a verified snapshot made that many hours after epoch.
func aged(step uint64, hours int) snapshot.Info {
	m := meta(step)
	m.Created = epoch.Add(time.Duration(hours) * time.Hour)
	return snapshot.Info{Meta: m, Name: snapshot.FileName(step, 2), Verified: true}
}

func TestPlan(t *testing.T) {
	var ten []snapshot.Info
	for i := range 10 {
		ten = append(ten, aged(uint64(i)*10, i))
	}
	unverified := slices.Clone(ten)
	for i := 2; i < 10; i++ {
		unverified[i].Verified = false
	}
	damaged := slices.Clone(ten)
	damaged[0].Err = errors.New("damaged")
	now := epoch.Add(10 * time.Hour)
	for _, tc := range []struct {
		name  string
		infos []snapshot.Info
		r     snapshot.Retention
		want  string
	}{
		{"zero keeps all", ten, snapshot.Retention{}, "[]"},
		{"last three", ten, snapshot.Retention{KeepLast: 3}, "[0 10 20 30 40 50 60]"},
		{"never below two", ten, snapshot.Retention{KeepLast: 1}, "[0 10 20 30 40 50 60 70]"},
		{"last two and every block of 40", ten, snapshot.Retention{KeepLast: 2, KeepEvery: 40}, "[10 20 30 50 60 70]"},
		{"every block only", ten, snapshot.Retention{KeepEvery: 50}, "[10 20 30 40 60 70]"},
		{"age only", ten, snapshot.Retention{MaxAge: 5 * time.Hour}, "[0 10 20 30 40]"},
		{"age and last", ten, snapshot.Retention{MaxAge: time.Hour, KeepLast: 4}, "[0 10 20 30 40 50]"},
		{"age over blocks", ten, snapshot.Retention{MaxAge: 8 * time.Hour, KeepEvery: 20}, "[0 10 30 50 70]"},
		{"everything too old", ten, snapshot.Retention{MaxAge: time.Minute}, "[0 10 20 30 40 50 60 70]"},
		{"unverified ones do not count", unverified, snapshot.Retention{KeepLast: 1}, "[]"},
		{"damaged ones stay", damaged, snapshot.Retention{KeepLast: 3}, "[10 20 30 40 50 60]"},
		{"one", ten[:1], snapshot.Retention{KeepLast: 1, MaxAge: 1}, "[]"},
		{"none", nil, snapshot.Retention{KeepLast: 1}, "[]"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			steps := []uint64{}
			for _, i := range snapshot.Plan(tc.infos, tc.r, now) {
				steps = append(steps, i.Step)
			}
			if got := fmt.Sprint(steps); got != tc.want {
				t.Errorf("gives up %s, want %s", got, tc.want)
			}
		})
	}
}

func TestPlanRapid(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var infos []snapshot.Info
		for i, step := range rapid.SliceOfDistinct(rapid.Uint64Range(0, 200), rapid.ID).Draw(t, "steps") {
			info := aged(step, i)
			info.Verified = rapid.Bool().Draw(t, "verified")
			infos = append(infos, info)
		}
		r := snapshot.Retention{
			KeepLast:  rapid.IntRange(0, 5).Draw(t, "last"),
			KeepEvery: rapid.Uint64Range(0, 50).Draw(t, "every"),
			MaxAge:    time.Duration(rapid.IntRange(0, 100).Draw(t, "age")) * time.Hour,
		}
		now := epoch.Add(100 * time.Hour)
		verified := func(s []snapshot.Info) (n int) {
			for _, i := range s {
				if i.Verified {
					n++
				}
			}
			return n
		}
		remove := snapshot.Plan(infos, r, now)
		rest := slices.DeleteFunc(slices.Clone(infos), func(i snapshot.Info) bool {
			return slices.ContainsFunc(remove, func(j snapshot.Info) bool { return i.Name == j.Name })
		})
		if len(rest)+len(remove) != len(infos) {
			t.Fatalf("%d given up and %d left of %d", len(remove), len(rest), len(infos))
		}
		if got, want := verified(rest), min(2, verified(infos)); got < want {
			t.Fatalf("%d verified left, want at least %d", got, want)
		}
		for _, i := range remove {
			newer := func(j snapshot.Info) bool { return j.Verified && j.Step > i.Step }
			if n := len(slices.DeleteFunc(slices.Clone(rest), func(j snapshot.Info) bool { return !newer(j) })); n < 2 {
				t.Fatalf("step %d given up with %d newer verified ones", i.Step, n)
			}
		}
		if again := snapshot.Plan(rest, r, now); len(again) != 0 {
			t.Fatalf("planning again gives up %d more", len(again))
		}
	})
}
