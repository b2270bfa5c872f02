package predictor

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// ErrState is wrapped by every error about a saved state that cannot be restored.
var ErrState = errors.New("predictor: saved state cannot be restored")

// codec writes state or reads it back by one and the same walk over the fields, so that neither can forget one.
// Numbers are 8 bytes little-endian.
type codec struct {
	buf  []byte // written so far, or still to be read
	load bool
	err  error // first failure to read
}

func (c *codec) uint(p *uint64) {
	if !c.load {
		c.buf = binary.LittleEndian.AppendUint64(c.buf, *p)
		return
	}
	if c.err == nil && len(c.buf) < 8 {
		c.err = errors.New("it ends too early")
	}
	if c.err == nil {
		*p = binary.LittleEndian.Uint64(c.buf)
		c.buf = c.buf[8:]
	}
}

func (c *codec) float(p *float64) {
	b := math.Float64bits(*p)
	c.uint(&b)
	if f := math.Float64frombits(b); math.IsNaN(f) || math.IsInf(f, 0) {
		c.fail(fmt.Errorf("it holds %v", f))
	} else if c.load {
		*p = f
	}
}

func (c *codec) floats(p []float64) {
	for i := range p {
		c.float(&p[i])
	}
}

// int walks an integer that must lie in [lo, hi].
func (c *codec) int(p *int, lo, hi int) {
	b := uint64(int64(*p))
	c.uint(&b)
	if c.load {
		if v := int64(b); v >= int64(lo) && v <= int64(hi) {
			*p = int(v)
		} else {
			c.fail(fmt.Errorf("it holds %d where %d to %d can stand", v, lo, hi))
		}
	}
}

func (c *codec) bool(p *bool) {
	b := 0
	if *p {
		b = 1
	}
	c.int(&b, 0, 1)
	*p = b == 1
}

func (c *codec) int64(p *int64) {
	b := uint64(*p)
	c.uint(&b)
	*p = int64(b)
}

func (c *codec) fail(err error) {
	if c.load && c.err == nil {
		c.err = err
	}
}
