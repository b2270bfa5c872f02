// Package priority makes what runs beside a step loop give way to it on processors that both want.
//
// Of threads and single processes the lowest priority is for good: who is not privileged cannot take it back. A process
// that leads a session of its own can lower the whole session and raise it again, where Linux schedules sessions as groups
// (autogroup, sched(7)). There that is the only thing that counts beside another session: a thread's own priority only
// says what it gets of its session's share.
//
// All of it is best effort: where it cannot be had, processors are shared as the system does it.
package priority

import (
	"slices"
	"strings"
	"time"
)

// Slack is by how much timers may be late of who gives way: then the system wakes a processor once for several of them, and the
// Go runtime, which looks at its threads after 20 µs when one is in a system call, looks a third as often.
const Slack = time.Millisecond

// Lowest is the lowest priority of those that get some of a processor for sure: beside one thread, or one session, of
// ordinary priority one seventieth. Beside several that may be too little for a process to notice that it needs more; who
// lowers a session should have somebody else who raises it, with RaiseSession.
const Lowest = 19

// Beginning is the priority that LowerSession gives. By it Session knows that its session was lowered by who started it, until it can do
// so itself, and not by its user: it may be raised. It is as good as the lowest.
const Beginning = Lowest - 1

const (
	goDebug       = "GODEBUG="
	noPreemptions = "asyncpreemptoff="
)

// Unsignalled returns the environment env for a process of Go code that gives way: its runtime does not interrupt it by signals. It
// would whenever a goroutine has had a processor for 10 ms, most of which the step loop had, and the handler goes through code and
// tables that nothing else needs. What env itself says about it stays.
func Unsignalled(env []string) []string {
	debug := ""
	for _, entry := range env { // the last one counts
		if value, ok := strings.CutPrefix(entry, goDebug); ok {
			debug = value
		}
	}
	if strings.Contains(","+debug, ","+noPreemptions) {
		return env
	}
	if debug != "" {
		debug += ","
	}
	return append(slices.Clip(env), goDebug+debug+noPreemptions+"1")
}
