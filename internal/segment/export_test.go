package segment

// DirectMemory returns the bytes that w has in which to write directly: no more than a block before it did, none where it cannot.
func DirectMemory(w *Writer) int { return len(w.direct.buf) }
