package jetstream

import (
	"context"
	"errors"
	"fmt"
	"strings"

	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/usp-project/usp/sink"
)

// config is the stream as it is made where there is none. What it holds cannot be deleted by a client, and when it is
// full it takes nothing, rather than let go of what it has.
func (o *Options) config() natsjs.StreamConfig {
	return natsjs.StreamConfig{
		Name: o.Stream, Description: "mirror of usp runs: telemetry and digest logs",
		Subjects:  []string{telemetryPrefix + "*", auditPrefix + "*"},
		Retention: natsjs.LimitsPolicy, Discard: natsjs.DiscardNew,
		Storage: o.Storage, Replicas: o.Replicas,
		DenyDelete: true, DenyPurge: true,
		Duplicates: o.Duplicates,
	}
}

// openStream opens the stream, or makes it. One that is there with weaker settings is refused and never changed: who has
// set them may have had a reason, and what was lost by them cannot be had back here.
func openStream(ctx context.Context, js natsjs.JetStream, o *Options) (natsjs.Stream, error) {
	s, err := js.Stream(ctx, o.Stream)
	if errors.Is(err, natsjs.ErrStreamNotFound) {
		if s, err = js.CreateStream(ctx, o.config()); errors.Is(err, natsjs.ErrStreamNameAlreadyInUse) {
			s, err = js.Stream(ctx, o.Stream) // another process was faster
		}
	}
	if err != nil {
		return nil, fmt.Errorf("stream %s: %w", o.Stream, err)
	}
	have := s.CachedInfo().Config
	if faults := weaker(&have, o); len(faults) > 0 {
		return nil, fmt.Errorf("%w: stream %s is no safe mirror: %s; change it (nats stream edit %s), or name another one", sink.ErrRefused, o.Stream, strings.Join(faults, "; "), o.Stream)
	}
	return s, nil
}

// weaker says in what a stream keeps less than what is asked for.
func weaker(have *natsjs.StreamConfig, o *Options) (faults []string) {
	fault := func(bad bool, format string, args ...any) {
		if bad {
			faults = append(faults, fmt.Sprintf(format, args...))
		}
	}
	for _, subject := range o.config().Subjects {
		covered := false
		for _, pattern := range have.Subjects {
			covered = covered || covers(pattern, subject)
		}
		fault(!covered, "it does not take the subject %s", subject)
	}
	fault(!have.DenyDelete, "messages can be deleted (deny_delete is off)")
	fault(!have.DenyPurge, "it can be purged (deny_purge is off)")
	fault(have.Discard != natsjs.DiscardNew, "it discards old messages when it is full (discard is not new)")
	fault(have.Retention != natsjs.LimitsPolicy, "it lets go of messages that were read (retention is %s)", have.Retention)
	fault(have.MaxAge != 0, "messages vanish after %v (max_age)", have.MaxAge)
	fault(have.MaxMsgsPerSubject > 0 && !have.DiscardNewPerSubject, "it keeps %d messages of a run (max_msgs_per_subject)", have.MaxMsgsPerSubject)
	fault(have.AllowRollup, "a message can replace all before it (allow_rollup_hdrs is on)")
	fault(have.AllowMsgTTL, "messages can be made to vanish (allow_msg_ttl is on)")
	fault(have.AllowMsgCounter, "it counts instead of keeping messages (allow_msg_counter is on)")
	fault(have.NoAck, "it acknowledges nothing (no_ack is on)")
	fault(have.Sealed, "it is sealed")
	fault(have.Mirror != nil || have.SubjectTransform != nil, "it is the mirror of another stream, or changes subjects")
	fault(have.PersistMode == natsjs.AsyncPersistMode, "it acknowledges what it has not written (persist_mode is async)")
	fault(have.Storage != o.Storage && o.Storage == natsjs.FileStorage, "it is in memory (storage), and is asked to be in files")
	fault(have.Replicas < o.Replicas, "%d servers hold it (num_replicas), and %d are asked for", have.Replicas, o.Replicas)
	fault(have.MaxMsgSize > 0 && int(have.MaxMsgSize) < o.MessageBytes+headerRoom, "it takes messages of %d bytes (max_msg_size), and %d are needed", have.MaxMsgSize, o.MessageBytes+headerRoom)
	return faults
}

// covers says whether a pattern of subjects takes all that another one does.
func covers(pattern, subject string) bool {
	p, s := strings.Split(pattern, "."), strings.Split(subject, ".")
	for i, t := range p {
		switch {
		case t == ">":
			return len(s) > i
		case i >= len(s), t != "*" && t != s[i]:
			return false
		}
	}
	return len(p) == len(s)
}
