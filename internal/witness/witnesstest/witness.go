// Package witnesstest is a witness for tests: the server's half of C2SP tlog-witness, as strict as the specification wants it. It checks the log's
// signature and the consistency proof with libraries that the log itself does not use, and signs with a clock that is handed in.
// What it has seen is kept in memory only; a witness for use would have to put it on a disk before it answers.
package witnesstest

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"

	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/note"

	"github.com/usp-project/usp/internal/witness"
)

// Seen is the largest tree of a log that was cosigned.
type Seen struct {
	Size uint64
	Root []byte
}

// A Witness cosigns the heads of the logs it was told of. It is an http.Handler.
type Witness struct {
	signer *witness.Signer

	mu       sync.Mutex
	logs     map[string]note.Verifiers // keys by the first line of a head, or by what it begins with, ending in '/'
	seen     map[string]Seen
	requests int
	fail     int // status to answer with instead; 0: none
}

// New returns a witness that knows no log.
func New(signer *witness.Signer) *Witness {
	return &Witness{signer: signer, logs: map[string]note.Verifiers{}, seen: map[string]Seen{}}
}

// Trust makes the witness accept logs of that origin, or, if it ends in '/', of all that begin with it, signed with one of the keys.
func (w *Witness) Trust(origin string, keys ...note.Verifier) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.logs[origin] = note.VerifierList(keys...)
}

// Latest returns what the witness has seen of a log.
func (w *Witness) Latest(origin string) Seen {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.seen[origin]
}

// Requests returns how often it was asked.
func (w *Witness) Requests() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.requests
}

// Fail makes the witness answer everything with a status; 0 ends that.
func (w *Witness) Fail(status int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fail = status
}

// ServeHTTP answers add-checkpoint. One request at a time is looked at, so that nothing comes between the check and the record of it.
func (w *Witness) ServeHTTP(out http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(out, req.Body, 1<<20))
	w.mu.Lock()
	defer w.mu.Unlock()
	w.requests++
	switch {
	case err != nil:
		http.Error(out, "the request cannot be read", http.StatusBadRequest)
	case w.fail != 0:
		http.Error(out, "told to fail", w.fail)
	case !strings.HasSuffix(req.URL.Path, "/add-checkpoint"):
		http.Error(out, "no such call", http.StatusNotFound)
	case req.Method != http.MethodPost:
		http.Error(out, "POST is wanted", http.StatusMethodNotAllowed)
	default:
		w.addCheckpoint(out, body)
	}
}

func (w *Witness) addCheckpoint(out http.ResponseWriter, body []byte) {
	q, err := parse(body)
	if err != nil {
		http.Error(out, err.Error(), http.StatusBadRequest)
		return
	}
	keys := w.keys(q.origin)
	if keys == nil {
		http.Error(out, "unknown log", http.StatusNotFound)
		return
	}
	n, err := note.Open(q.note, keys)
	if err != nil {
		http.Error(out, err.Error(), http.StatusForbidden)
		return
	}
	seen := w.seen[q.origin]
	switch {
	case q.old > q.size:
		http.Error(out, "the old size is larger than the new one", http.StatusBadRequest)
		return
	case q.old != seen.Size, q.old == q.size && seen.Size > 0 && !bytes.Equal(q.root, seen.Root):
		out.Header().Set("Content-Type", "text/x.tlog.size")
		out.WriteHeader(http.StatusConflict)
		fmt.Fprintf(out, "%d\n", seen.Size)
		return
	}
	if !consistent(seen, q) {
		http.Error(out, "the proof does not verify", http.StatusUnprocessableEntity)
		return
	}
	signed, err := note.Sign(&note.Note{Text: n.Text}, w.signer)
	if err != nil {
		http.Error(out, err.Error(), http.StatusInternalServerError)
		return
	}
	w.seen[q.origin] = Seen{Size: q.size, Root: q.root}
	_, sigs, _ := bytes.Cut(signed, []byte("\n\n"))
	out.Write(sigs)
}

// keys are those of the log with that origin; nil if it is unknown.
func (w *Witness) keys(origin string) note.Verifiers {
	if keys := w.logs[origin]; keys != nil {
		return keys
	}
	for prefix, keys := range w.logs {
		if strings.HasSuffix(prefix, "/") && strings.HasPrefix(origin, prefix) {
			return keys
		}
	}
	return nil
}

func consistent(seen Seen, q *request) bool {
	if seen.Size == 0 {
		return len(q.proof) == 0
	}
	return proof.VerifyConsistency(rfc6962.DefaultHasher, seen.Size, q.size, q.proof, seen.Root, q.root) == nil
}

// request is the body of an add-checkpoint.
type request struct {
	old    uint64
	proof  [][]byte
	note   []byte
	origin string
	size   uint64
	root   []byte
}

func parse(body []byte) (*request, error) {
	head, signed, ok := bytes.Cut(body, []byte("\n\n"))
	if !ok {
		return nil, fmt.Errorf("no empty line")
	}
	q := &request{note: signed}
	lines := strings.Split(string(head), "\n")
	old, found := strings.CutPrefix(lines[0], "old ")
	var err error
	if q.old, err = decimal(old); err != nil || !found {
		return nil, fmt.Errorf("no old size")
	}
	if len(lines)-1 > 63 {
		return nil, fmt.Errorf("more than 63 hashes")
	}
	for _, line := range lines[1:] {
		h, err := base64.StdEncoding.Strict().DecodeString(line)
		if err != nil || len(h) != 32 {
			return nil, fmt.Errorf("a hash is malformed")
		}
		q.proof = append(q.proof, h)
	}
	text := strings.SplitN(string(signed), "\n", 4)
	if len(text) < 4 || text[0] == "" {
		return nil, fmt.Errorf("no checkpoint")
	}
	q.origin = text[0]
	if q.size, err = decimal(text[1]); err != nil {
		return nil, fmt.Errorf("no size in the checkpoint")
	}
	if q.root, err = base64.StdEncoding.Strict().DecodeString(text[2]); err != nil || len(q.root) != 32 {
		return nil, fmt.Errorf("no root in the checkpoint")
	}
	return q, nil
}

func decimal(s string) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, 63)
	if err == nil && strconv.FormatUint(n, 10) != s {
		err = fmt.Errorf("%q has leading zeros", s)
	}
	return n, err
}
