package record

import (
	"encoding/binary"

	"github.com/usp-project/usp/internal/siplanes"
)

// leastLaned is how many grids take longer one by one.
const leastLaned = 3

// climbAll makes what climb makes of each grid, of all at once.
func (m *ladderMaker) climbAll(dst []byte, special bool) {
	h, word, sums := &m.h, &m.word, &m.sums
	*h, *word = m.starts, siplanes.Words{}
	for grid := range m.grids {
		word[grid] = uint64(grid) | uint64(len(m.places))<<32
	}
	for i, p := range m.places {
		m.laned.Absorb(h, word)
		none := special && (p == placeNaN || p == placeInf || p == placeMinus)
		for grid, shift := range m.shifts {
			x := p + shift
			cell := x >> (mantissa - MinLevel)
			if none {
				x, cell = 0, p
			}
			m.all[i][grid], word[grid] = uint64(x), uint64(cell)
		}
	}
	length := 8 + 8*len(m.places)
	for level, next := MinLevel, 0; ; level += LevelStep {
		if m.levels[next] == level {
			m.laned.Sum(h, word, uint64(length)<<56, sums)
			out := dst[next*m.grids*shortSum:][:m.grids*shortSum]
			for grid := range m.grids {
				binary.LittleEndian.PutUint32(out[grid*shortSum:], uint32(sums[grid]))
			}
			if next++; next == len(m.levels) {
				return
			}
		} else {
			m.laned.Absorb(h, word)
		}
		width := uint64(mantissa - level - LevelStep)
		for at := 0; ; at += digits {
			n := min(digits, len(m.all)-at)
			m.laned.Digits(word, &m.all[at], n, width)
			if at+n == len(m.all) {
				break
			}
			m.laned.Absorb(h, word)
		}
		length += 8 * ((len(m.places) + digits - 1) / digits)
	}
}
