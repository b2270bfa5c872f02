package predictor

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/usp-project/usp/detmath"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/record"
	"github.com/usp-project/usp/snapshot"
)

// The test binary is also the program whose results are compared between machines: what TestSameBits… compile for
// another target and run there is this file, the package and nothing else.
const traceArg = "trace"

// traceEvery is the number of observations between two checkpoints.
const traceEvery = 1000

// traceConfig has a small kernel window: 10⁵ steps are also run in an emulator. The default one runs in TestGoldenChains, on
// the same machines. So is the window of the exponent small, which else is hardly ever low enough.
var traceConfig = Config{KernelWindow: 16, HolderWindow: 64, HolderMin: .45}

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == traceArg {
		if err := trace(os.Args[2:], os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// series is a signal of which every regime and every disturbance is there to move another part of the predictor. It is
// made of nothing that differs between machines.
type series struct {
	noise       detmath.Uniform
	i           int
	level, walk float64
	late        int64 // how long no observation came, ns
}

// regimeLength is no divisor of traceEvery, so that checkpoints fall everywhere in a regime.
const regimeLength = 613

func (s *series) next() Observation {
	i := s.i
	s.i++
	r, at := i/regimeLength, i%regimeLength
	if at == 0 { // a new level, from the second regime on far off in the scale of the noise
		s.level += float64(200 * s.noise.Normal())
		s.walk = 0
	}
	e := s.noise.Normal()
	v := s.level
	switch r % 8 {
	case 0: // noise about a level
		v += e
	case 1: // random walk
		s.walk += e
		v += s.walk
	case 2: // a trend up, then down
		v += float64(0.5*float64(min(at, regimeLength-at))) + e
	case 3: // a season
		v += float64(3*float64(min(at%24, 24-at%24))) + float64(0.2*e)
	case 4: // calm and storm in turn
		v += float64(e * float64(1+50*(at/50%2)))
	case 5: // a sensor that hangs, every hundred steps for forty
		if at%100 >= 60 {
			e = 0
		}
		v += e
	case 6: // far below one
		v = float64(1e-9 * e)
	case 7: // acceleration, which no expert can follow: alarms
		v += float64(float64(float64(0.01*float64(at))*float64(at)) + e)
		if r%16 == 15 {
			v = -v
		}
	}
	if i%1789 == 1200 { // an outage
		s.late += 60e9
	}
	obs := Observation{Time: int64(i+1)*1e9 + s.late, Value: v}
	if i%1789 >= 1500 && i%1789 < 1510 { // a backlog
		obs.Arrival = obs.Time + 20e9
	}
	switch {
	case i%997 == 500, i%3001 == 2000, i%3001 == 2001: // outliers, also two in a row
		obs.Value += 1e6
	case i%1499 == 700:
		obs.Value = math.NaN()
	case i%1499 == 701:
		obs.Value = math.Inf(1)
	case i%2111 == 900:
		obs.Value = -1e300
	case i%2003 == 50:
		obs.Time -= 1e9 // that of the observation before
	case i%701 == 5:
		obs.Value = math.Copysign(0, -1)
	}
	return obs
}

// tracer makes of every step its fields: each word and each digest of the telemetry, the forecast with its interval, and
// whether the observation was refused; at a checkpoint also the state.
type tracer struct {
	p        *Predictor
	out      Output
	schema   *record.Schema
	values   *record.Values
	digester *record.Digester
	sums     [][32]byte
	flags    uint64 // met so far
	fusable  bool
	plant    string // the name of a field of which one bit is to be turned in the next step

	names []string          // of all fields of a step, in order
	buf   []byte            // the chain, and behind it the fields of the last step
	ends  []int             // where each of them ends in buf
	chain [sha256.Size]byte // over all steps
}

func newTracer(p *Predictor) *tracer {
	s := Schema(len(p.Experts()))
	t := &tracer{p: p, schema: s, values: record.NewValues(s), digester: record.NewDigester(s), names: []string{"refused", "step", "time"}}
	for _, f := range s.Fields() {
		for k := range f.Len {
			name := f.Name
			if f.Len > 1 {
				name = fmt.Sprintf("%s[%d]", name, k)
			}
			t.names = append(t.names, name)
		}
	}
	for _, name := range s.DigestFields() {
		t.names = append(t.names, "digest of "+name)
	}
	t.names = append(t.names, "forecast", "lower", "upper", "planted", "state")
	return t
}

// add adds the next field. One that a step does not have is empty.
func (t *tracer) add(b ...byte) {
	t.buf = append(t.buf, b...)
	t.ends = append(t.ends, len(t.buf))
	if len(b) > 0 && t.names[len(t.ends)-1] == t.plant {
		t.buf[len(t.buf)-1] ^= 1
	}
}

func (t *tracer) word(w uint64) {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], w)
	t.add(b[:]...)
}

