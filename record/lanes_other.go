//go:build !amd64

package record

// lanedWays are none here.
func lanedWays() []laned { return nil }
