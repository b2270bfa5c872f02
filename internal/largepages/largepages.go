// Package largepages moves the code, the constants and the heap of this process to large pages.
//
// A process that works for a millisecond every now and then finds little of itself in the processor's translation buffers, and on a
// virtual machine it finds pages that the host has taken from the guest's tables since: the processor stands still until they are
// back, with whatever else wants it. There are several hundred small pages of which each may be gone, and a few large ones.
//
// It is best effort, and changes nothing but speed and memory: code and constants are no longer shared with other processes of the same
// program (26 MiB of usp; where either are more than 32 MiB they stay), and the heap is rounded up to pieces. A profiler that looks at the process
// from outside finds no names of its code any more. Where the system gives no large pages, as before Linux 6.1, everything stays as it is.
package largepages

// Size is that of a large page, in bytes.
const Size = 2 << 20
