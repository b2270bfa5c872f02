// Package benchmarks measures storage beside what nobody can do without and, with the build tag rivals, beside what other
// people do. Subject and baseline take turns in one run; what is to be compared between machines are the ratios. It is a
// module of its own, so that the rivals are nobody's dependency. doc/benchmarks.md says how to read it.
package benchmarks

import (
	"encoding/json"
	"fmt"
	"os"
	"runtime/pprof"
	"testing"

	"github.com/usp-project/usp/recorder"
)

// The test binary is also the recorder's process. With the name of a file in profileEnv that process leaves a CPU profile
// of itself there.
const (
	recorderArg = "benchmark-recorder"
	profileEnv  = "RECORDER_PROFILE"
)

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == recorderArg {
		os.Exit(serveRecorder(os.Args[2]))
	}
	os.Exit(m.Run())
}

func serveRecorder(path string) int {
	var o recorder.Options
	if err := json.NewDecoder(os.Stdin).Decode(&o); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	if name := os.Getenv(profileEnv); name != "" {
		f, err := os.Create(name)
		if err == nil {
			err = pprof.StartCPUProfile(f)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 2
		}
		defer f.Close()
		defer pprof.StopCPUProfile()
	}
	return recorder.Process(path, o, os.Stdout, os.Stderr)
}
