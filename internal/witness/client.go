package witness

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/usp-project/usp/digestlog"
)

// What a witness can say against a head. All are wrapped with the address.
var (
	ErrUnknownLog = errors.New("the witness does not know this log; it must be told its origin and key")                    // 404
	ErrNotTrusted = errors.New("the witness does not accept the signature of this log; it must be told the key")            // 403
	ErrProof      = errors.New("the log does not continue what the witness has cosigned of it: it was written again")       // 422
	ErrAhead      = errors.New("the witness has cosigned a longer log of this run: the log was put back to an older state") // 409, with a larger size
	ErrForked     = errors.New("the witness has cosigned another log of this run with as many entries: it was written again")
	ErrNoAnswer   = errors.New("the witness did not cosign with a key that was named; name its key as it publishes it")
)

// ConflictError is the answer 409: the witness has seen another size of the log than it was told.
type ConflictError struct {
	Size  uint64 // what it has seen
	Known bool   // it has said so; else Size is 0
}

func (e *ConflictError) Error() string {
	if !e.Known {
		return "the witness has seen another size of the log, and does not say which"
	}
	return fmt.Sprintf("the witness has seen the log with %d entries", e.Size)
}

const (
	maxAnswer = 64 << 10 // bytes of an answer that are read
	maxProof  = 63       // hashes in a request
	tries     = 3        // how often the size is corrected: a witness may serve two recorders of one log for a moment
)

// A Client submits heads to one witness.
type Client struct {
	url  string
	keys []note.Verifier
	http *http.Client
}

// CheckURL says what is wrong with the address of a witness: it must be http or https, and hold no secret, because it is printed.
func CheckURL(text string) error {
	u, err := url.Parse(text)
	switch {
	case err != nil: // the error would repeat the address, and what may be in it
		return errors.New("is not an address; write one such as https://witness.example/submit")
	case u.Scheme != "http" && u.Scheme != "https", u.Host == "":
		return errors.New("is not an http or https address; write one such as https://witness.example/submit")
	case u.User != nil:
		return errors.New("holds a user name; addresses are printed, so nothing that is secret may be in one")
	case u.RawQuery != "" || u.Fragment != "" || u.ForceQuery:
		return errors.New("holds a query or a fragment; name the prefix before /add-checkpoint only")
	}
	return nil
}

// NewClient returns a client of the witness at the submission prefix address, whose cosignatures one of keys must verify. A nil transport is
// that of net/http.
func NewClient(address string, keys []string, transport http.RoundTripper) (*Client, error) {
	if err := CheckURL(address); err != nil {
		return nil, fmt.Errorf("witness: address %w", err)
	}
	c := &Client{url: strings.TrimRight(address, "/"), http: &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	for _, text := range keys {
		key, err := ParseKey(text)
		if err != nil {
			return nil, err
		}
		c.keys = append(c.keys, key)
	}
	if len(c.keys) == 0 {
		return nil, fmt.Errorf("%w: none is named for %s", ErrKey, c.url)
	}
	return c, nil
}

// URL returns the address, without a slash at its end.
func (c *Client) URL() string { return c.url }

// AddCheckpoint submits a signed head, with the proof that its log contains what the witness has seen: the first old entries. It returns the head with the
// witness's cosignatures behind its own signatures. Errors: *[ConflictError], [ErrUnknownLog], [ErrNotTrusted], [ErrProof], [ErrNoAnswer].
func (c *Client) AddCheckpoint(ctx context.Context, old uint64, proof []tlog.Hash, head []byte) ([]byte, error) {
	b, err := c.addCheckpoint(ctx, old, proof, head)
	if err != nil {
		return nil, fmt.Errorf("witness %s: %w", c.url, err)
	}
	return b, nil
}

func (c *Client) addCheckpoint(ctx context.Context, old uint64, proof []tlog.Hash, head []byte) ([]byte, error) {
	if len(proof) > maxProof {
		return nil, fmt.Errorf("a proof of %d hashes; no more than %d can be sent", len(proof), maxProof)
	}
	body := fmt.Appendf(nil, "old %d\n", old)
	for _, h := range proof {
		body = append(base64.StdEncoding.AppendEncode(body, h[:]), '\n')
	}
	body = append(append(body, '\n'), head...)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url+"/add-checkpoint", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "text/plain; charset=utf-8")
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, bare(err)
	}
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err = errors.Join(err, resp.Body.Close()); err != nil {
		return nil, err
	}
	if len(answer) > maxAnswer {
		return nil, fmt.Errorf("an answer of more than %d bytes", maxAnswer)
	}
	switch resp.StatusCode {
	case http.StatusOK:
		return c.cosigned(head, answer)
	case http.StatusConflict:
		return nil, conflict(answer)
	case http.StatusNotFound:
		return nil, ErrUnknownLog
	case http.StatusForbidden:
		return nil, ErrNotTrusted
	case http.StatusUnprocessableEntity:
		return nil, ErrProof
	}
	return nil, fmt.Errorf("status %d", resp.StatusCode)
}

// bare takes away what net/http says of the request: the caller names the address.
func bare(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

// conflict reads the size in an answer 409.
func conflict(answer []byte) error {
	text, ok := strings.CutSuffix(string(answer), "\n")
	size, err := strconv.ParseUint(text, 10, 63)
	if !ok || err != nil || strconv.FormatUint(size, 10) != text {
		return &ConflictError{}
	}
	return &ConflictError{Size: size, Known: true}
}

// cosigned puts the cosignatures of the answer that verify behind those of the head. Signatures of unknown keys are passed over.
func (c *Client) cosigned(head, answer []byte) ([]byte, error) {
	sigs, err := Cosignatures(append(bytes.Clone(head), answer...), c.keys...)
	if err != nil {
		return nil, fmt.Errorf("its answer cannot be used: %w", err)
	}
	if len(sigs) == 0 {
		return nil, ErrNoAnswer
	}
	return withSignatures(head, sigs), nil
}

// Cosign brings a head to the witness. old is what it is believed to have seen; if it has seen another size, the proof is made from that one.
// prove returns the proof between two sizes of the log. Errors are those of [Client.AddCheckpoint], [ErrAhead], [ErrForked] and those of prove.
func (c *Client) Cosign(ctx context.Context, h *digestlog.SignedTreeHead, old uint64, prove func(from, to uint64) ([]tlog.Hash, error)) ([]byte, error) {
	old = min(old, h.Size)
	for try := 1; ; try++ {
		proof, err := prove(old, h.Size)
		if err != nil {
			return nil, fmt.Errorf("prove to the witness that the log has grown from %d to %d entries: %w", old, h.Size, err)
		}
		b, err := c.AddCheckpoint(ctx, old, proof, h.Note)
		var seen *ConflictError
		if !errors.As(err, &seen) {
			return b, err
		}
		switch {
		case seen.Known && seen.Size > h.Size:
			return nil, fmt.Errorf("witness %s: %w (%d entries against %d)", c.url, ErrAhead, seen.Size, h.Size)
		case seen.Known && seen.Size == h.Size && old == h.Size:
			return nil, fmt.Errorf("witness %s: %w (%d)", c.url, ErrForked, h.Size)
		case !seen.Known || try == tries || seen.Size == old:
			return nil, err
		}
		old = seen.Size
	}
}
