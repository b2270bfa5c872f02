//go:build !linux

package recorder

// cpuModel is not known here: the manifest leaves it empty.
func cpuModel() string { return "" }
