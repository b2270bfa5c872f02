package recorder

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/internal/witness"
)

const witnessName = "witness" // of the outlet

// WitnessOptions say who is to cosign the signed heads.
type WitnessOptions struct {
	URL      string        `json:"url"`      // submission prefix of the witness (C2SP tlog-witness); empty: none
	Keys     []string      `json:"keys"`     // verifier keys of the witness, one of which must have made the cosignature
	Interval time.Duration `json:"interval"` // shortest time between two heads that are brought to it; default 1 min
	Timeout  time.Duration `json:"timeout"`  // for one head; default 2 s

	Transport http.RoundTripper `json:"-"` // default that of net/http
}

// openWitness makes the outlet for the witness. What is wrong with the options is an error; that nobody answers is not.
func (r *Recorder) openWitness(verifiers note.Verifiers) error {
	o := &r.opts.Witness
	if o.URL == "" {
		return nil
	}
	client, err := witness.NewClient(o.URL, o.Keys, o.Transport)
	if err != nil {
		return err
	}
	fsys, dir := r.fs(), r.dir
	var seen uint64 // entries that the witness has cosigned, as far as is known; a wrong number costs a second request
	if h, err := digestlog.ReadHead(fsys, dir.Cosigned(), verifiers); err == nil {
		seen = h.Size
	}
	prove := func(from, to uint64) ([]tlog.Hash, error) {
		if from == 0 || from == to {
			return nil, nil
		}
		g, err := digestlog.ReadGrowth(fsys, dir.Digests(), from, to)
		if err != nil {
			return nil, err
		}
		return g.Proof(), nil
	}
	timeout := o.Timeout
	r.outlets = append(r.outlets, newOutlet(witnessName, client.URL(), o.Interval, func(ctx context.Context, h *digestlog.SignedTreeHead) error {
		ctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		cosigned, err := client.Cosign(ctx, h, seen, prove)
		if err != nil {
			return err
		}
		seen = h.Size
		if err := vfs.Replace(fsys, dir.Cosigned(), cosigned, cosignedMode); err != nil {
			return fmt.Errorf("the head was cosigned, but could not be stored: %w", err)
		}
		return nil
	}))
	return nil
}

const cosignedMode = 0o644
