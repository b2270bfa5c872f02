package plot

// Tick is a round number on an axis, with its label.
type Tick struct {
	At   float64 // of an axis of values
	Step uint64  // of an axis of steps
	Text string
}

// StepTicks returns at most n+1 round steps within a range, for who draws a chart of their own.
func StepTicks(from, to uint64, n int) []Tick { return exported(stepTicks(from, to, n)) }

// ValueTicks returns about n round numbers within a range whose difference is finite, each exact in decimal.
func ValueTicks(lo, hi float64, n int) []Tick { return exported(valueTicks(lo, hi, n)) }

func exported(list []tick) []Tick {
	all := make([]Tick, len(list))
	for i, t := range list {
		all[i] = Tick{At: t.at, Step: t.step, Text: t.text}
	}
	return all
}

// Number writes a label with four significant digits, in at most 10 characters.
func Number(x float64) string { return number(x) }