// step takes in one observation. The chain is a SHA-256 sum over the chain before and the fields.
func (t *tracer) step(i int, obs Observation) {
	t.buf, t.ends = append(t.buf[:0], t.chain[:]...), t.ends[:0]
	switch err := t.p.Step(obs, &t.out); {
	case err == nil:
		t.add(0)
		t.taken()
	case errors.Is(err, ErrNotFinite):
		t.add(1)
	case errors.Is(err, ErrTime):
		t.add(2)
	default:
		panic(err) // Step knows no other error
	}
	for len(t.ends) < len(t.names)-1 { // of an observation that was refused there is nothing to tell
		t.add()
	}
	if (i+1)%traceEvery == 0 {
		sum := sha256.New()
		t.p.State(func(_ string, data []byte) { sum.Write(data) })
		t.add(sum.Sum(nil)...)
	} else {
		t.add()
	}
	t.chain = sha256.Sum256(t.buf)
}

// taken adds the fields of an observation that was not refused.
func (t *tracer) taken() {
	t.flags |= t.out.Flags
	Fill(t.values, &t.out)
	payload := t.values.Payload(t.out.Step, t.out.Time)
	for _, w := range payload {
		t.word(w)
	}
	t.sums, _ = t.digester.Append(t.sums[:0], payload)
	for i := range t.sums {
		t.add(t.sums[i][:]...)
	}
	t.word(math.Float64bits(t.out.Forecast))
	t.word(math.Float64bits(t.out.Lower))
	t.word(math.Float64bits(t.out.Upper))
	if t.fusable {
		t.word(math.Float64bits(fusable(t.out.Entropy, t.out.Threshold, t.out.Forecast)))
	}
}

// show writes the fields of the last step.
func (t *tracer) show(w io.Writer, observation int) {
	from := len(t.chain)
	for k, end := range t.ends {
		if end > from {
			fmt.Fprintf(w, "field %d %x %s\n", observation, t.buf[from:end], t.names[k])
		}
		from = end
	}
}

// fusable is the fault that the packages must not have: where there is a fused multiply-add the compiler uses it.
//
//go:noinline
func fusable(x, y, z float64) float64 { return x*y + z }

// machine tells in what this machine is different. fused: the compiler made one rounding of x·y + z. exp: a sum over
// results of math.Exp, which takes another way where the processor has no fused multiply-add or is told to have none.
func machine() string {
	exp := sha256.New()
	for i := range 1000 {
		_ = binary.Write(exp, binary.LittleEndian, math.Exp(float64(i)/70-7)) // a hash takes everything
	}
	return fmt.Sprintf("machine %s fused=%v exp=%.4x procs=%d", runtime.GOARCH, fusable(1+0x1p-30, 1-0x1p-30, -1) != 0, exp.Sum(nil), runtime.GOMAXPROCS(0))
}

