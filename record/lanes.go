package record

import "encoding/binary"

// lanes is a word of each of eight messages.
type lanes [maxGrids]uint64

// sips are eight sip on their way through messages of the same length.
type sips struct{ v0, v1, v2, v3 lanes }

// laned does for eight messages at once what sip does for one, where the processor can.
type laned struct {
	absorb func(s *sips, words *lanes)
	sum    func(s *sips, words *lanes, end uint64, sums *lanes)    // absorbs too; end is the length, as the last word of a message has it
	digits func(words, shifted *lanes, elements int, width uint64) // of at most digits elements, which lie one behind the other
}

// leastLaned is how many grids take longer one by one.
const leastLaned = 3

// climbAll makes what climb makes of each grid, of all at once.
func (m *ladderMaker) climbAll(dst []byte, special bool) {
	h, word, sums := &m.h, &m.word, &m.sums
	*h, *word = m.starts, lanes{}
	for grid := range m.grids {
		word[grid] = uint64(grid) | uint64(len(m.places))<<32
	}
	for i, p := range m.places {
		m.laned.absorb(h, word)
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
			m.laned.sum(h, word, uint64(length)<<56, sums)
			out := dst[next*m.grids*shortSum:][:m.grids*shortSum]
			for grid := range m.grids {
				binary.LittleEndian.PutUint32(out[grid*shortSum:], uint32(sums[grid]))
			}
			if next++; next == len(m.levels) {
				return
			}
		} else {
			m.laned.absorb(h, word)
		}
		width := uint64(mantissa - level - LevelStep)
		for at := 0; ; at += digits {
			n := min(digits, len(m.all)-at)
			m.laned.digits(word, &m.all[at], n, width)
			if at+n == len(m.all) {
				break
			}
			m.laned.absorb(h, word)
		}
		length += 8 * ((len(m.places) + digits - 1) / digits)
	}
}
