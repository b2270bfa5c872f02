//go:build race

package web

// raceEnabled gives a page more time: the detector makes it ten times slower.
const raceEnabled = true