// trace is the program: it steps a predictor through the series and writes lines to w.
func trace(args []string, w io.Writer) error {
	f := flag.NewFlagSet(traceArg, flag.ContinueOnError)
	steps := f.Int("steps", 10*traceEvery, "observations in all")
	show := f.Int("show", 0, "print the fields of the `observations` up to this checkpoint, from the one before")
	plant := f.String("plant", "", "turn a bit of `FIELD@OBSERVATION`")
	fuse := f.Bool("fusable", false, "add a field that the compiler may fuse")
	save := f.String("save", "", "leave a snapshot in this `directory` at the end")
	from := f.String("from", "", "begin with the snapshot in this `directory`")
	at := f.Int("at", 0, "the observations that the snapshot of -from has seen")
	if err := f.Parse(args); err != nil {
		return err
	}
	out := bufio.NewWriter(w)
	fmt.Fprintln(out, machine())
	p, err := New(traceConfig)
	if err != nil {
		return err
	}
	t := newTracer(p)
	if *from != "" {
		if err := t.load(*from, *at); err != nil {
			return err
		}
	}
	t.fusable = *fuse
	var s series
	for i := range *steps {
		obs := s.next()
		if i < *at {
			continue
		}
		t.plant = ""
		if name, at, ok := strings.Cut(*plant, "@"); ok && at == fmt.Sprint(i+1) {
			t.plant = name
		}
		t.step(i, obs)
		if i < *show && i >= *show-traceEvery {
			t.show(out, i+1)
		}
		if (i+1)%traceEvery == 0 {
			fmt.Fprintf(out, "checkpoint %d %x\n", i+1, t.chain)
		}
	}
	fmt.Fprintf(out, "end %s refused-and-taken=%d/%d\n", strings.Join(FlagNames(t.flags), ","), *steps-int(t.p.Steps()), t.p.Steps())
	if *save != "" {
		if err := t.save(*save, *steps); err != nil {
			return err
		}
	}
	return out.Flush()
}

// The section of the tracer's own state in a snapshot; Restore leaves it alone.
const traceSection = "trace"

func (t *tracer) save(dir string, at int) error {
	sections := []snapshot.Section{{Name: traceSection, Data: binary.LittleEndian.AppendUint64(slices.Clone(t.chain[:]), t.flags)}}
	t.p.State(func(name string, data []byte) {
		sections = append(sections, snapshot.Section{Name: name, Data: bytes.Clone(data)})
	})
	_, err := snapshot.Write(dir, snapshot.Meta{RunID: traceArg, Step: uint64(at), Schema: t.schema.Sum()}, sections, snapshot.Options{Codec: snapshot.Zstd})
	return err
}

func (t *tracer) load(dir string, at int) error {
	_, sections, err := snapshot.Load(vfs.OS(), filepath.Join(dir, snapshot.FileName(uint64(at), 0)), nil)
	if err != nil {
		return err
	}
	state := map[string][]byte{}
	for _, s := range sections {
		state[s.Name] = s.Data
	}
	p, err := Restore(traceConfig, state)
	if err != nil {
		return err
	}
	own := state[traceSection]
	if len(own) != len(t.chain)+8 {
		return fmt.Errorf("the snapshot's section %q has %d bytes", traceSection, len(own))
	}
	*t = *newTracer(p)
	copy(t.chain[:], own)
	t.flags = binary.LittleEndian.Uint64(own[len(t.chain):])
	return nil
}

// firstDifference compares two traces and names the first step and field in which they part, with -show; without, the
// first checkpoint. Both must be of the same observations; "" says that they are equal.
func firstDifference(a, b string) string {
	x, y := traceLines(a), traceLines(b)
	for i := range min(len(x), len(y)) {
		if x[i] == y[i] {
			continue
		}
		var step, other int
		var valueA, valueB string
		if n, _ := fmt.Sscanf(x[i], "field %d %s", &step, &valueA); n == 2 {
			if m, _ := fmt.Sscanf(y[i], "field %d %s", &other, &valueB); m == 2 {
				_, name, _ := strings.Cut(x[i], valueA+" ")
				return fmt.Sprintf("step %d, field %s: %s and %s", step, name, number(valueA), number(valueB))
			}
		}
		return fmt.Sprintf("%q and %q", x[i], y[i])
	}
	if len(x) != len(y) {
		return fmt.Sprintf("%d lines and %d", len(x), len(y))
	}
	return ""
}

// traceLines leaves out what tells of the machine.
func traceLines(trace string) []string {
	return slices.DeleteFunc(strings.Split(trace, "\n"), func(line string) bool { return strings.HasPrefix(line, "machine ") })
}

// number shows the bytes of a field as a float64 too, if they can be one.
func number(hexadecimal string) string {
	if b, err := hex.DecodeString(hexadecimal); err == nil && len(b) == 8 {
		return fmt.Sprintf("%s (%v)", hexadecimal, math.Float64frombits(binary.BigEndian.Uint64(b)))
	}
	return hexadecimal
}
