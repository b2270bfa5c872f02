package cli

import (
	"testing"

	"github.com/usp-project/usp/digestlog"
)

// TestStepOf wants the step of each entry that has one, and of a lost range the least that its first record can have had.
func TestStepOf(t *testing.T) {
	const open, step, lost, snap, seal = digestlog.KindOpen, digestlog.KindStep, digestlog.KindLost, digestlog.KindSnapshot, digestlog.KindSeal
	p := position{begin: func(generation uint32) uint64 { return []uint64{0, 40, 7}[generation] }}
	for i, tt := range []struct {
		e    digestlog.Entry
		step uint64
		ok   bool
	}{
		{digestlog.Entry{Kind: open}, 0, false},
		{digestlog.Entry{Kind: lost, From: 0, To: 5}, 1, true},
		{digestlog.Entry{Kind: step, Seq: 5, Step: 6}, 6, true},
		{digestlog.Entry{Kind: step, Seq: 9, Step: 10}, 10, true},
		{digestlog.Entry{Kind: lost, From: 10, To: 20}, 11, true},
		{digestlog.Entry{Kind: lost, From: 23, To: 24}, 24, true},
		{digestlog.Entry{Kind: lost, From: 3, To: 4}, 0, false}, // before what is known: never called superseded
		{digestlog.Entry{Kind: step, Seq: 30, Step: 60}, 60, true},
		{digestlog.Entry{Kind: seal}, 0, false},
		{digestlog.Entry{Kind: snap, Seq: 20, Step: 20}, 20, true},
		{digestlog.Entry{Kind: lost, From: 33, To: 35}, 63, true},
		{digestlog.Entry{Kind: open, Generation: 1}, 0, false},
		{digestlog.Entry{Kind: lost, Generation: 1, From: 2, To: 3}, 43, true},
		{digestlog.Entry{Kind: step, Generation: 2, Seq: 0, Step: 9}, 9, true},
	} {
		got, ok := p.stepOf(&tt.e)
		if ok != tt.ok || ok && got != tt.step {
			t.Errorf("entry %d, %v: step %d, %v; want %d, %v", i, tt.e.Kind, got, ok, tt.step, tt.ok)
		}
	}
}
