package digestlog

import (
	"bytes"
	"errors"
	"testing"
)

func TestBlocks(t *testing.T) {
	ext := AppendBlock(nil, TagLadder, []byte("ladder"))
	ext, at := OpenBlock(ext, TagInvariants)
	ext = CloseBlock(append(ext, "rest"...), at)
	ext = AppendBlock(ext, 200, nil)
	for tag, want := range map[Tag]string{TagLadder: "ladder", TagInvariants: "rest", 200: "", 7: ""} {
		got, err := FindBlock(ext, tag)
		if err != nil || string(got) != want {
			t.Errorf("block %d: %q, %v", tag, got, err)
		}
	}
	for n := range len(ext) {
		_, err := FindBlock(ext[:n], 9)
		if whole := n == 0 || n == 9 || n == 16; (err == nil) != whole || err != nil && !errors.Is(err, ErrExt) {
			t.Errorf("the first %d bytes: %v", n, err)
		}
	}
	if _, err := FindBlock(AppendBlock(bytes.Clone(ext), TagInvariants, nil), 1); !errors.Is(err, ErrExt) {
		t.Errorf("tags that fall: %v", err)
	}
	if _, err := FindBlock(AppendBlock(nil, 0, nil), 1); !errors.Is(err, ErrExt) {
		t.Errorf("tag 0: %v", err)
	}
}

func TestLongBlock(t *testing.T) {
	ext, at := OpenBlock(nil, 3)
	ext = CloseBlock(append(ext, make([]byte, 1<<16)...), at)
	if got, err := FindBlock(ext, 3); err != nil || len(got) != 1<<16-1 {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func FuzzBlocks(f *testing.F) {
	f.Add([]byte{})
	f.Add(AppendBlock(AppendBlock(nil, 1, []byte("a")), 2, []byte("bc")))
	f.Fuzz(func(t *testing.T, ext []byte) {
		var again []byte
		for b, err := range Blocks(ext) {
			if err != nil {
				return
			}
			again = AppendBlock(again, b.Tag, b.Data)
		}
		if !bytes.Equal(again, ext) {
			t.Errorf("%x is written %x", ext, again)
		}
	})
}
