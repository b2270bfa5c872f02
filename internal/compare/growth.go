package compare

import "math/bits"

// Exact is what counts for bits of agreement where the digests are the same: all 53 bits of a float64.
const Exact = 53

// Bucket is the agreement in a row of steps.
type Bucket struct {
	From    uint64 `json:"from"`
	To      uint64 `json:"to"` // the last step that is in it
	Steps   uint64 `json:"steps"`
	Differ  uint64 `json:"differ"`            // with another digest
	Unknown uint64 `json:"unknown,omitempty"` // of those that differ: nothing says by how much
	Min     int    `json:"min_bits"`          // over the steps that are not unknown; Exact where the digests are the same
	Max     int    `json:"max_bits"`          // -1: all are unknown
}

// maxBuckets is how many a growth has at most; two of them become one when there would be more.
const maxBuckets = 256

// growth is how the agreement of a field changes over the steps, in a number of buckets that does not grow with the run. All buckets
// span the same number of steps, a power of two.
type growth struct {
	buckets []Bucket // from the first step on; some are empty
	first   uint64
	width   uint64
}

// at returns the bucket of a step, which is not before the first.
func (g *growth) at(step uint64) *Bucket {
	if g.width == 0 {
		g.first, g.width = step, 1
	}
	for (step-g.first)/g.width >= maxBuckets {
		g.halve()
	}
	n := int((step - g.first) / g.width)
	for len(g.buckets) <= n {
		g.buckets = append(g.buckets, Bucket{Min: Exact, Max: -1})
	}
	b := &g.buckets[n]
	if b.Steps == 0 {
		b.From = step
	}
	b.To = step
	return b
}

// halve joins neighbours.
func (g *growth) halve() {
	g.width *= 2
	for i := range g.buckets {
		if i%2 == 0 {
			g.buckets[i/2] = g.buckets[i]
			continue
		}
		g.buckets[i/2] = joined(g.buckets[i/2], g.buckets[i])
	}
	g.buckets = g.buckets[:(len(g.buckets)+1)/2]
}

func joined(a, b Bucket) Bucket {
	switch {
	case a.Steps == 0:
		return b
	case b.Steps == 0:
		return a
	}
	return Bucket{a.From, b.To, a.Steps + b.Steps, a.Differ + b.Differ, a.Unknown + b.Unknown, min(a.Min, b.Min), max(a.Max, b.Max)}
}

// add takes in one step; agree is negative if nothing says how far the field agrees.
func (g *growth) add(step uint64, agree int) {
	b := g.at(step)
	b.Steps++
	if agree < Exact {
		b.Differ++
	}
	if agree < 0 {
		b.Unknown++
		return
	}
	b.Min, b.Max = min(b.Min, agree), max(b.Max, agree)
}

// equal takes in count ≥ 1 steps with the same digests, taken as lying evenly from first to last.
func (g *growth) equal(first, last, count uint64) {
	g.at(first)
	g.at(last) // makes them as wide as they must be
	for step, left := first, count; left > 0; {
		end := last // of this bucket, or of the steps
		if rest := g.width - 1 - (step-g.first)%g.width; last-step > rest {
			end = step + rest
		}
		n := left
		if end < last {
			n = min(left, share(count, end-step+1, last-first+1))
		}
		b := g.at(step)
		b.To, b.Steps, b.Max = end, b.Steps+n, Exact
		left -= n
		if step = end + 1; end == last {
			return
		}
	}
}

// share is count × part / whole, rounded down.
func share(count, part, whole uint64) uint64 {
	if whole == 0 { // all 2^64 steps
		return 0
	}
	hi, lo := bits.Mul64(count, part)
	q, _ := bits.Div64(hi, lo, whole)
	return q
}

// list returns the buckets that have steps.
func (g *growth) list() []Bucket {
	var out []Bucket
	for _, b := range g.buckets {
		if b.Steps > 0 {
			out = append(out, b)
		}
	}
	return out
}
