package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/usp-project/usp/remote"
)

// checkRemote asks the remote store of snapshots what it needs to know to be asked: whether it is there, takes the credentials, and has the bucket.
func (a *app) checkRemote() []finding {
	const check = "remote"
	if a.cfg.Snapshot.Remote == "" {
		return nil
	}
	fail := func(err error) []finding {
		f := finding{Check: check, Level: "fail", Detail: err.Error()}
		switch {
		case errors.Is(err, remote.ErrDenied):
			f.Advice = "look at AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_PROFILE, and at what the key may do"
		case errors.Is(err, remote.ErrNotFound):
			f.Advice = "make the bucket, or set snapshot.remote to another one"
		case errors.Is(err, remote.ErrUnreachable):
			f.Advice = "look at snapshot.remote_endpoint and AWS_ENDPOINT_URL; runs are recorded without it, and usp sink RUN brings the rest"
		}
		return []finding{f}
	}
	to, err := remote.ParseAddress(a.cfg.Snapshot.Remote)
	if err != nil {
		return fail(err)
	}
	store, err := a.openStore(to.Bucket)
	if err != nil {
		return fail(err)
	}
	ctx, cancel := context.WithTimeoutCause(context.Background(), min(time.Duration(a.cfg.Sinks.Timeout), 10*time.Second), fmt.Errorf("%w: %v", remote.ErrUnreachable, to))
	defer cancel()
	lock, err := remote.Check(ctx, store, to)
	if err != nil {
		return fail(err)
	}
	f := finding{Check: check, Level: "ok", Detail: fmt.Sprintf("%v: answers, takes the credentials, has the bucket; object lock is not offered", to)}
	if lock {
		f.Detail = fmt.Sprintf("%v: answers, takes the credentials, has the bucket; object lock is offered", to)
	}
	switch wanted := a.lockFor() > 0; {
	case wanted && !lock:
		f.Level, f.Advice = "warn", "snapshot.remote_lock is set, but the bucket was not made with object lock, or does not say so: what is sent may be refused"
	case len(a.cfg.Snapshot.Recipients) == 0:
		f.Level, f.Advice = "warn", "snapshots hold the state and are not encrypted: who can read the bucket can read it; set snapshot.recipients"
	}
	return []finding{f}
}
