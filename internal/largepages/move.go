//go:build linux && amd64

package largepages

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const mostCode = 16 // pieces: a program of more, which is another's that has usp in it, keeps its code where it is

// piece is what becomes a large page.
type piece struct {
	addr uintptr
	code bool
}

// Pieces returns what moves one piece of this process at each call, for a millisecond or less, and returns whether there are more.
func Pieces() func() (more bool) {
	var left []piece
	began := false
	return func() bool {
		if !began {
			began, left = true, find()
		}
		if len(left) == 0 {
			return false
		}
		p := left[0]
		left = left[1:]
		if p.code {
			if !moveCode(p.addr) { // so it will be for the others
				left = withoutCode(left)
			}
		} else {
			collapse(p.addr)
		}
		return len(left) > 0
	}
}

func withoutCode(left []piece) (heap []piece) {
	for _, p := range left {
		if !p.code {
			heap = append(heap, p)
		}
	}
	return heap
}

// find returns the pieces that lie wholly in the heap or in the program's code.
func find() []piece {
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return nil
	}
	maps, err := os.Open("/proc/self/maps")
	if err != nil {
		return nil
	}
	defer maps.Close()
	return parse(maps, program, uintptr(unsafe.Pointer(new([1 << 12]byte))))
}

// parse finds them in the text of proc_pid_maps(5); heap is an address in the heap.
func parse(maps io.Reader, program string, heap uintptr) (found []piece) {
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		var from, to uintptr
		var rights, offset, device, inode string
		if _, err := fmt.Sscanf(lines.Text(), "%x-%x %s %s %s %s", &from, &to, &rights, &offset, &device, &inode); err != nil {
			continue
		}
		code := rights == "r-xp" && strings.HasSuffix(lines.Text(), " "+program)
		if !code && !(rights == "rw-p" && from <= heap && heap < to) {
			continue
		}
		for at := (from + Size - 1) &^ (Size - 1); at+Size <= to; at += Size {
			found = append(found, piece{addr: at, code: code})
		}
	}
	if heap := withoutCode(found); len(found)-len(heap) > mostCode {
		return heap
	}
	return found
}

// collapse makes the memory at addr one large page, now. It says whether it is.
func collapse(addr uintptr) bool {
	if _, _, errno := unix.Syscall(unix.SYS_MADVISE, addr, Size, unix.MADV_HUGEPAGE); errno != 0 {
		return false
	}
	_, _, errno := unix.Syscall(unix.SYS_MADVISE, addr, Size, unix.MADV_COLLAPSE)
	return errno == 0
}

// moveCode puts a copy of the code at addr, in a large page, in its place. Who executes it meanwhile goes on in the copy: the place is
// given away in one system call. It says whether that was done.
func moveCode(addr uintptr) bool {
	room, _, errno := unix.Syscall6(unix.SYS_MMAP, 0, 2*Size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, ^uintptr(0), 0)
	if errno != 0 {
		return false
	}
	to := (room + Size - 1) &^ (Size - 1)
	unmap(room, to-room)
	unmap(to+Size, room+Size-to)
	copy(memory(to), memory(addr))
	if collapse(to) && protect(to) == 0 {
		if _, _, errno = unix.Syscall6(unix.SYS_MREMAP, to, Size, Size, unix.MREMAP_MAYMOVE|unix.MREMAP_FIXED, addr, 0); errno == 0 {
			return true
		}
	}
	unmap(to, Size)
	return false
}

func protect(addr uintptr) syscall.Errno {
	_, _, errno := unix.Syscall(unix.SYS_MPROTECT, addr, Size, unix.PROT_READ|unix.PROT_EXEC)
	return errno
}

func unmap(addr, n uintptr) {
	if n > 0 {
		_, _, _ = unix.Syscall(unix.SYS_MUNMAP, addr, n, 0)
	}
}

// memory is a piece at addr, which the kernel named and Go's garbage collector does not know.
func memory(addr uintptr) []byte {
	return unsafe.Slice((*byte)(*(*unsafe.Pointer)(unsafe.Pointer(&addr))), Size)
}
