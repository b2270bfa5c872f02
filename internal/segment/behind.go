package segment

import (
	"os"

	"github.com/usp-project/usp/internal/vfs"
)

// quickSync is the bytes of one sync from which on the file grows so fast that those who follow it may be far behind.
const quickSync = 256 << 10

// leastBehind is how many bytes of a file that is written directly are dropped at a time: all that is there is what was read meanwhile.
const leastBehind = 1 << 20

var pageSize = int64(os.Getpagesize())

// behind has the kernel drop from its cache what was durable before the last sync: who follows the file has read it. A run of days then
// does not take the memory that others' files are cached in, and each sync's pages lie in the memory of those before it, which is near;
// for new ones a processor, which the loop may want meanwhile, has to wait.
type behind struct {
	last    int64 // where the last sync ended
	dropped int64 // all before it is
}

// synced takes note that f, which is written directly or not, is durable as far as end.
func (b *behind) synced(f vfs.File, end int64, directly bool) {
	until := b.last &^ (pageSize - 1)
	b.last = end
	if until <= b.dropped || end-until > quickSync || directly && until-b.dropped < leastBehind {
		return
	}
	_ = vfs.DropBehind(f, b.dropped, until-b.dropped) // advice
	b.dropped = until
}
