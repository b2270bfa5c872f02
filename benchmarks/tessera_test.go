//go:build rivals

package benchmarks

import (
	"context"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/transparency-dev/tessera"
	"github.com/transparency-dev/tessera/storage/posix"
	"golang.org/x/mod/sumdb/note"

	"github.com/usp-project/usp/digestlog"
)

// tesseraCheckpoint is the least that it takes.
const tesseraCheckpoint = 100 * time.Millisecond

// tesseraBatching is what suits Tessera best here, of batches of 1,024 to 65,536 entries and 10 to 250 ms: large ones for the
// rate, and shorter ones for the time to durable. TESSERA_BATCH and TESSERA_AGE are there to try others.
func tesseraBatching(pace int) (batch uint, age time.Duration) {
	batch, age = 8192, 50*time.Millisecond
	if pace > 0 {
		batch, age = 4096, 20*time.Millisecond
	}
	if n, err := strconv.ParseUint(os.Getenv("TESSERA_BATCH"), 10, 32); err == nil {
		batch = uint(n)
	}
	if d, err := time.ParseDuration(os.Getenv("TESSERA_AGE")); err == nil {
		age = d
	}
	return batch, age
}

// tesseraLog is a log of tiles by Tessera's POSIX driver, without antispam. Its promise is the same: when an entry has its
// index, it is on stable storage and in the tree.
type tesseraLog struct {
	ctx      context.Context
	cancel   context.CancelFunc
	appender *tessera.Appender
	shutdown func(context.Context) error
	futures  chan tessera.IndexFuture
	done     chan error
}

func openTessera(dir string, signer note.Signer, pace int, durable func(n int)) (aLog, error) {
	ctx, cancel := context.WithCancel(context.Background())
	driver, err := posix.New(ctx, posix.Config{Path: dir})
	if err != nil {
		cancel()
		return nil, err
	}
	a, shutdown, _, err := tessera.NewAppender(ctx, driver, tessera.NewAppendOptions().WithCheckpointSigner(signer).
		WithBatching(tesseraBatching(pace)).WithCheckpointInterval(tesseraCheckpoint).WithPushback(1<<20))
	if err != nil {
		cancel()
		return nil, err
	}
	t := &tesseraLog{ctx: ctx, cancel: cancel, appender: a, shutdown: shutdown, done: make(chan error, 1),
		futures: make(chan tessera.IndexFuture, 1<<20)} // never full: Add itself waits for the driver
	go func() {
		for f := range t.futures {
			if _, err := f(); err != nil {
				t.done <- err
				return
			}
			durable(1)
		}
		t.done <- nil
	}()
	return t, nil
}

func (t *tesseraLog) add(e *digestlog.Entry) error {
	t.futures <- t.appender.Add(t.ctx, tessera.NewEntry(e.Append(nil))) // it keeps the bytes
	return nil
}

func (t *tesseraLog) close() error {
	defer t.cancel()
	close(t.futures)
	if err := <-t.done; err != nil {
		return err
	}
	return t.shutdown(t.ctx)
}

// BenchmarkDigestLogRivals is BenchmarkDigestLog in turn with Tessera.
func BenchmarkDigestLogRivals(b *testing.B) {
	compareLogs(b, append(ourLogs[:2:2], logWay{"tessera", openTessera})...)
}
