package jetstream_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/usp-project/usp/sink"
	"github.com/usp-project/usp/sink/jetstream"
	"github.com/usp-project/usp/sink/sinktest"
)

// TestWeakStream has streams that exist with weaker settings: each is named, and none is changed.
func TestWeakStream(t *testing.T) {
	to := jetstream.Options{URL: serve(t, server.Options{}).ClientURL()}
	good := natsjs.StreamConfig{
		Name: "usp", Subjects: []string{"usp.>"}, Discard: natsjs.DiscardNew, DenyDelete: true, DenyPurge: true,
	}
	r := sinktest.Record(t)
	r.Emit(10)
	js := connect(t, to).JS
	try := func(c natsjs.StreamConfig, o jetstream.Options) error {
		t.Helper()
		made, err := js.CreateStream(t.Context(), c)
		for range 20 {
			if err == nil {
				break
			}
			time.Sleep(50 * time.Millisecond) // the server is not done with removing the one before
			made, err = js.CreateStream(t.Context(), c)
		}
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := js.DeleteStream(t.Context(), "usp"); err != nil {
				t.Error(err)
			}
		}()
		before := made.CachedInfo().Config
		err = sink.Bring(t.Context(), bringing(r), jetstream.New(o))
		after, e := made.Info(t.Context())
		if e != nil || fmt.Sprint(after.Config) != fmt.Sprint(before) {
			t.Errorf("the stream was changed: %+v, %v", after.Config, e)
		}
		return err
	}
	if err := try(good, to); err != nil {
		t.Errorf("a good stream: %v", err)
	}
	three := to
	three.Replicas = 3
	for _, tt := range []struct {
		name string
		to   jetstream.Options
		weak func(c *natsjs.StreamConfig)
	}{
		{"deny_delete", to, func(c *natsjs.StreamConfig) { c.DenyDelete = false }},
		{"deny_purge", to, func(c *natsjs.StreamConfig) { c.DenyPurge = false }},
		{"discard", to, func(c *natsjs.StreamConfig) { c.Discard = natsjs.DiscardOld }},
		{"max_age", to, func(c *natsjs.StreamConfig) { c.MaxAge = time.Hour }},
		{"max_msgs_per_subject", to, func(c *natsjs.StreamConfig) { c.MaxMsgsPerSubject = 5 }},
		{"allow_rollup_hdrs", to, func(c *natsjs.StreamConfig) { c.AllowRollup, c.DenyPurge = true, false }},
		{"allow_msg_ttl", to, func(c *natsjs.StreamConfig) { c.AllowMsgTTL = true }},
		{"retention", to, func(c *natsjs.StreamConfig) { c.Retention = natsjs.InterestPolicy }},
		{"in memory", to, func(c *natsjs.StreamConfig) { c.Storage = natsjs.MemoryStorage }},
		{"persist_mode", to, func(c *natsjs.StreamConfig) { c.PersistMode = natsjs.AsyncPersistMode }},
		{"max_msg_size", to, func(c *natsjs.StreamConfig) { c.MaxMsgSize = 10000 }},
		{"usp.audit.*", to, func(c *natsjs.StreamConfig) { c.Subjects = []string{"usp.telemetry.*"} }},
		{"num_replicas", three, func(*natsjs.StreamConfig) {}},
	} {
		c := good
		tt.weak(&c)
		if err := try(c, tt.to); !errors.Is(err, sink.ErrRefused) || !strings.Contains(err.Error(), tt.name) {
			t.Errorf("%s: %v, want a refusal that names it", tt.name, err)
		}
	}
}

// TestFull has a stream that takes no more: nothing that it has is let go, and all comes there when it takes more again.
func TestFull(t *testing.T) {
	to := jetstream.Options{URL: serve(t, server.Options{}).ClientURL(), MessageBytes: 4 << 10}
	js := connect(t, to).JS
	c := natsjs.StreamConfig{Name: "usp", Subjects: []string{"usp.>"}, Discard: natsjs.DiscardNew, DenyDelete: true, DenyPurge: true, MaxBytes: 20 << 10}
	if _, err := js.CreateStream(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	r := sinktest.Record(t)
	r.Emit(1000)
	o := bringing(r)
	o.Patience = 200 * time.Millisecond
	if err := sink.Bring(t.Context(), o, jetstream.New(to)); !errors.Is(err, sink.ErrPatience) || !strings.Contains(err.Error(), "maximum bytes") {
		t.Errorf("a full stream: %v", err)
	}
	c.MaxBytes = -1
	if _, err := js.UpdateStream(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if err := sink.Bring(t.Context(), bringing(r), jetstream.New(to)); err != nil {
		t.Fatal(err)
	}
	same(t, to, r)
}
