package vfs

import (
	"maps"
	"math/rand/v2"
	"slices"
)

// Policy says what a crash does to what was not synced.
type Policy uint8

// The policies of [Mem.Crash].
const (
	// DropAll: power is lost and nothing unsynced had reached the disk.
	DropAll Policy = iota
	// KeepAll: only the processes died; the kernel lives and nothing is lost.
	KeepAll
	// Mixed: power is lost. Each unsynced write on its own was applied, dropped, or torn: of its
	// 512-byte sectors or 4-KiB blocks some were applied. Each unsynced change of a directory was
	// applied or lost, in any combination.
	Mixed
	// Garbage: as Mixed, but the sectors of a torn write that were not applied hold random bytes.
	// Bytes that the write does not cover are left alone (power-safe overwrite), and so are those at its
	// beginning that were on the disk already: a sector that gets what it has, and more behind that, keeps it.
	Garbage
)

const sectorSize = 512

// Crash returns the file system that would be found after a crash now; m itself is unharmed and both
// can be used. The choices come from rng, which DropAll and KeepAll do not need. The new file system
// has no hook, no locks, an operation count of 0 and everything synced.
func (m *Mem) Crash(rng *rand.Rand, p Policy) *Mem {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := &crasher{rng: rng, policy: p, names: make(map[*memNode]map[string]*memNode), done: make(map[*memNode]*memNode)}
	c.resolve(m.pending)
	next := &Mem{locks: make(map[*memNode]bool), capacity: m.capacity, tick: m.tick}
	next.root = c.node(m.root)
	for _, n := range c.done {
		next.used += n.charged
	}
	next.root.links = 1
	return next
}

type crasher struct {
	rng    *rand.Rand
	policy Policy
	names  map[*memNode]map[string]*memNode // directories that pending changes touch, as the crash leaves them
	done   map[*memNode]*memNode            // old to new
}

// coin is true with probability 1/n; only the random policies toss it.
func (c *crasher) coin(n int) bool { return c.rng.IntN(n) == 0 }

// resolve decides which pending directory changes survive.
func (c *crasher) resolve(pending []*dirOp) {
	for _, op := range pending {
		if c.policy == DropAll || c.policy >= Mixed && c.coin(2) {
			continue
		}
		for _, s := range op.set {
			if c.names[s.dir] == nil {
				c.names[s.dir] = maps.Clone(s.dir.diskEntries)
			}
			s.apply(c.names[s.dir])
		}
	}
}

// node returns what became of n and everything below it.
func (c *crasher) node(n *memNode) *memNode {
	if next, ok := c.done[n]; ok {
		return next
	}
	next := &memNode{dir: n.dir, mtime: n.mtime}
	c.done[n] = next
	next.mode, next.appendOnly, next.diskAppendOnly = n.diskMode, n.diskAppendOnly, n.diskAppendOnly
	if c.policy == KeepAll || c.policy >= Mixed && c.coin(2) {
		next.mode = n.mode
	}
	next.diskMode = next.mode
	if n.dir {
		next.entries = c.entries(n)
		next.diskEntries = maps.Clone(next.entries)
		return next
	}
	next.data = c.content(n)
	next.disk = next.data.share()
	next.reserved = min(n.reserved, blocksOf(next.data.size))
	next.charged = next.held() * blockSize
	return next
}

func (c *crasher) entries(n *memNode) map[string]*memNode {
	old := n.diskEntries
	if names, ok := c.names[n]; ok {
		old = names
	}
	entries := make(map[string]*memNode, len(old))
	for _, name := range slices.Sorted(maps.Keys(old)) { // in order, so that one seed gives one outcome
		entries[name] = c.node(old[name])
		entries[name].links++
	}
	return entries
}

// content decides what of the unsynced writes is in the file.
func (c *crasher) content(n *memNode) blob {
	if c.policy == KeepAll {
		return n.data.share()
	}
	b := n.disk.share()
	if c.policy == DropAll {
		return b
	}
	for _, w := range n.writes {
		switch fate := c.rng.IntN(3); {
		case fate == 0: // dropped
		case w.kind == OpTruncate:
			b.truncate(w.size)
		case w.kind == OpPreallocate:
			b.size = max(b.size, w.size)
		case fate == 1:
			b.writeAt(w.data, w.off)
		default:
			c.tear(&b, w, &n.disk)
		}
	}
	return b
}

// tear applies a part of a write to b, where disk is what was durable.
func (c *crasher) tear(b *blob, w memWrite, disk *blob) {
	kept := w.off + int64(min(disk.common(w.data, w.off), b.common(w.data, w.off))) // b may have been cut since
	unit := int64(sectorSize)
	if c.coin(2) {
		unit = blockSize
	}
	end := w.off + int64(len(w.data))
	prefix := c.coin(2) // in order up to a point, or any subset
	lost := false
	for at := w.off; at < end; {
		next := min(end, (at/unit+1)*unit)
		piece := w.data[at-w.off : next-w.off]
		if !prefix || !lost {
			lost = c.coin(2)
		}
		switch {
		case !lost:
			b.writeAt(piece, at)
		case c.policy == Garbage && next > kept:
			from := max(at, kept)
			b.writeAt(c.noise(int(next-from)), from)
		}
		at = next
	}
	if c.coin(4) { // the size was written and the data was not
		b.size = max(b.size, end)
	}
}

func (c *crasher) noise(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(c.rng.Uint32())
	}
	return p
}
