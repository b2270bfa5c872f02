package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/usp-project/usp/internal/examples"
	"github.com/usp-project/usp/internal/score"
	"github.com/usp-project/usp/predictor"
)

// backtestRow is how the forecasts of one series did. The RMSE of all but naive are shares of the naive forecast's, null
// where that makes no error.
type backtestRow struct {
	Series     string    `json:"series"`
	N          uint64    `json:"n"`
	NaiveRMSE  float64   `json:"rmse_naive"`
	Ours       undefined `json:"relative"`
	BestExpert string    `json:"best_expert"`
	Best       undefined `json:"best_expert_relative"`
	Convex     undefined `json:"best_convex_relative"`
	Uniform    undefined `json:"uniform_relative"`
	BOA        undefined `json:"boa_relative"`
	MLPoly     undefined `json:"ml_poly_relative"`
	MASE       undefined `json:"mase"`
	CRPS       undefined `json:"crps"` // in the unit of the value; null in a series shorter than the warm-up
	Coverage   float64   `json:"coverage"`
	Alarms     uint64    `json:"alarms"` // of the mean

	Events map[string]uint64 `json:"event_counts,omitempty"` // all, by name
}

// shares are the numbers of a row of which the last row of the table has the geometric mean.
func (r *backtestRow) shares() []*undefined {
	return []*undefined{&r.Ours, &r.Best, &r.Convex, &r.Uniform, &r.BOA, &r.MLPoly, &r.MASE}
}

func (a *app) backtestCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "backtest [INPUT...]", Short: "Compare forecasts of several series with simpler ones", Args: cobra.ArbitraryArgs,
		Long: `Predict series one step ahead, record nothing, and compare the forecasts with the naive
one, the experts and mixtures of them. INPUT is a CSV file or example:NAME; without
INPUT it is every shipped series. All errors but that of the naive forecast are shares
of it. --season is for files; the examples have their own.`,
		Example: "  usp backtest\n  usp backtest prices.csv example:nile --json",
		RunE:    func(cmd *cobra.Command, args []string) error { return a.backtest(cmd.Context(), args) },
	}
	a.setting(cmd, false, "time-column", "", "run.time_column", "`column` of the files with the times")
	a.setting(cmd, false, "value-column", "", "run.value_column", "`column` of the files with the values")
	a.setting(cmd, false, "arrival-column", "", "run.arrival_column", "`column` of the files with the times of arrival (default: none, rows arrive at their times)")
	a.setting(cmd, false, "progress", "", "run.progress", "progress on standard error: auto, plain, json, none")
	a.setting(cmd, false, "season", "", "predictor.season", "observations in one period of the files (0: find one)")
	return cmd
}

func (a *app) backtest(ctx context.Context, names []string) error {
	if len(names) == 0 {
		for _, n := range examples.Names() {
			names = append(names, examples.Prefix+n)
		}
	}
	var rows []backtestRow
	for _, name := range names {
		row, err := a.backtestOne(ctx, name)
		if err != nil {
			return err
		}
		rows = append(rows, row)
	}
	mean := geometricMean(rows)
	if a.json {
		return a.printJSON(struct {
			Series []backtestRow `json:"series"`
			Mean   backtestRow   `json:"geometric_mean"`
		}{rows, mean}, true)
	}
	w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "series\tn\tnaive RMSE\tours\tbest expert\t\tbest convex\tuniform\tBOA\tML-Poly\tMASE\tCRPS\tcoverage\talarms")
	for _, r := range rows {
		fmt.Fprintf(w, "%s\t%d\t%.5g\t%.3f\t%.3f\t%s\t%.3f\t%.3f\t%.3f\t%.3f\t%.3f\t%.4g\t%.1f %%\t%d\n", display(r.Series), r.N, r.NaiveRMSE, r.Ours, r.Best, r.BestExpert,
			r.Convex, r.Uniform, r.BOA, r.MLPoly, r.MASE, r.CRPS, 100*r.Coverage, r.Alarms)
	}
	fmt.Fprintf(w, "geometric mean\t\t\t%.3f\t%.3f\t\t%.3f\t%.3f\t%.3f\t%.3f\t%.3f\t\t\t\n", mean.Ours, mean.Best, mean.Convex, mean.Uniform, mean.BOA, mean.MLPoly, mean.MASE)
	return w.Flush()
}

func (a *app) backtestOne(ctx context.Context, name string) (backtestRow, error) {
	row := backtestRow{Series: name}
	if name == "-" {
		return row, usageError(errors.New("backtest reads files and examples, not standard input"))
	}
	src, err := openSource(name, a.columns(), a.in)
	if err != nil {
		return row, err
	}
	defer src.close()
	cfg := a.cfg.PredictorConfig()
	if src.meta.Kind == kindExample || cfg.Season == 0 {
		cfg.Season = src.season
	}
	p, err := predictor.New(cfg)
	if err != nil {
		return row, usageError(err)
	}
	bar := a.progress(src.rows)
	bar.what = name
	defer bar.end()
	board := score.New(len(p.Experts()))
	var s scores
	var out predictor.Output
	for {
		if ctx.Err() != nil {
			return row, context.Cause(ctx)
		}
		obs, err := src.next(ctx)
		if errors.Is(err, io.EOF) {
			break
		}
		law, hasLaw := p.Law()
		if err != nil {
			return row, err
		}
		if err := p.Step(observation(obs), &out); err != nil {
			return row, fmt.Errorf("%s:%d: %w", src.name, obs.Line, err)
		}
		if hasLaw {
			board.AddLaw(obs.Value, &law)
		}
		s.add(obs.Value, out.Prior, out.PriorLower, out.PriorUpper, out.HasPrior)
		board.Add(obs.Value, &out)
		bar.step(&out)
	}
	h, naive := judge(board, p.Experts()), s.rmseNaive()
	share := func(x float64) undefined { return undefined(x / naive) }
	row = backtestRow{name, out.Step, naive, share(s.rmse()), h.BestExpert, share(h.BestRMSE), share(h.ConvexRMSE), share(h.UniformRMSE), share(h.BOARMSE),
		share(h.MLPolyRMSE), undefined(s.mase()), h.CRPS, s.coverage(), h.AlarmCount, h.EventCounts}
	return row, nil
}

// geometricMean is that of the shares; a series without one is left out of it.
func geometricMean(rows []backtestRow) backtestRow {
	var mean backtestRow
	for i, to := range mean.shares() {
		sum, n := 0.0, 0.0
		for j := range rows {
			if x := float64(*rows[j].shares()[i]); x > 0 && !math.IsInf(x, 0) {
				sum += math.Log(x)
				n++
			}
		}
		*to = undefined(math.Exp(sum / n))
	}
	return mean
}
