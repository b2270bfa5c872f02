//go:build race

package fixedsum

// raceEnabled: the standard library, instrumented, allocates where it does not otherwise.
const raceEnabled = true
