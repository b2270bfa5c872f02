package cli

import (
	"context"
	"errors"
	"fmt"
	"text/tabwriter"
	"time"

	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/usp-project/usp/internal/fleet"
	"github.com/usp-project/usp/sink"
	"github.com/usp-project/usp/sink/jetstream"
	"github.com/usp-project/usp/sink/prometheus"
)

// fleet is the runs of the stream that serve.fleet names. Credentials and the stream's name are those of the section jetstream.
func (a *app) fleet() (*fleet.Fleet, error) {
	c := &a.cfg.Config
	f, err := fleet.New(fleet.Options{
		Stream: jetstream.Options{
			URL: c.Serve.Fleet, Stream: c.JetStream.Stream, CredentialsFile: c.JetStream.CredentialsFile, CAFile: c.JetStream.CAFile, FS: a.fs, Logger: a.logger(),
		},
		Keys: c.Serve.FleetKeys, Records: c.Serve.FleetRecords, Now: a.now, Logger: a.logger(),
	})
	if err != nil {
		return nil, usageError(fmt.Errorf("serve.fleet_keys: %w", err))
	}
	return f, nil
}

// fleetError says what to do about an error of reading a fleet's stream, and gives it its exit code.
func (a *app) fleetError(err error) error {
	stream := a.cfg.JetStream.Stream
	switch {
	case err == nil:
		return nil
	case errors.Is(err, natsjs.ErrStreamNotFound):
		return withCode(exitNotFound, fmt.Errorf("--fleet: the server has no stream %s, or does not show it: it is made when a run is recorded with jetstream.url set; jetstream.stream names another one", stream))
	case errors.Is(err, sink.ErrRefused):
		return withCode(exitError, fmt.Errorf("--fleet: %w; jetstream.credentials_file names the file of credentials, jetstream.ca_file that of certificates", err))
	case errors.Is(err, natsjs.ErrJetStreamNotEnabled), errors.Is(err, natsjs.ErrJetStreamNotEnabledForAccount), errors.Is(err, fleet.ErrTooMany):
		return withCode(exitError, fmt.Errorf("--fleet: %w", err))
	}
	return withCode(exitUnreachable, fmt.Errorf("--fleet: %w; is the server running, and is this its address?", err))
}

// fleetRuns prints the runs of a fleet once.
func (a *app) fleetRuns(ctx context.Context) error {
	f, err := a.fleet()
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Look(ctx); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return a.fleetError(err)
	}
	v := f.View()
	if a.json {
		return a.printJSON(v.Runs, true)
	}
	if len(v.Runs) == 0 {
		fmt.Fprintf(a.out, "no runs in the stream %s; begin with: USP_JETSTREAM_URL=%s usp run\n", v.Stream, a.cfg.Serve.Fleet)
		return nil
	}
	w := tabwriter.NewWriter(a.out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "RUN\tHOST\tPROGRAM\tSTATUS\tSTEP\tSTORED\tLOST\tHEARD\tSIGNED HEAD")
	for i := range v.Runs {
		r := &v.Runs[i]
		age := time.Duration(r.Age * float64(time.Second)).Round(time.Second)
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%d\t%d\t%v ago\t%s\n", r.ID, orDash(r.Host), orDash(r.Program), r.State, r.Step, r.Stored, r.Lost, age, headText(&r.Head))
	}
	if err := w.Flush(); err != nil || a.quiet {
		return err
	}
	for i := range v.Runs {
		if r := &v.Runs[i]; r.Fault != "" {
			fmt.Fprintf(a.err, "usp: run %s: %s\n", r.ID, r.Fault)
		}
	}
	if v.Hidden > 0 {
		fmt.Fprintf(a.err, "usp: %d more runs are not shown\n", v.Hidden)
	}
	if !v.Keys {
		fmt.Fprintln(a.err, "usp: nothing of it is vouched for: serve.fleet_keys names the keys that signed heads are verified with")
	}
	return nil
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func headText(h *fleet.Head) string {
	switch {
	case h.Verified:
		return fmt.Sprintf("verified over %s, by %s", entriesText(h.Size), h.Signer)
	case h.Forged:
		return "FALSE: " + h.Fault
	case h.Fault != "":
		return "not vouched for: " + h.Fault
	}
	return "-"
}

// fleetMetrics are those of a fleet, for Prometheus.
func fleetMetrics(f *fleet.Fleet) func() prometheus.Fleet {
	return func() prometheus.Fleet {
		v := f.View()
		m := prometheus.Fleet{Up: v.Fault == "" && !v.Looked.IsZero(), Hidden: v.Hidden, Messages: v.Last, Look: v.Took, Runs: map[string]int{}, Heads: map[string]int{}}
		for _, state := range []string{fleet.Recording, fleet.Silent, "clean", "crashed", "failed", fleet.Unreadable} {
			m.Runs[state] = 0
		}
		for _, verdict := range []string{"verified", "unvouched", "false"} {
			m.Heads[verdict] = 0
		}
		for i := range v.Runs {
			r := &v.Runs[i]
			m.Runs[r.State]++
			m.Stored += float64(r.Stored)
			m.Lost += float64(r.Lost)
			switch {
			case r.Head.Verified:
				m.Heads["verified"]++
			case r.Head.Forged:
				m.Heads["false"]++
			default:
				m.Heads["unvouched"]++
			}
		}
		return m
	}
}

const doctorWaits = 5 * time.Second

// checkStreamOf looks at the streams that the settings name: is the server there, and does the stream keep what it gets.
func (a *app) checkStreamOf() (list []finding) {
	c := &a.cfg.Config
	for _, x := range []struct{ setting, url string }{{"jetstream.url", c.JetStream.URL}, {"serve.fleet", c.Serve.Fleet}} {
		if x.url == "" || x.setting == "serve.fleet" && x.url == c.JetStream.URL {
			continue
		}
		f := a.tryStream(x.url)
		f.Check, f.Detail = "stream", x.setting+": "+f.Detail
		list = append(list, f)
	}
	return list
}

func (a *app) tryStream(url string) finding {
	ctx, cancel := context.WithTimeout(context.Background(), doctorWaits)
	defer cancel()
	j := &a.cfg.JetStream
	c, err := jetstream.Connect(ctx, jetstream.Options{URL: url, CredentialsFile: j.CredentialsFile, CAFile: j.CAFile, FS: a.fs})
	if err != nil {
		return finding{Level: "fail", Detail: err.Error(), Advice: "start the server, or correct the address or jetstream.credentials_file; runs are recorded all the same, and usp sink RUN brings them later"}
	}
	defer c.Close()
	r, err := jetstream.OpenReader(ctx, c, j.Stream)
	if errors.Is(err, natsjs.ErrStreamNotFound) {
		return finding{Level: "ok", Detail: fmt.Sprintf("the server answers and has no stream %s yet", j.Stream), Advice: "it is made when the first run is recorded with jetstream.url set"}
	}
	var runs map[string]jetstream.Messages
	if err == nil {
		runs, err = r.Runs(ctx)
	}
	if err != nil {
		return finding{Level: "fail", Detail: err.Error(), Advice: "jetstream.stream names the stream; the credentials must allow to read it"}
	}
	f := finding{Level: "ok", Detail: fmt.Sprintf("stream %s has %s", j.Stream, count(uint64(len(runs)), "run"))}
	if weak := r.Weaknesses(); len(weak) > 0 {
		f.Level, f.Advice = "warn", "it is no safe mirror: "+weak[0]+"; change it (nats stream edit "+j.Stream+")"
	}
	return f
}
