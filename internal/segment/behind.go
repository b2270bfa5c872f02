package segment

import "github.com/usp-project/usp/internal/vfs"

const (
	keptSyncs = 16        // what so many syncs have written stays in the kernel's cache, for those who follow the file
	keptBytes = 16 << 20  // where that is more, the file grows so fast that followers may be far behind: all of it stays
	dropUnit  = 256 << 10 // less is not worth a system call
)

// behind has the kernel drop from its cache what was synced a while ago. A run of days then does not take the memory that others' files
// are cached in, and its next pages are in the memory of its last ones, which is near; that of new ones a processor has to wait for.
type behind struct {
	syncs   [keptSyncs]int64 // where the last ones ended, in turns
	next    int              // the oldest of them
	dropped int64            // all before it is
}

// synced takes note that f is durable as far as end.
func (b *behind) synced(f vfs.File, end int64) {
	until := b.syncs[b.next] &^ (dropUnit - 1)
	b.syncs[b.next] = end
	b.next = (b.next + 1) % keptSyncs
	if until-b.dropped < dropUnit || end-until > keptBytes {
		return
	}
	_ = vfs.DropBehind(f, b.dropped, until-b.dropped) // advice
	b.dropped = until
}
