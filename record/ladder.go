package record

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"math"

	"github.com/usp-project/usp/internal/siplanes"
)

// The precision ladder is a list of short digests of a vector, rounded to fewer and fewer bits. Two programs whose vectors are not the
// same to the bit can still be held against each other from digests alone: they agree to at least b bits if a digest at level b is the
// same. doc/format/digestlog.md specifies it; the bounds proved there are
//
//   - a digest at level b is the same only if every element agrees to more than b bits (but for the chance of 2^-32 that two short
//     digests collide),
//   - for up to seven numbers that agree to t ≥ 3 bits, a digest is the same at every level up to t - 1.2 - log2(parts+1): t - 3.2 for
//     one number, t - 3.8 for four; for more numbers that is so in all likelihood.
//
// How far x and y agree: -log2(|x-y| / max(|x|, |y|, 2^floor)) bits, and a vector as far as its worst element. The floor is where
// numbers begin to count as zero, so that a machine that flushes subnormals does not part from one that keeps them.

// Limits of a ladder.
const (
	MinLevel     = 2     // bits; levels are MinLevel and every LevelStep more
	MaxLevel     = 50    // a float64 has 52 behind the point, and finer cells could not be staggered
	LevelStep    = 4     // bits
	MinFloor     = -1022 // exponent of the smallest normal float64
	MaxFloor     = 0
	DefaultFloor = -960
	MaxLadderLen = 1024 // elements of a field with a ladder; a longer one has exact digests only
)

// DefaultLevels are all but the lowest.
func DefaultLevels() []int {
	var levels []int
	for l := MinLevel + LevelStep; l <= MaxLevel; l += LevelStep {
		levels = append(levels, l)
	}
	return levels
}

const (
	maxGrids   = siplanes.N
	shortSum   = 4 // bytes of a short digest
	mantissa   = 52
	placeNaN   = math.MinInt64
	placeInf   = math.MaxInt64
	placeMinus = -math.MaxInt64 // minus infinity
)

// gridsOf says how many grids of cells a vector is rounded on, and into how many parts their boundaries divide a cell. No number is near
// the boundaries of two grids, so each can spoil one of them; with one grid more than numbers one is left. An odd number of parts makes the
// grids staggered evenly at every level at once.
func gridsOf(elements int) (grids, parts int) {
	grids = min(max(elements, 1)+1, maxGrids)
	return grids, grids | 1
}

// stagger is by how many places a grid is shifted.
func stagger(grid, parts int) int64 { return int64(grid) * (1 << mantissa) / int64(parts) }

// AuditKey is what the short digests are keyed with. Digests of few bits can be found out by trying; with a secret key only by its
// holders. Two runs can be compared only if both used the same.
type AuditKey struct {
	k0, k1 uint64
	ID     [8]byte // tells keys apart without telling them; zero for the public key
}

const keyContext = "usp ladder v1"

// PublicAuditKey is the key that everybody knows.
func PublicAuditKey() AuditKey {
	sum := sha256.Sum256([]byte(keyContext))
	return AuditKey{k0: binary.LittleEndian.Uint64(sum[:]), k1: binary.LittleEndian.Uint64(sum[8:])}
}

// NewAuditKey derives a key from a secret, by HMAC-SHA256.
func NewAuditKey(secret []byte) AuditKey {
	derive := func(context string) []byte {
		m := hmac.New(sha256.New, secret)
		m.Write([]byte(context))
		return m.Sum(nil)
	}
	b, id := derive(keyContext), derive(keyContext+" id")
	return AuditKey{k0: binary.LittleEndian.Uint64(b), k1: binary.LittleEndian.Uint64(b[8:]), ID: [8]byte(id)}
}

// placer maps float64s to int64s, ascending and continuous: from 2^floor on, an octave has 2^52 places, evenly; below it the places go
// on at the distance they have there, through zero to the negative numbers.
type placer struct {
	floor     int    // exponent
	floorBits uint64 // of 2^floor
}

func newPlacer(floor int) placer { return placer{floor, math.Float64bits(math.Ldexp(1, floor))} }

// place returns the place of a word, the bits of a float64.
func (p *placer) place(word uint64) int64 {
	size := word &^ (1 << 63)
	var at int64
	switch {
	case size > 0x7ff<<mantissa:
		return placeNaN
	case size == 0x7ff<<mantissa:
		at = placeInf
	case size >= p.floorBits:
		at = int64(size-p.floorBits) + 1<<mantissa
	default: // rounded down on both sides of zero, so that numbers of one cell are never further apart than it is wide
		return int64(math.Floor(math.Ldexp(math.Float64frombits(word), mantissa-p.floor)))
	}
	if size != word {
		at = -at
	}
	return at
}

// ladderMaker makes the ladder of one field.
type ladderMaker struct {
	levels  []int
	grids   int
	parts   int
	start   sip // with the key
	placer  placer
	places  []int64
	shifted []uint64 // of one grid; 0 for elements that have no place

	// Of all grids at once.
	laned  *siplanes.Way  // nil: grid by grid
	starts siplanes.State // start for each
	shifts []int64
	all    []siplanes.Words // shifted of each
	h      siplanes.State
	word   siplanes.Words
	sums   siplanes.Words
}

