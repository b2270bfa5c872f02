// Package signature computes truncated signatures and log-signatures of piecewise-linear paths: the iterated integrals
// that describe a path up to the way it is run through (Lyons, Rev. Mat. Iberoam. 14, 1998).
//
// A log-signature is given by its coefficients at Lyndon words, which are a basis of it (Reizenstein and Graham, ACM
// TOMS 46, 2020, call them words). Everything is exact up to rounding, in a fixed order of operations, and a Transform
// allocates nothing after New.
package signature

import (
	"fmt"
	"slices"
)

// The limits of New.
const (
	MaxDimension = 4
	MaxDepth     = 5
)

// Transform is the signature of one path that is being walked. It is not safe for concurrent use.
type Transform struct {
	dim, depth int
	offset     []int                            // offset[k] is where level k begins, offset[depth+1] the length of a tensor
	sig        []float64                        // the tensor: level 0 (which is 1), level 1 (d numbers), level 2 (d²), …
	log        []float64                        // scratch
	power      []float64                        // scratch
	a, b       []float64                        // scratch of Extend
	parts      [MaxDepth * MaxDimension]float64 // scratch: v, v/2, v/3, …
	words      [][]int
	places     []int // of the Lyndon words in a tensor
}

// New returns the signature of a path that has not moved, in dim dimensions (1 to 4) up to words of length depth (1 to 5).
// Other arguments make it panic: they are constants of the program.
func New(dim, depth int) *Transform {
	if dim < 1 || dim > MaxDimension || depth < 1 || depth > MaxDepth {
		panic(fmt.Sprintf("signature: dimension %d, depth %d", dim, depth))
	}
	t := &Transform{dim: dim, depth: depth}
	size, n := 1, 0
	for range depth + 1 {
		t.offset = append(t.offset, n)
		n += size
		size *= dim
	}
	t.offset = append(t.offset, n)
	t.sig, t.log, t.power = make([]float64, n), make([]float64, n), make([]float64, n)
	t.a, t.b = make([]float64, n), make([]float64, n)
	t.words = lyndon(dim, depth)
	for _, w := range t.words {
		at := 0
		for _, letter := range w {
			at = at*dim + letter
		}
		t.places = append(t.places, t.offset[len(w)]+at)
	}
	t.Reset()
	return t
}

// Reset goes back to the path that has not moved.
func (t *Transform) Reset() {
	clear(t.sig)
	t.sig[0] = 1
}

// Size returns the length of a log-signature: the number of Lyndon words.
func (t *Transform) Size() int { return len(t.places) }

// Words returns the Lyndon words in the order of LogSignature, by length and then by letter, letters counted from 0. The
// caller owns them.
func (t *Transform) Words() [][]int {
	words := make([][]int, len(t.words))
	for i, w := range t.words {
		words[i] = slices.Clone(w)
	}
	return words
}

// Extend lets the path go on by the straight segment v (dim numbers): S ← S ⊗ exp(v). Each level is computed by Horner's
// rule, so that no power of v is formed (Kidger and Lyons, ICLR 2021):
//
//	Sₙ + (…((v/n + S₁) ⊗ v/(n−1) + S₂) ⊗ … + Sₙ₋₁) ⊗ v.
func (t *Transform) Extend(v []float64) {
	if t.dim == 2 && (t.depth == 3 || t.depth == 4) { // time and value: the common case
		extendPlane(t.sig, t.depth, v[0], v[1])
		return
	}
	t.extend(v)
}

// split takes a Horner step at one word: what it hands to its two continuations.
func split(s0, s1, c, x, y float64) (a, b float64) { return s0 + float64(c*x), s1 + float64(c*y) }

// extendPlane is extend for two dimensions and depth 3 or 4, word by word: the same operations, so the same bits.
func extendPlane(s []float64, depth int, x, y float64) {
	// A division by a power of two is compiled as a product, which must not be fused with the sum it goes into.
	x2, y2, x3, y3 := float64(x/2), float64(y/2), float64(x/3), float64(y/3)
	if depth == 4 {
		s = s[:31]
		a0, a1 := s[1]+float64(x/4), s[2]+float64(y/4)
		b0, b1 := split(s[3], s[4], a0, x3, y3)
		b2, b3 := split(s[5], s[6], a1, x3, y3)
		c0, c1 := split(s[7], s[8], b0, x2, y2)
		c2, c3 := split(s[9], s[10], b1, x2, y2)
		c4, c5 := split(s[11], s[12], b2, x2, y2)
		c6, c7 := split(s[13], s[14], b3, x2, y2)
		s[15], s[16] = split(s[15], s[16], c0, x, y)
		s[17], s[18] = split(s[17], s[18], c1, x, y)
		s[19], s[20] = split(s[19], s[20], c2, x, y)
		s[21], s[22] = split(s[21], s[22], c3, x, y)
		s[23], s[24] = split(s[23], s[24], c4, x, y)
		s[25], s[26] = split(s[25], s[26], c5, x, y)
		s[27], s[28] = split(s[27], s[28], c6, x, y)
		s[29], s[30] = split(s[29], s[30], c7, x, y)
	}
	s = s[:15]
	a0, a1 := s[1]+x3, s[2]+y3
	b0, b1 := split(s[3], s[4], a0, x2, y2)
	b2, b3 := split(s[5], s[6], a1, x2, y2)
	s[7], s[8] = split(s[7], s[8], b0, x, y)
	s[9], s[10] = split(s[9], s[10], b1, x, y)
	s[11], s[12] = split(s[11], s[12], b2, x, y)
	s[13], s[14] = split(s[13], s[14], b3, x, y)
	a0, a1 = s[1]+x2, s[2]+y2
	s[3], s[4] = split(s[3], s[4], a0, x, y)
	s[5], s[6] = split(s[5], s[6], a1, x, y)
	s[1] += x
	s[2] += y
}

