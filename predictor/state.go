package predictor

import (
	"errors"
	"fmt"
)

// stateVersion begins every section. A change of what a section holds raises it.
const stateVersion = 2

// section is one independently stored part of the state.
type section struct {
	name  string
	visit func(*codec)
}

// parts lists the sections in their fixed order.
func (p *Predictor) parts() []section {
	s := []section{
		{"orchestrator", p.visitOrchestrator},
		{"detector", p.visitDetector},
		{"histories", p.history.visit},
	}
	for _, e := range p.experts {
		s = append(s, section{"expert." + e.name(), e.visit})
	}
	return s
}

func (p *Predictor) visitDetector(c *codec) {
	p.monitor.visit(c)
	p.cusum.visit(c)
	p.variance.visit(c)
	p.slow.visit(c)
	p.stale.visit(c)
	p.rough.visit(c)
	p.conf.visit(c)
	p.gate.visit(c)
}

func (p *Predictor) visitOrchestrator(c *codec) {
	for i := range p.configID {
		b := uint64(p.configID[i])
		c.uint(&b)
		if c.load && b != uint64(p.configID[i]) {
			c.fail(errors.New("it was saved under another configuration"))
		}
	}
	c.uint(&p.steps)
	c.int64(&p.time)
	c.float(&p.forecast)
	c.float(&p.lower)
	c.float(&p.upper)
	p.ensemble.visit(c)
	p.guard.visit(c)
	c.floats(p.weights)
	c.float(&p.mixed)
}

// State calls emit with every section of the state in a fixed order: "orchestrator", "detector", "histories" and
// one "expert.NAME" each. Together they are all that Restore needs to continue to the bit. data is valid only during
// the call. The size of each section depends on the Config alone, so a buffer that once sufficed always does; after
// the first call State allocates nothing itself.
func (p *Predictor) State(emit func(name string, data []byte)) {
	for _, s := range p.sections {
		p.codec = codec{buf: p.codec.buf[:0]}
		version := uint64(stateVersion)
		p.codec.uint(&version)
		s.visit(&p.codec)
		emit(s.name, p.codec.buf)
	}
}

// StateSize returns the total length in bytes of what State emits.
func (p *Predictor) StateSize() int {
	n := 0
	p.State(func(_ string, data []byte) { n += len(data) })
	return n
}

// Restore returns a predictor that continues where the one whose State is given stood. cfg must be the Config of that
// one. The error wraps ErrState and names the section; unknown sections are ignored.
func Restore(cfg Config, state map[string][]byte) (*Predictor, error) {
	p, err := newPredictor(cfg)
	if err != nil {
		return nil, err
	}
	for _, s := range p.sections {
		data, ok := state[s.name]
		if !ok {
			return nil, fmt.Errorf("%w: section %q is missing", ErrState, s.name)
		}
		c := codec{buf: data, load: true}
		var version uint64
		c.uint(&version)
		if c.err == nil && version != stateVersion {
			c.fail(fmt.Errorf("it has version %d, this program reads %d", version, stateVersion))
		}
		if c.err == nil {
			s.visit(&c)
		}
		if c.err == nil && len(c.buf) > 0 {
			c.fail(fmt.Errorf("it is %d bytes too long", len(c.buf)))
		}
		if c.err != nil {
			return nil, fmt.Errorf("%w: section %q: %w", ErrState, s.name, c.err)
		}
	}
	return p, nil
}
