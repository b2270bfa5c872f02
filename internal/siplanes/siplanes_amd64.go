package siplanes

import "golang.org/x/sys/cpu"

//go:noescape
func absorbAVX2(s *State, words *Words)

//go:noescape
func sumAVX2(s *State, words *Words, end uint64, sums *Words)

//go:noescape
func absorbAVX512(s *State, words *Words)

//go:noescape
func sumAVX512(s *State, words *Words, end uint64, sums *Words)

//go:noescape
func digitsAVX2(words, shifted *Words, elements int, width uint64)

//go:noescape
func digitsAVX512(words, shifted *Words, elements int, width uint64)

// Ways returns those that this processor has, the best one last.
func Ways() (ways []Way) {
	if cpu.X86.HasAVX2 {
		ways = append(ways, Way{absorbAVX2, sumAVX2, digitsAVX2})
	}
	if cpu.X86.HasAVX512F {
		ways = append(ways, Way{absorbAVX512, sumAVX512, digitsAVX512})
	}
	return ways
}
