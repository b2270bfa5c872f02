package record

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"math"

	"github.com/dchest/siphash"
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
	MaxLevel     = 50    // bits; a float64 has 52 behind the point, and finer cells could not be staggered
	MinFloor     = -1022 // exponent of the smallest normal float64
	MaxFloor     = 0
	DefaultFloor = -960
	MaxLadderLen = 1024 // elements of a field with a ladder; a longer one has exact digests only
)

// DefaultLevels are every fourth bit from 6 to 50.
func DefaultLevels() []int { return []int{6, 10, 14, 18, 22, 26, 30, 34, 38, 42, 46, 50} }

const (
	maxGrids   = 8
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
	default:
		at = int64(math.Ldexp(math.Float64frombits(size), mantissa-p.floor))
	}
	if size != word {
		at = -at
	}
	return at
}

// cell is the number of the cell that a place is in, at a level of the grid that is shifted by so much.
func cell(place int64, level int, shifted int64) int64 {
	if place == placeNaN || place == placeInf || place == placeMinus {
		return place
	}
	return (place + shifted) >> (mantissa - level)
}

// ladderMaker makes the ladder of one field.
type ladderMaker struct {
	levels  []int
	grids   int
	parts   int
	key     AuditKey
	placer  placer
	places  []int64
	message []byte // level, grid, length, then a cell for each element
}

func newLadderMaker(levels []int, floor int, key AuditKey, elements int) *ladderMaker {
	grids, parts := gridsOf(elements)
	return &ladderMaker{levels: levels, grids: grids, parts: parts, key: key, placer: newPlacer(floor), places: make([]int64, elements), message: make([]byte, 8+8*elements)}
}

// append appends the short digests of the words: level by level, coarse to fine, and for each grid.
func (m *ladderMaker) append(dst []byte, words []uint64) []byte {
	special := false
	for i, w := range words {
		at := m.placer.place(w)
		m.places[i] = at
		special = special || at == placeNaN || at == placeInf || at == placeMinus
	}
	le := binary.LittleEndian
	le.PutUint32(m.message[4:], uint32(len(words)))
	for _, level := range m.levels {
		for grid := range m.grids {
			le.PutUint32(m.message, uint32(level)|uint32(grid)<<8)
			shifted, width := stagger(grid, m.parts), mantissa-level
			if special {
				for i, at := range m.places {
					le.PutUint64(m.message[8+8*i:], uint64(cell(at, level, shifted)))
				}
			} else {
				for i, at := range m.places {
					le.PutUint64(m.message[8+8*i:], uint64((at+shifted)>>width))
				}
			}
			dst = le.AppendUint32(dst, uint32(siphash.Hash(m.key.k0, m.key.k1, m.message)))
		}
	}
	return dst
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
