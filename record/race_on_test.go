//go:build race

package record

// raceEnabled: the standard library, instrumented, allocates where it does not otherwise.
const raceEnabled = true
