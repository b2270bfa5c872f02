package segment

// DirectMemory returns the bytes that w has written directly at once, at most; 0: none yet.
func DirectMemory(w *Writer) int { return len(w.direct.buf) }
