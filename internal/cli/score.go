package cli

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"

	"github.com/usp-project/usp/internal/score"
)

// scores compares the stored one-step forecasts with what came, beside the naive forecast (the last value). It is part
// of the saved state, so that a resumed run reports on the whole series.
type scores struct {
	N        uint64  // observations that had a forecast
	Sq       float64 // sum of squared errors
	Abs      float64 // sum of absolute errors
	NaiveSq  float64 // the same of the naive forecast, on the same observations
	NaiveAbs float64
	Covered  uint64  // observations inside their interval
	Last     float64 // last observation
	Seen     bool
}

func (s *scores) add(value, prior, lower, upper float64, hasPrior bool) {
	if hasPrior && s.Seen {
		e, naive := value-prior, value-s.Last
		s.N++
		s.Sq += e * e
		s.Abs += math.Abs(e)
		s.NaiveSq += naive * naive
		s.NaiveAbs += math.Abs(naive)
		if value >= lower && value <= upper {
			s.Covered++
		}
	}
	s.Last, s.Seen = value, true
}

func (s *scores) mean(sum float64) float64 {
	if s.N == 0 {
		return 0
	}
	return sum / float64(s.N)
}

func (s *scores) rmse() float64      { return finite(math.Sqrt(s.mean(s.Sq))) }
func (s *scores) rmseNaive() float64 { return finite(math.Sqrt(s.mean(s.NaiveSq))) }
func (s *scores) mae() float64       { return finite(s.mean(s.Abs)) }

// finite keeps a number that overflowed printable: JSON has no infinity.
func finite(x float64) float64 {
	if math.IsNaN(x) || math.IsInf(x, 0) {
		return math.MaxFloat64
	}
	return x
}

// mase is the mean absolute error as a share of the naive forecast's; NaN where that makes no error.
func (s *scores) mase() float64 { return s.Abs / s.NaiveAbs }

// skill is 1 − RMSE/RMSE of the naive forecast: above 0 is better than naive.
// It is not finite where the naive forecast makes no error.
func (s *scores) skill() float64 { return 1 - s.rmse()/s.rmseNaive() }

func (s *scores) coverage() float64 {
	if s.N == 0 {
		return 0
	}
	return float64(s.Covered) / float64(s.N)
}

// state returns the scores as the section of a snapshot: the fields in order, little-endian.
func (s *scores) state() []byte {
	var b bytes.Buffer
	_ = binary.Write(&b, binary.LittleEndian, s) // a buffer takes everything, and all fields have a fixed size
	return b.Bytes()
}

// restoreScores takes the section of a snapshot.
func (s *session) restoreScores(b []byte) (err error) {
	s.scores, s.board, err = decodeScores(b, len(s.predictor.Experts()))
	return err
}

// decodeScores reads the section: the scores of the forecasts, then those of so many experts.
func decodeScores(b []byte, experts int) (all scores, board *score.Board, err error) {
	n := min(len(b), binary.Size(&all))
	if err := all.restore(b[:n]); err != nil {
		return all, nil, err
	}
	if len(b)/8 < experts*experts { // before as much memory is taken for them
		return all, nil, fmt.Errorf("section scores has %d bytes, too few for %d experts", len(b), experts)
	}
	board = score.New(experts)
	return all, board, board.UnmarshalBinary(b[n:])
}

func (s *scores) restore(b []byte) error {
	if len(b) != binary.Size(s) {
		return fmt.Errorf("section scores has %d bytes, want %d", len(b), binary.Size(s))
	}
	return binary.Read(bytes.NewReader(b), binary.LittleEndian, s)
}
