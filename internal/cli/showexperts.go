package cli

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/score"
	"github.com/usp-project/usp/record"
	"github.com/usp-project/usp/recorder"
)

// leaderboard is what each expert would have achieved alone, and what the forecasts of all did. The scores are sums over
// the whole run, which usp run saves with its state.
type leaderboard struct {
	Step      uint64    `json:"step"`     // the last one that counts
	Snapshot  string    `json:"snapshot"` // file that the scores are from
	Scored    uint64    `json:"scored"`   // observations that had forecasts
	RMSE      float64   `json:"rmse"`     // of the mixture, in the unit of the value, like all errors here
	MAE       float64   `json:"mae"`
	RMSENaive float64   `json:"rmse_naive"`
	ToNaive   undefined `json:"rmse_to_naive"` // RMSE as a share of that of the naive forecast; null if that makes no error
	Experts   []ranked  `json:"experts"`       // smallest RMSE first
}

// ranked is one expert's place.
type ranked struct {
	Rank       int       `json:"rank"`
	Name       string    `json:"name"`
	Family     string    `json:"family"`
	RMSE       float64   `json:"rmse"`
	MAE        float64   `json:"mae"`
	ToNaive    undefined `json:"rmse_to_naive"`
	LastWeight *float64  `json:"weight_last,omitempty"` // only where weights were recorded
	MeanWeight *float64  `json:"weight_mean,omitempty"`
}

// expertNames are the experts of a predictor's run, in the order of their weights: those that the manifest names, else
// numbers.
func expertNames(m *rundir.Manifest, s *record.Schema) []expertMeta {
	n := 0
	if i, ok := s.Index("rho"); ok {
		n = s.Field(i).Len
	}
	if list := producerOf(m).Experts; len(list) == n {
		return list
	}
	list := make([]expertMeta, n)
	for i := range list {
		list[i].Name = fmt.Sprintf("expert %d", i+1)
	}
	return list
}

// newLeaderboard ranks the experts by the sums of their errors.
func newLeaderboard(experts []expertMeta, all *scores, b *score.Board) *leaderboard {
	naive := all.rmseNaive()
	l := &leaderboard{Scored: all.N, RMSE: all.rmse(), MAE: all.mae(), RMSENaive: naive, ToNaive: undefined(all.rmse() / naive)}
	for i, e := range experts {
		rmse, mae := b.Errors(i)
		l.Experts = append(l.Experts, ranked{Name: e.Name, Family: e.Family, RMSE: finite(rmse), MAE: finite(mae), ToNaive: undefined(rmse / naive)})
	}
	slices.SortStableFunc(l.Experts, func(a, b ranked) int { return cmp.Compare(a.RMSE, b.RMSE) })
	for i := range l.Experts {
		l.Experts[i].Rank = i + 1
	}
	return l
}

// weigh says which weight the experts had.
func (l *leaderboard) weigh(w *weightSummary) {
	if l == nil || w.Steps == 0 {
		return
	}
	for i := range l.Experts {
		e := &l.Experts[i]
		if at := slices.IndexFunc(w.Experts, func(x weighed) bool { return x.Name == e.Name && x.Family == e.Family }); at >= 0 {
			e.LastWeight, e.MeanWeight = &w.Experts[at].Last, &w.Experts[at].Mean
		}
	}
}

// showExperts adds the leaderboard, or why there is none and what to do. It costs the loading of one snapshot.
func (a *app) showExperts(s *showing, dir rundir.Dir) error {
	if producerOf(s.line.Manifests[0]).Program != usprun {
		return nil // other programs keep their scores, if they have any, where they like
	}
	var rejected []error
	reject := func(err error) { rejected = append(rejected, err) }
	found, err := recorder.NewestSnapshot(a.fs, dir.Path(), reject)
	if keyMissing(err) && a.cfg.Snapshot.IdentityFile != "" {
		identities, ierr := a.identities()
		if ierr != nil {
			return ierr
		}
		found, err = recorder.NewestSnapshot(a.fs, dir.Path(), reject, identities...)
	}
	switch {
	case keyMissing(err):
		s.Unscored = "the scores are in the newest snapshot, which is encrypted; name the file with its secret key: " + a.keyAdvice()
		return nil
	case errors.Is(err, recorder.ErrNoSnapshot) && len(rejected) > 0:
		s.Unscored = fmt.Sprintf("the scores are in the snapshots, and none can be loaded: %v; usp snapshot verify %s tells of each", rejected[0], pathArg(dir.Path()))
		return nil
	case errors.Is(err, recorder.ErrNoSnapshot):
		s.Unscored = "scores are saved with the first snapshot, and the run has none"
		return nil
	case err != nil:
		return err
	}
	all, board, err := decodeScores(sectionMap(found.Sections)[sectionScores], len(s.experts))
	if err != nil {
		s.Unscored = fmt.Sprintf("the scores in snapshot %s cannot be read, %v; the version of usp that recorded the run can, or run it again", found.Name, err)
		return nil
	}
	s.Leaderboard = newLeaderboard(s.experts, &all, board)
	s.Leaderboard.Step, s.Leaderboard.Snapshot = found.Meta.Step, found.Name
	return nil
}

func (l *leaderboard) print(w io.Writer, last uint64) {
	fmt.Fprintf(w, "\nexperts, the best alone first: %s, up to step %d", count(l.Scored, "forecast"), l.Step)
	if l.Step < last {
		fmt.Fprintf(w, ", where the newest snapshot is")
	}
	fmt.Fprintln(w)
	if l.Scored == 0 {
		fmt.Fprintln(w, "  not scored: there was no forecast to hold against an observation")
		return
	}
	wide, weights := len(mixture), false
	for _, e := range l.Experts {
		wide, weights = max(wide, len(e.Name)), weights || e.MeanWeight != nil
	}
	fmt.Fprintf(w, "      %-*s  family        RMSE  to naive         MAE", wide, "expert")
	if weights {
		fmt.Fprintf(w, "  mean w  last w")
	}
	fmt.Fprintln(w)
	row := func(rank, name, family string, rmse, mae float64, toNaive undefined) {
		fmt.Fprintf(w, "  %2s  %-*s  %-6s  %10.6g  %8s  %10.6g", rank, wide, name, family, rmse, ratioText(toNaive), mae)
	}
	mixed := false
	for _, e := range l.Experts {
		if !mixed && l.RMSE <= e.RMSE {
			row("", mixture, "", l.RMSE, l.MAE, l.ToNaive)
			fmt.Fprintln(w)
			mixed = true
		}
		row(fmt.Sprint(e.Rank), e.Name, e.Family, e.RMSE, e.MAE, e.ToNaive)
		if e.MeanWeight != nil {
			fmt.Fprintf(w, "  %6.4f  %6.4f", *e.MeanWeight, *e.LastWeight)
		}
		fmt.Fprintln(w)
	}
	if !mixed {
		row("", mixture, "", l.RMSE, l.MAE, l.ToNaive)
		fmt.Fprintln(w)
	}
}

// mixture is the row of the forecasts themselves among those of the experts.
const mixture = "all, weighted"

func ratioText(x undefined) string {
	if f := float64(x); f-f == 0 {
		return fmt.Sprintf("%.4f", f)
	}
	return "-"
}
