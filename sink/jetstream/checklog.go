package jetstream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/note"

	"github.com/usp-project/usp/digestlog"
)

// logChecker checks the digest log. Its tree is not the one of the log's writer.
type logChecker struct {
	*checker
	keys note.Verifiers
	tree *compact.Range
	gone bool // something is missing in the tree, or not in its place: no root of it says anything

	head *digestlog.SignedTreeHead // that the run directory has; nil: it has none
}

func (c *logChecker) check(ctx context.Context, a *Against) error {
	c.tree = (&compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}).NewEmptyRange(0)
	if err := c.trust(a); err != nil {
		return err
	}
	if c.local != nil {
		defer c.local.close()
	}
	err := c.messages(ctx, func(sequence uint64, h header, err error, payload []byte) error {
		switch {
		case err != nil:
			c.problem(Malformed, sequence, c.want, c.want, "%v", err)
		case h.kind == kindEntries:
			return c.entries(sequence, &h, payload)
		case h.kind == kindHead:
			c.signed(sequence, &h, payload)
		default:
			c.problem(Malformed, sequence, h.first, h.next, "a message of kind %s", h.kind)
		}
		return nil
	})
	c.report.Entries = c.want
	if err == nil && c.ahead() { // of a run that is recorded the head that is there now counts, not the one at the beginning
		err = c.trust(a)
	}
	if err == nil && c.ahead() {
		c.problem(Absent, 0, c.head.Size, c.report.Head.Size, "the stream has a head over %d entries, which is signed, and the run directory one over %d: it is an older copy, or was put back", c.report.Head.Size, c.head.Size)
	}
	return err
}

// ahead says whether the stream has a signed head over more than that of the run directory.
func (c *logChecker) ahead() bool {
	return c.head != nil && c.report.Head != nil && c.report.Head.Size > c.head.Size
}

// trust finds the keys, and the head of the run directory.
func (c *logChecker) trust(a *Against) error {
	o := &Options{FS: a.FS, Dir: a.Dir}
	c.keys = a.Verifiers
	if a.Dir == "" {
		return nil
	}
	if c.keys == nil {
		var err error
		if c.keys, err = signers(o); err != nil {
			return err
		}
	}
	head, err := digestlog.ReadHead(a.FS, a.Dir.Head(), c.keys)
	switch {
	case err == nil:
		c.head, c.report.Mine = &head, head.Size
	case !errors.Is(err, fs.ErrNotExist):
		c.report.Notes = append(c.report.Notes, fmt.Sprintf("the signed head of the run directory was not used: %v", err))
	}
	return nil
}

// entries checks a message with entries.
func (c *logChecker) entries(sequence uint64, h *header, payload []byte) error {
	inOrder := c.place(sequence, h)
	list, ok := c.frames(sequence, h, payload)
	c.gone = c.gone || !inOrder || !ok
	if ok {
		if err := c.compare(sequence, h, list, inOrder); err != nil {
			return err
		}
	}
	if !c.gone {
		for _, entry := range list {
			c.tape.add(entry)
			if err := c.tree.Append(rfc6962.DefaultHasher.HashLeaf(entry[4:]), nil); err != nil {
				return err
			}
			if c.head != nil && c.tree.End() == c.head.Size {
				c.rooted(sequence, c.head, "of the run directory")
			}
		}
		c.chained(sequence, h)
	}
	c.want = max(c.want, h.next)
	return nil
}

// signed checks a message with a head.
func (c *logChecker) signed(sequence uint64, h *header, payload []byte) {
	if c.keys == nil {
		if len(c.report.Notes) == 0 {
			c.report.Notes = append(c.report.Notes, "the heads in the stream were not checked: no key was given")
		}
		return
	}
	head, err := digestlog.ParseHead(payload, c.keys)
	switch {
	case err != nil:
		c.problem(Forged, sequence, h.first, h.next, "%v", err)
	case head.RunID() != c.report.Run:
		c.problem(Forged, sequence, h.first, h.next, "it is the head of the run %q", head.RunID())
	case head.Size != h.next:
		c.problem(Forged, sequence, h.first, h.next, "it is signed over %d entries", head.Size)
	case head.Size != c.want:
		c.problem(Repeated, sequence, h.first, h.next, "a head over %d entries behind %d", head.Size, c.want)
	case c.rooted(sequence, &head, "in the stream"):
		c.report.Heads++
		c.report.Head, c.report.Signed = &head, head.Size
	}
}

// rooted says whether the entries so far make the tree that a head is signed for.
func (c *logChecker) rooted(sequence uint64, head *digestlog.SignedTreeHead, whose string) bool {
	from := c.report.Signed
	if c.gone {
		return false // what is missing or out of place was said
	}
	root, err := c.tree.GetRootHash(nil)
	if err != nil || !bytes.Equal(root, head.Root[:]) {
		c.problem(Forged, sequence, from, head.Size, "these entries do not make the tree that the head %s is signed for", whose)
		return false
	}
	return true
}
