// Package siplanes is SipHash-2-4 on its way through eight messages of the same length at once, for processors that can. It has no
// floating point, so its results are the same everywhere; where a processor cannot, there are no [Ways], and who uses it has one of
// its own.
package siplanes

// N is the number of messages.
const N = 8

// Words is a word of each message.
type Words [N]uint64

// State is how far the hashes are, v0 to v3 of the algorithm (Aumasson and Bernstein, 2012) for each message.
type State struct{ V0, V1, V2, V3 Words }

// A Way of computing.
type Way struct {
	// Absorb takes in the next word of each message.
	Absorb func(s *State, words *Words)
	// Sum takes in the next words, and makes the hashes of what are messages then; end is the word that the algorithm ends one with,
	// its length modulo 256 in bytes in the highest byte.
	Sum func(s *State, words *Words, end uint64, sums *Words)
	// Digits makes words of the four bits that each of 1 to 16 elements has at width, the first one's lowest. The elements lie one behind
	// the other from shifted on, each with its eight variants.
	Digits func(words, shifted *Words, elements int, width uint64)
}
