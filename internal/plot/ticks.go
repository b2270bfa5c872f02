package plot

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// tick is a round number on an axis.
type tick struct {
	at   float64
	step uint64
	text string
}

// stepTicks returns at most n+1 round steps within a range.
func stepTicks(from, to uint64, n int) []tick {
	n = max(n, 1)
	by := uint64(1)
	for i := 0; (to-from)/by > uint64(n); i++ {
		next := by * 2
		if i%3 == 1 {
			next = by / 2 * 5
		}
		if next < by { // beyond 64 bits
			break
		}
		by = next
	}
	unit, suffix := uint64(1), ""
	for _, s := range []string{"k", "M", "G", "T", "P", "E"} {
		if by%(unit*1000) == 0 {
			unit, suffix = unit*1000, s
		}
	}
	var list []tick
	for at := (from + by - 1) / by * by; at >= from && at <= to; at += by {
		text := strconv.FormatUint(at/unit, 10) + suffix
		if at == 0 {
			text = "0"
		}
		list = append(list, tick{step: at, text: text})
		if at+by < at {
			break
		}
	}
	return list
}

// valueTicks returns about n round numbers within a range, each exact in decimal.
func valueTicks(lo, hi float64, n int) []tick {
	n = max(n, 1)
	_, exponent, _ := strings.Cut(strconv.FormatFloat((hi-lo)/float64(n), 'e', 0, 64), "e") // exact, unlike a logarithm
	e, _ := strconv.Atoi(exponent)
	for e--; e <= 308; e++ {
		for _, m := range []int64{1, 2, 5} {
			by := decimal(m, e)
			if by == 0 || (hi-lo)/by > float64(n) {
				continue
			}
			var list []tick
			for k := int64(math.Floor(lo / by)); len(list) <= n+1; k++ {
				v := decimal(k*m, e)
				if v < lo {
					continue
				}
				if v > hi {
					break
				}
				text := strconv.FormatFloat(v, 'f', -1, 64)
				if abs := math.Abs(v); v != 0 && (abs < 1e-4 || abs >= 1e7) {
					text = strconv.FormatFloat(v, 'g', -1, 64)
				}
				list = append(list, tick{at: v, text: text})
			}
			return list
		}
	}
	return nil
}

// decimal is m·10ᵉ, rounded once.
func decimal(m int64, e int) float64 {
	v, _ := strconv.ParseFloat(fmt.Sprintf("%de%d", m, e), 64)
	return v
}
