//go:build race

package recorder_test

// raceEnabled thins out the long loops: the detector makes them ten times slower, and finds races in the first rounds.
const raceEnabled = true
