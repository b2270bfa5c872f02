//go:build !race

package fixedsum

const raceEnabled = false
