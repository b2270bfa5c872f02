package usp

import (
	"encoding/json"
	"fmt"
	"os"
	"sync/atomic"

	"github.com/usp-project/usp/recorder"
)

// serving is set by ServeRecorder: this program can be started again to be its own recorder. It is the one piece of
// process state of the package, because what a process can do is a property of the process.
var serving atomic.Bool

// ServeRecorder lets a program be its own recorder. Call it first in main, and in TestMain: in a process that Start or
// Resume launched to record it does so and never returns; in every other process it returns at once, and Start will
// launch this program again instead of looking for the usp binary.
func ServeRecorder() {
	if os.Getenv(recorderEnv) == "" {
		serving.Store(true)
		return
	}
	os.Unsetenv(recorderEnv)
	var o recorder.Options
	if err := json.NewDecoder(os.Stdin).Decode(&o); err != nil {
		fmt.Fprintf(os.Stderr, "recorder: options on standard input: %v\n", err)
		os.Exit(2)
	}
	os.Exit(recorder.Process(os.Args[len(os.Args)-1], o, os.Stdout, os.Stderr))
}
