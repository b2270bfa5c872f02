package jetstream_test

import (
	"context"
	"os"
	"slices"
	"testing"
	"time"

	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/sink"
	"github.com/usp-project/usp/sink/jetstream"
	"github.com/usp-project/usp/sink/sinktest"
)

// leader asks until the cluster has a leader of the stream and all its replicas are up to date, if current is set.
func leader(t *testing.T, to jetstream.Options, current bool) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	for ; ctx.Err() == nil; time.Sleep(50 * time.Millisecond) {
		if name, ok := askLeader(ctx, to, current); ok {
			return name
		}
	}
	t.Fatal("the cluster does not come to rest")
	return ""
}

func askLeader(ctx context.Context, to jetstream.Options, current bool) (string, bool) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	c, err := jetstream.Connect(ctx, to)
	if err != nil {
		return "", false
	}
	defer c.Close()
	s, err := c.JS.Stream(ctx, "usp")
	if err != nil {
		return "", false
	}
	info := s.CachedInfo()
	if info.Cluster == nil || info.Cluster.Leader == "" {
		return "", false
	}
	if !current {
		return info.Cluster.Leader, true
	}
	for _, r := range info.Cluster.Replicas {
		if !r.Current || r.Offline || r.Lag > 0 {
			return "", false
		}
	}
	return info.Cluster.Leader, len(info.Cluster.Replicas) == 2
}

// TestCluster mirrors a run to three servers, of which the stream's leader is killed and brought back under load:
// the stream then has exactly what the run directory has. With TORTURE=1 it is a run of 10⁶ records, and two are killed.
func TestCluster(t *testing.T) {
	records, kills := 50_000, []int{20}
	if os.Getenv("TORTURE") == "1" {
		records, kills = 1_000_000, []int{20, 60}
	}
	nodes, addresses := cluster(t)
	to := jetstream.Options{URL: addresses, Replicas: 3, Stream: "usp"}
	ready(t, to)
	r := sinktest.Record(t)
	to.Dir = r.Dir
	o := bringing(r)
	o.SyncEvery, o.Timeout = 100*time.Millisecond, 5*time.Second
	follow, end := sinktest.Until()
	o.Follow = follow
	done := make(chan error, 1)
	began := time.Now()
	go func() { done <- sink.Bring(t.Context(), o, jetstream.New(to)) }()

	const parts = 100
	var dead *node
	for i := range parts {
		switch {
		case slices.Contains(kills, i):
			name := leader(t, to, false)
			for _, n := range nodes {
				if n.Name == name {
					dead = n
				}
			}
			dead.kill()
			t.Logf("%v: %s, which led the stream, is killed after %d frames", time.Since(began).Round(time.Millisecond), name, r.Frames())
		case slices.Contains(kills, i-20):
			dead.start(t)
			t.Logf("%v: %s is back at %d frames", time.Since(began).Round(time.Millisecond), dead.Name, r.Frames())
		}
		r.Emit(records/parts - 1)
		if r.Lose(2); i%10 == 9 {
			r.Roll()
		}
		time.Sleep(30 * time.Millisecond)
	}
	emitted := time.Since(began)
	end()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	brought := time.Since(began)
	status, err := sink.ReadStatus(vfs.OS(), r.Dir, "jetstream")
	if err != nil || status.Next != r.Frames() || status.Fault != "" {
		t.Errorf("the status is %+v, %v", status, err)
	}
	report := same(t, to, r)
	if report.Records != uint64(records-parts) || report.Lost != 2*parts {
		t.Errorf("%d records and %d lost in the stream, want %d and %d", report.Records, report.Lost, records-parts, 2*parts)
	}
	t.Logf("%d records in %d messages, stored in %v, in the stream after %v, checked in %v; %d were brought twice",
		report.Records, report.Messages, emitted.Round(time.Millisecond), brought.Round(time.Millisecond), (time.Since(began) - brought).Round(time.Millisecond), status.Records-report.Records)

	// The one that came back has it all as well: it is asked alone, through a leader of its own.
	leader(t, to, true)
	stepDown(t, to, dead.Name)
	same(t, to, r)
}

// ready waits until the cluster can make a stream.
func ready(t *testing.T, to jetstream.Options) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	for ; ctx.Err() == nil; time.Sleep(50 * time.Millisecond) {
		c, err := jetstream.Connect(ctx, to)
		if err != nil {
			continue
		}
		short, cancel := context.WithTimeout(ctx, 2*time.Second)
		_, err = c.JS.CreateStream(short, natsjs.StreamConfig{Name: "probe", Subjects: []string{"probe"}, Replicas: 3})
		cancel()
		c.Close()
		if err == nil {
			return
		}
	}
	t.Fatal("the cluster does not begin")
}

// stepDown has the leader of the stream give way until it is the one that is wanted.
func stepDown(t *testing.T, to jetstream.Options, want string) {
	t.Helper()
	for range 40 {
		if leader(t, to, true) == want {
			return
		}
		c := connect(t, to)
		if _, err := c.JS.Conn().Request("$JS.API.STREAM.LEADER.STEPDOWN.usp", nil, 2*time.Second); err != nil {
			t.Log(err)
		}
	}
	t.Errorf("%s never led the stream", want)
}