// extend is Extend for any dimension and depth.
func (t *Transform) extend(v []float64) {
	d := t.dim
	v = v[:d]
	for k := range t.depth {
		for j, x := range v {
			t.parts[k*MaxDimension+j] = x / float64(k+1)
		}
	}
	for n := t.depth; n >= 1; n-- {
		cur, next := t.a, t.b
		copy(cur, t.parts[(n-1)*MaxDimension:][:d])
		size := d
		for k := 1; k < n; k++ {
			level := t.sig[t.offset[k]:t.offset[k+1]]
			part := t.parts[(n-k-1)*MaxDimension:][:d]
			from := cur[:len(level)]
			for i, s := range level {
				x := s + from[i]
				for j, p := range part {
					next[i*d+j] = float64(x * p)
				}
			}
			size *= d
			cur, next = next, cur
		}
		level := t.sig[t.offset[n]:t.offset[n+1]]
		for i, x := range cur[:size] {
			level[i] += x
		}
	}
}

// Signature writes the tensor to dst: for each level from 1 on the coefficients of all its words in lexicographic order.
// It returns how many.
func (t *Transform) Signature(dst []float64) int { return copy(dst, t.sig[1:]) }

// LogSignature writes the coefficients of the log-signature at the Lyndon words to dst, which holds Size numbers:
// log S = x·(1 − x·(½ − x·(⅓ − …))) with x = S − 1, whose products beyond the depth vanish.
func (t *Transform) LogSignature(dst []float64) {
	if t.dim == 2 && t.depth == 4 {
		logPlane(dst, t.sig)
		return
	}
	t.logSignature(dst)
}

// logPlane is logSignature for two dimensions and depth 4, word by word: the same operations, so the same bits. All Lyndon
// words but 1 end in 2, so the letter y = S(2) is behind every cut.
func logPlane(dst, s []float64) {
	const third = 1.0 / 3
	dst, s = dst[:8], s[:31]
	x, y := s[1], s[2]
	xx, xy, yy := s[3], s[4], s[6]
	half, b, c := float64(y*0.5), float64(y*third), float64(y*0.25)
	// What the factor (½ − x·(⅓ − x/4)) leaves of the endings 12 and 22, and the factor around it of those and of the
	// endings 112, 122 and 222, both with the sign turned.
	inner12, inner22 := float64(xy*third)-float64(x*c), float64(yy*third)-float64(y*c)
	outer12, outer22 := float64(xy*0.5)-float64(x*b), float64(yy*0.5)-float64(y*b)
	outer112 := float64(s[8]*0.5) - (float64(x*inner12) + float64(xx*b))
	outer122 := float64(s[10]*0.5) - (float64(x*inner22) + float64(xy*b))
	outer222 := float64(s[14]*0.5) - (float64(y*inner22) + float64(yy*b))
	dst[0], dst[1] = x, y
	dst[2] = xy - float64(x*half)
	dst[3] = s[8] - (float64(x*outer12) + float64(xx*half))
	dst[4] = s[10] - (float64(x*outer22) + float64(xy*half))
	dst[5] = s[16] - (float64(x*outer112) + float64(xx*outer12) + float64(s[7]*half))
	dst[6] = s[18] - (float64(x*outer122) + float64(xx*outer22) + float64(s[8]*half))
	dst[7] = s[22] - (float64(x*outer222) + float64(xy*outer22) + float64(s[10]*half))
}

// logSignature is LogSignature for any dimension and depth.
func (t *Transform) logSignature(dst []float64) {
	clear(t.log)
	t.log[0] = 1 / float64(t.depth)
	for n := t.depth - 1; n >= 1; n-- {
		t.times(t.depth - n)
		for i, x := range t.power {
			t.log[i] = -x
		}
		t.log[0] = 1 / float64(n)
	}
	t.times(t.depth)
	for i, at := range t.places {
		dst[i] = t.power[at]
	}
}

// times sets power = (S − 1) ⊗ log up to level top. Level 0 of S − 1 is zero.
func (t *Transform) times(top int) {
	clear(t.power)
	for p := 1; p <= top; p++ {
		left := t.sig[t.offset[p]:t.offset[p+1]]
		for q := 0; p+q <= top; q++ {
			right := t.log[t.offset[q]:t.offset[q+1]]
			out := t.power[t.offset[p+q]:t.offset[p+q+1]]
			for i, x := range left {
				row := out[i*len(right) : (i+1)*len(right)]
				for j, y := range right {
					row[j] += float64(x * y)
				}
			}
		}
	}
}

// lyndon returns the Lyndon words of up to the given length over letters 0…dim−1 (Duval, Theor. Comput. Sci. 60, 1988),
// the shorter first.
func lyndon(dim, depth int) [][]int {
	var words [][]int
	w := []int{-1}
	for len(w) > 0 {
		w[len(w)-1]++
		words = append(words, slices.Clone(w))
		for m := len(w); len(w) < depth; {
			w = append(w, w[len(w)-m])
		}
		for len(w) > 0 && w[len(w)-1] == dim-1 {
			w = w[:len(w)-1]
		}
	}
	slices.SortStableFunc(words, func(a, b []int) int { return len(a) - len(b) })
	return words
}
