package predictor

const (
	staleRate     = 0.05 // of the sampling period
	staleLeast    = 8    // gaps before the period is known
	staleRecovery = 0.8  // of the limit, below which an input is fresh again
)

// staleness says when the input runs late, by the clocks of the observations alone: so a replay comes to the same. Time counts
// in sampling periods, the mean gap between observations, each taken at no more than the limit. Weekends and holidays are
// within the limit of ten, and a rate that changes for good is followed within a few observations.
type staleness struct {
	period float64 // ns
	gaps   uint64  // seen
	stale  bool
	after  float64 // Config.StaleAfter
}

// observe takes in how long after the one before an observation was made, and how long after that it arrived, in ns.
func (s *staleness) observe(gap, age float64) {
	if s.gaps >= staleLeast {
		late := max(gap, age) / s.period
		if s.stale {
			s.stale = late >= float64(staleRecovery*s.after)
		} else {
			s.stale = late > s.after
		}
		gap = min(gap, float64(s.after*s.period))
	}
	s.gaps++
	s.period += float64(max(staleRate, 1/float64(s.gaps)) * (gap - s.period))
}

func (s *staleness) visit(c *codec) {
	c.float(&s.period)
	c.uint(&s.gaps)
	c.bool(&s.stale)
}
