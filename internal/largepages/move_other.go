//go:build !linux || !amd64

package largepages

// Pieces returns what does nothing.
func Pieces() func() (more bool) { return func() bool { return false } }
