//go:build linux && amd64

package largepages

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const most = 16 // pieces of code, and of constants: a program of more, which is another's that has usp in it, keeps them where they are

// piece is what becomes a large page.
type piece struct {
	addr uintptr
	prot int // of the program's file: what may be done with it; 0: of the heap
}

// protections are those of code and of constants, by what proc_pid_maps(5) calls them.
var protections = map[string]int{"r-xp": unix.PROT_READ | unix.PROT_EXEC, "r--p": unix.PROT_READ}

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
		if p.prot != 0 {
			if !move(p) { // so it will be for the others
				left = ofHeap(left)
			}
		} else {
			collapse(p.addr)
		}
		return len(left) > 0
	}
}

func ofHeap(left []piece) (heap []piece) {
	for _, p := range left {
		if p.prot == 0 {
			heap = append(heap, p)
		}
	}
	return heap
}

// find returns the pieces that lie wholly in the heap, or in the program's code or constants.
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
		prot := protections[rights]
		if ofFile := prot != 0 && strings.HasSuffix(lines.Text(), " "+program); !ofFile && !(rights == "rw-p" && from <= heap && heap < to) {
			continue
		}
		for at := (from + Size - 1) &^ (Size - 1); at+Size <= to; at += Size {
			found = append(found, piece{addr: at, prot: prot})
		}
	}
	number := map[int]int{}
	for _, p := range found {
		number[p.prot]++
	}
	return slices.DeleteFunc(found, func(p piece) bool { return p.prot != 0 && number[p.prot] > most })
}

// collapse makes the memory at addr one large page, now. It says whether it is.
func collapse(addr uintptr) bool {
	if _, _, errno := unix.Syscall(unix.SYS_MADVISE, addr, Size, unix.MADV_HUGEPAGE); errno != 0 {
		return false
	}
	_, _, errno := unix.Syscall(unix.SYS_MADVISE, addr, Size, unix.MADV_COLLAPSE)
	return errno == 0
}

// move puts a copy of a piece of the program's file, in a large page, in its place. Who executes it meanwhile goes on in the copy: the
// place is given away in one system call. It says whether that was done.
func move(p piece) bool {
	room, _, errno := unix.Syscall6(unix.SYS_MMAP, 0, 2*Size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, ^uintptr(0), 0)
	if errno != 0 {
		return false
	}
	to := (room + Size - 1) &^ (Size - 1)
	unmap(room, to-room)
	unmap(to+Size, room+Size-to)
	if populate(p.addr) {
		copy(memory(to), memory(p.addr))
		if collapse(to) && protect(to, p.prot) == 0 {
			if _, _, errno = unix.Syscall6(unix.SYS_MREMAP, to, Size, Size, unix.MREMAP_MAYMOVE|unix.MREMAP_FIXED, p.addr, 0); errno == 0 {
				return true
			}
		}
	}
	unmap(to, Size)
	return false
}

// populate has a piece of the file in memory. The kernel waits for the device there, and not a goroutine that keeps its processor; and what
// cannot be read is an error, and no signal that ends the process.
func populate(addr uintptr) bool {
	_, _, errno := syscall.Syscall(unix.SYS_MADVISE, addr, Size, unix.MADV_POPULATE_READ)
	return errno == 0
}

func protect(addr uintptr, prot int) syscall.Errno {
	_, _, errno := unix.Syscall(unix.SYS_MPROTECT, addr, Size, uintptr(prot))
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
