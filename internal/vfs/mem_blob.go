package vfs

import "maps"

const blockSize = 4096

// block is one page of a file. Once shared it belongs to several blobs and is never written again.
type block struct {
	shared bool
	b      [blockSize]byte
}

// blob is the content of a file: sparse, and cheap to copy because copies share their blocks.
type blob struct {
	size   int64
	blocks map[int64]*block
}

// share returns a copy of b. Neither sees what is written to the other.
func (b *blob) share() blob {
	for _, p := range b.blocks {
		p.share()
	}
	return blob{size: b.size, blocks: maps.Clone(b.blocks)}
}

// share marks the block; one that is marked already may be read by another goroutine and is left alone.
func (p *block) share() {
	if !p.shared {
		p.shared = true
	}
}

// shareBlock makes block i of dst the one of b.
func (b *blob) shareBlock(dst *blob, i int64) {
	p, ok := b.blocks[i]
	if !ok {
		delete(dst.blocks, i)
		return
	}
	p.share()
	if dst.blocks == nil {
		dst.blocks = make(map[int64]*block)
	}
	dst.blocks[i] = p
}

// readAt copies what lies at off; it returns fewer bytes only at the end of the file.
func (b *blob) readAt(dst []byte, off int64) int {
	n := int(max(0, min(int64(len(dst)), b.size-off)))
	for done := 0; done < n; {
		i, at := (off+int64(done))/blockSize, int((off+int64(done))%blockSize)
		part := dst[done:min(n, done+blockSize-at)]
		if p, ok := b.blocks[i]; ok {
			copy(part, p.b[at:])
		} else {
			clear(part)
		}
		done += len(part)
	}
	return n
}

// common returns how many bytes p begins with that lie at off.
func (b *blob) common(p []byte, off int64) int {
	old := make([]byte, len(p))
	n := b.readAt(old, off)
	for i := range n {
		if p[i] != old[i] {
			return i
		}
	}
	return n
}

// nextData returns the first offset from off on that lies in a block, -1 if there is none.
func (b *blob) nextData(off int64) int64 {
	for i := off / blockSize; i*blockSize < b.size; i++ {
		if b.blocks[i] != nil {
			return max(off, i*blockSize)
		}
	}
	return -1
}

// writeAt stores src at off and grows the file to hold it.
func (b *blob) writeAt(src []byte, off int64) {
	b.size = max(b.size, off+int64(len(src)))
	for len(src) > 0 {
		i, at := off/blockSize, int(off%blockSize)
		n := copy(b.own(i).b[at:], src)
		src, off = src[n:], off+int64(n)
	}
}

// own returns block i for writing.
func (b *blob) own(i int64) *block {
	p, ok := b.blocks[i]
	switch {
	case !ok:
		p = new(block)
	case p.shared:
		p = &block{b: p.b}
	default:
		return p
	}
	if b.blocks == nil {
		b.blocks = make(map[int64]*block)
	}
	b.blocks[i] = p
	return p
}

// truncate sets the size. What is cut off reads as zeros if the file grows again.
func (b *blob) truncate(size int64) {
	if size < b.size {
		maps.DeleteFunc(b.blocks, func(i int64, _ *block) bool { return i*blockSize >= size })
		if at := size % blockSize; at != 0 && b.blocks[size/blockSize] != nil {
			clear(b.own(size / blockSize).b[at:])
		}
	}
	b.size = size
}

// newBlocks counts the blocks from index reserved on that a write of n bytes at off would add.
func (b *blob) newBlocks(off int64, n int, reserved int64) (count int64) {
	if n == 0 {
		return 0
	}
	for i := max(off/blockSize, reserved); i <= (off+int64(n)-1)/blockSize; i++ {
		if b.blocks[i] == nil {
			count++
		}
	}
	return count
}
