package bench

import (
	"crypto/sha256"
	"errors"
	"os"
	"syscall"
	"time"
)

// plainChunk is how much a plain writer hands to the kernel at once.
const plainChunk = 1 << 20

// plain writes size bytes, taken from source again and again, one after the other into a new file in dir and syncs it: every
// so many bytes, and at the end. With every = 0 there is only the sync at the end. The file is removed, which is not timed.
func plain(dir string, source []byte, size, every int64) (took time.Duration, err error) {
	begun := time.Now()
	f, err := os.CreateTemp(dir, "plain-")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.Remove(f.Name()), syncDir(dir)) }()
	for at, unsynced := int64(0), int64(0); at < size; {
		from := at % int64(len(source))
		chunk := source[from:min(from+plainChunk, int64(len(source)), from+size-at)]
		if _, err := f.Write(chunk); err != nil {
			return 0, errors.Join(err, f.Close())
		}
		at += int64(len(chunk))
		if unsynced += int64(len(chunk)); every > 0 && unsynced >= every {
			unsynced = 0
			if err := f.Sync(); err != nil {
				return 0, errors.Join(err, f.Close())
			}
		}
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return 0, err
	}
	return time.Since(begun), nil
}

// syncDir waits until what was removed from dir is gone, so that it is nobody's share of the next round.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// hashing is how much CPU time the SHA-256 sums alone take that the formats ask for: of what has these lengths for every interval-th
// record, and of the bytes of the telemetry files (the tree is the sum of the log's). It is the least that one core needs.
func hashing(lengths []int, records, interval uint64, size int64) (time.Duration, error) {
	buf := make([]byte, plainChunk)
	begun, err := cpuTime()
	if err != nil {
		return 0, err
	}
	for range records / interval {
		for _, n := range lengths {
			sum := sha256.Sum256(buf[:n])
			buf[0] = sum[0]
		}
	}
	h := sha256.New()
	for at := int64(0); at < size; at += plainChunk {
		h.Write(buf[:min(plainChunk, size-at)])
	}
	h.Sum(buf[:0])
	ended, err := cpuTime()
	return ended - begun, err
}

// cpuTime is what this process has used so far.
func cpuTime() (time.Duration, error) {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0, err
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), nil
}
