package record

import "golang.org/x/sys/cpu"

//go:noescape
func absorbAVX2(s *sips, words *lanes)

//go:noescape
func sumAVX2(s *sips, words *lanes, end uint64, sums *lanes)

//go:noescape
func absorbAVX512(s *sips, words *lanes)

//go:noescape
func sumAVX512(s *sips, words *lanes, end uint64, sums *lanes)

//go:noescape
func digitsAVX2(words, shifted *lanes, elements int, width uint64)

//go:noescape
func digitsAVX512(words, shifted *lanes, elements int, width uint64)

// lanedWays are those that this processor has, the best one last.
func lanedWays() (ways []laned) {
	if cpu.X86.HasAVX2 {
		ways = append(ways, laned{absorbAVX2, sumAVX2, digitsAVX2})
	}
	if cpu.X86.HasAVX512F {
		ways = append(ways, laned{absorbAVX512, sumAVX512, digitsAVX512})
	}
	return ways
}