func newLadderMaker(levels []int, floor int, key AuditKey, elements int) *ladderMaker {
	grids, parts := gridsOf(elements)
	m := &ladderMaker{
		levels: levels, grids: grids, parts: parts, start: newSip(key.k0, key.k1), placer: newPlacer(floor),
		places: make([]int64, elements), shifted: make([]uint64, elements),
	}
	if ways := siplanes.Ways(); len(ways) > 0 && grids >= leastLaned {
		m.useLanes(ways[len(ways)-1])
	}
	return m
}

// useLanes has all grids be climbed at once.
func (m *ladderMaker) useLanes(way siplanes.Way) {
	m.laned, m.all, m.shifts = &way, make([]siplanes.Words, len(m.places)), make([]int64, m.grids)
	for grid := range m.grids {
		m.shifts[grid] = stagger(grid, m.parts)
	}
	for i := range maxGrids {
		m.starts.V0[i], m.starts.V1[i], m.starts.V2[i], m.starts.V3[i] = m.start.v0, m.start.v1, m.start.v2, m.start.v3
	}
}

// append appends the short digests of the words: level by level, coarse to fine, and for each grid. Those of one grid are hashes of one
// message as far as their levels: the cells of the lowest level, then what each level adds to them. So the way of the hash is gone once.
func (m *ladderMaker) append(dst []byte, words []uint64) []byte {
	if len(m.levels) == 0 || len(words) == 0 {
		return dst
	}
	special := m.place(words)
	at := len(dst)
	dst = append(dst, make([]byte, len(m.levels)*m.grids*shortSum)...)
	if m.laned != nil {
		m.climbAll(dst[at:], special)
		return dst
	}
	for grid := range m.grids {
		m.climb(dst[at+grid*shortSum:], grid, special)
	}
	return dst
}

// place finds the places of the words. special says that some have none.
func (m *ladderMaker) place(words []uint64) (special bool) {
	for i, w := range words {
		p := m.placer.place(w)
		m.places[i] = p
		special = special || p == placeNaN || p == placeInf || p == placeMinus
	}
	return special
}

// climb makes the digests of one grid. Between two of them in dst are those of the other grids.
func (m *ladderMaker) climb(dst []byte, grid int, special bool) {
	shifted := stagger(grid, m.parts)
	h, word := m.start, uint64(grid)|uint64(len(m.places))<<32
	for i, p := range m.places {
		x, cell := p+shifted, (p+shifted)>>(mantissa-MinLevel)
		if special && (p == placeNaN || p == placeInf || p == placeMinus) {
			x, cell = 0, p
		}
		m.shifted[i] = uint64(x)
		h = h.absorb(word)
		word = uint64(cell)
	}
	length := 8 + 8*len(m.places)
	for level, next := MinLevel, 0; ; level += LevelStep {
		if m.levels[next] == level {
			var sum uint64
			h, sum = h.sum(word, length)
			binary.LittleEndian.PutUint32(dst[next*m.grids*shortSum:], uint32(sum))
			if next++; next == len(m.levels) {
				return
			}
		} else {
			h = h.absorb(word)
		}
		h, word = m.refine(h, mantissa-level-LevelStep)
		length += 8 * ((len(m.places) + digits - 1) / digits)
	}
}

// digits is how many elements' additions to their cells are in one word.
const digits = 64 / LevelStep

// refine absorbs what a level, with cells of 2^width places, adds to the cells, LevelStep bits of each element, but for the last word of it.
func (m *ladderMaker) refine(h sip, width int) (next sip, word uint64) {
	if len(m.shifted) <= digits {
		for i, x := range m.shifted {
			word |= x >> (width & 63) & (1<<LevelStep - 1) << (LevelStep * i & 63)
		}
		return h, word
	}
	at := 0
	for _, x := range m.shifted {
		if at == 64 {
			h = h.absorb(word)
			word, at = 0, 0
		}
		word |= x >> (width & 63) & (1<<LevelStep - 1) << (at & 63)
		at += LevelStep
	}
	return h, word
}

// ladderSize is the bytes of a ladder.
func ladderSize(levels, elements int) int {
	grids, _ := gridsOf(elements)
	return levels * grids * shortSum
}

// agreement returns the highest level at which a digest of one grid is the same in both ladders of so many elements, 0 if there is none. The
// ladders may have other levels; levels that only one has say nothing.
func agreement(elements int, levelsA []int, a []byte, levelsB []int, b []byte) int {
	rung := ladderSize(1, elements)
	for i, j := len(levelsA)-1, len(levelsB)-1; i >= 0 && j >= 0; {
		switch {
		case levelsA[i] > levelsB[j]:
			i--
		case levelsA[i] < levelsB[j]:
			j--
		default:
			ra, rb := a[rung*i:][:rung], b[rung*j:][:rung]
			for at := 0; at < rung; at += shortSum {
				if [shortSum]byte(ra[at:]) == [shortSum]byte(rb[at:]) {
					return levelsA[i]
				}
			}
			i, j = i-1, j-1
		}
	}
	return 0
}
