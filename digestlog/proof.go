package digestlog

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"math/bits"
	"strconv"
	"strings"

	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/usp-project/usp/internal/vfs"
)

// Errors of proofs.
var (
	ErrProof     = errors.New("digestlog: not a proof")
	ErrUnproven  = errors.New("digestlog: the proof does not hold: the entry, the proof or the head was changed, or they do not belong together")
	ErrNotSigned = errors.New("digestlog: the signed head does not cover that; while the run is being recorded, try again when the next head was signed")
)

// First lines of the two kinds of proof: that of C2SP tlog-proof, and the beginning of what C2SP tlog-witness sends to a witness.
const (
	proofHeader  = "c2sp.org/tlog-proof@v1"
	growthHeader = "old "
)

const (
	maxProofHashes = 63
	// MaxProofFile bounds a proof's file, in bytes: a head, an entry, and the hashes.
	MaxProofFile = maxHeadFile + (MaxEntrySize+2)/3*4 + 4096
)

// A Proof shows that one entry is in the log that a signed head is of. Its text is a C2SP tlog-proof with the entry in the line "extra", so that one
// file is all that is needed to check it, and the key of who signed.
type Proof struct {
	Index  uint64      // of the entry
	Hashes []tlog.Hash // audit path, RFC 6962, 2.1.1
	Entry  []byte      // the leaf; nil if the proof came without it
	Head   []byte      // the signed head, as it is in its file
}

// A GrowthProof shows that the log a signed head is of began with the From entries of an earlier head. Its text is the body of a C2SP
// tlog-witness add-checkpoint request: the one format of C2SP that holds such a proof.
type GrowthProof struct {
	From   uint64
	Hashes []tlog.Hash // RFC 6962, 2.1.2
	Head   []byte      // the signed head, as it is in its file
}

// Prove makes the proof that an entry is in the log in dir. It reads from the file on that has the entry, up to the size of the head. The error wraps
// [ErrNotSigned] if the head does not cover the entry, [ErrRollback] or [ErrHeadMismatch] if the log is not what the head says, and is a [*Fault]
// if it is damaged where it is read.
func Prove(fsys vfs.FS, dir string, head *SignedTreeHead, index uint64) (*Proof, error) {
	if index >= head.Size {
		return nil, fmt.Errorf("%w: entry %d, the head covers %d, from 0 on", ErrNotSigned, index, head.Size)
	}
	p := &Proof{Index: index, Head: bytes.Clone(head.Note)}
	var before frontier
	var behind Growth
	err := readLeaves(fsys, dir, index, head.Size, func(f *frontier) { before = f.clone() }, func(i uint64, raw []byte) {
		switch leaf := tlog.RecordHash(raw); {
		case i < index:
			before.add(leaf)
		case i == index:
			p.Entry = bytes.Clone(raw)
			behind = Growth{old: frontier{size: index + 1}, size: index + 1}
		default:
			behind.Append(leaf)
		}
	})
	if err != nil {
		return nil, err
	}
	p.Hashes = auditPath(index, 0, head.Size, before.nodes, behind.nodes)
	if err := p.holds(head); err != nil {
		return nil, fmt.Errorf("%w (entry %d)", ErrHeadMismatch, index)
	}
	return p, nil
}

// ProveGrowth makes the proof that the log in dir only grew since it had from entries. Errors are those of [Prove].
func ProveGrowth(fsys vfs.FS, dir string, head *SignedTreeHead, from uint64) (*GrowthProof, error) {
	if from > head.Size {
		return nil, fmt.Errorf("%w: size %d, the head covers %d", ErrNotSigned, from, head.Size)
	}
	g, err := ReadGrowth(fsys, dir, from, head.Size)
	if err != nil {
		return nil, err
	}
	p := &GrowthProof{From: from, Hashes: g.Proof(), Head: bytes.Clone(head.Note)}
	if err := p.holds(g.old.root(), head); err != nil {
		return nil, fmt.Errorf("%w (size %d)", ErrHeadMismatch, from)
	}
	return p, nil
}

// A Proven is what a proof shows.
type Proven struct {
	Head       SignedTreeHead // the signed head
	Signers    []string       // keys that have signed it and were given, as NAME+HASH
	Unverified []string       // others, such as witnesses: nobody has checked their signatures
	Index      uint64         // Proof: of the entry
	Raw        []byte         // Proof: the leaf
	Entry      Entry          // Proof: decoded; of an entry of a newer version or kind the common header at most
	Unknown    error          // Proof: why Entry is not all there, or nil
	From       uint64         // GrowthProof: entries of the earlier head
}

// Verify checks the proof against its head, and the head's signatures against verifiers. It uses another library than the one that made the proof. The error wraps
// what [ParseHead] says of the head, [ErrUnproven] if the hashes do not lead from the entry to the signed root, or [ErrEntry] if
// what was proven is no entry.
func (p *Proof) Verify(verifiers note.Verifiers) (Proven, error) {
	v, err := openHead(p.Head, verifiers)
	if err != nil {
		return Proven{}, err
	}
	if p.Entry == nil {
		return Proven{}, fmt.Errorf("%w: it came without the entry (the line \"extra\")", ErrProof)
	}
	if err := p.holds(&v.Head); err != nil {
		return Proven{}, fmt.Errorf("%w: entry %d of %d: %w", ErrUnproven, p.Index, v.Head.Size, err)
	}
	v.Index, v.Raw = p.Index, p.Entry
	v.Entry, err = ParseEntry(p.Entry)
	if errors.Is(err, ErrEntry) {
		return Proven{}, err
	}
	v.Unknown = err
	return v, nil
}

func (p *Proof) holds(h *SignedTreeHead) error {
	return plainRoots(proof.VerifyInclusion(rfc6962.DefaultHasher, p.Index, h.Size, rfc6962.DefaultHasher.HashLeaf(p.Entry), hashList(p.Hashes), h.Root[:]))
}

// Verify checks the proof against its head and an earlier one. Who signed the head is checked against verifiers; that the earlier one is genuine is
// for the caller to know, who kept it. The error wraps what [ParseHead] says of the head, or [ErrUnproven].
func (p *GrowthProof) Verify(earlier *SignedTreeHead, verifiers note.Verifiers) (Proven, error) {
	v, err := openHead(p.Head, verifiers)
	if err != nil {
		return Proven{}, err
	}
	switch {
	case earlier.Origin != v.Head.Origin:
		return Proven{}, fmt.Errorf("%w: the earlier head is of %q, the proof of %q", ErrUnproven, earlier.Origin, v.Head.Origin)
	case earlier.Size != p.From:
		return Proven{}, fmt.Errorf("%w: the earlier head covers %d entries, the proof begins at %d", ErrUnproven, earlier.Size, p.From)
	}
	if err := p.holds(earlier.Root, &v.Head); err != nil {
		return Proven{}, fmt.Errorf("%w: from size %d to %d: %w", ErrUnproven, p.From, v.Head.Size, err)
	}
	v.From = p.From
	return v, nil
}

func (p *GrowthProof) holds(root [32]byte, h *SignedTreeHead) error {
	if p.From == 0 { // every log began with nothing: there are no hashes, and only one such root
		if len(p.Hashes) > 0 || root != new(frontier).root() {
			return errors.New("a log of no entries has another root, and needs no proof")
		}
		return nil
	}
	return plainRoots(proof.VerifyConsistency(rfc6962.DefaultHasher, p.From, h.Size, hashList(p.Hashes), root[:], h.Root[:]))
}

// plainRoots says in one line and in hexadecimal what the library says of two roots in several, byte by byte.
func plainRoots(err error) error {
	var roots proof.RootMismatchError
	if errors.As(err, &roots) {
		return fmt.Errorf("it leads to the root %x, not to %x", roots.CalculatedRoot, roots.ExpectedRoot)
	}
	return err
}

func hashList(hashes []tlog.Hash) [][]byte {
	list := make([][]byte, len(hashes))
	for i := range hashes {
		list[i] = hashes[i][:]
	}
	return list
}

// openHead parses a head and says who signed it.
func openHead(b []byte, verifiers note.Verifiers) (Proven, error) {
	h, err := ParseHead(b, verifiers)
	if err != nil {
		return Proven{}, err
	}
	n, err := note.Open(b, verifiers)
	if err != nil {
		return Proven{}, fmt.Errorf("%w: %w", ErrHead, err)
	}
	return Proven{Head: h, Signers: keyNames(n.Sigs), Unverified: keyNames(n.UnverifiedSigs)}, nil
}

func keyNames(sigs []note.Signature) []string {
	var names []string
	for _, s := range sigs {
		names = append(names, fmt.Sprintf("%s+%08x", s.Name, s.Hash))
	}
	return names
}

// Append appends the text of the proof to dst.
func (p *Proof) Append(dst []byte) []byte {
	dst = append(dst, proofHeader+"\n"...)
	if len(p.Entry) > 0 {
		dst = append(dst, "extra "...)
		dst = base64.StdEncoding.AppendEncode(dst, p.Entry)
		dst = append(dst, '\n')
	}
	return appendProof(fmt.Appendf(dst, "index %d\n", p.Index), p.Hashes, p.Head)
}

// Append appends the text of the proof to dst.
func (p *GrowthProof) Append(dst []byte) []byte {
	return appendProof(fmt.Appendf(dst, "%s%d\n", growthHeader, p.From), p.Hashes, p.Head)
}

// appendProof appends what both kinds of proof end with.
func appendProof(dst []byte, hashes []tlog.Hash, head []byte) []byte {
	for i := range hashes {
		dst = base64.StdEncoding.AppendEncode(dst, hashes[i][:])
		dst = append(dst, '\n')
	}
	dst = append(dst, '\n')
	return append(dst, head...)
}

// IsGrowthProof reports whether b begins as a [GrowthProof] does, and not as a [Proof].
func IsGrowthProof(b []byte) bool { return bytes.HasPrefix(b, []byte(growthHeader)) }

// ParseProof reads the text of a proof. It checks the form, and that the head is one; whether the proof holds says [Proof.Verify]. It does not keep b. There is
// one text of a proof, and what it accepts, [Proof.Append] writes again. The error wraps [ErrProof].
func ParseProof(b []byte) (*Proof, error) {
	r := proofReader{rest: b}
	if len(b) > MaxProofFile {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrProof, len(b), MaxProofFile)
	}
	if line, ok := r.line(); !ok || line != proofHeader {
		return nil, fmt.Errorf("%w: the first line is not %s", ErrProof, proofHeader)
	}
	p := new(Proof)
	line, ok := r.line()
	if text, found := strings.CutPrefix(line, "extra "); ok && found {
		raw, err := canonicalBase64(text)
		if err != nil || len(raw) == 0 || len(raw) > MaxEntrySize {
			return nil, fmt.Errorf("%w: the line \"extra\" is not the base64 of 1 to %d bytes", ErrProof, MaxEntrySize)
		}
		p.Entry = raw
		line, ok = r.line()
	}
	text, found := strings.CutPrefix(line, "index ")
	if !ok || !found {
		return nil, fmt.Errorf("%w: no line \"index\"", ErrProof)
	}
	var err error
	if p.Index, err = canonicalSize(text); err != nil {
		return nil, fmt.Errorf("%w: index %.32q", ErrProof, text)
	}
	h, err := r.end(&p.Hashes, &p.Head)
	if err != nil {
		return nil, err
	}
	if p.Index >= h.Size {
		return nil, fmt.Errorf("%w: index %d in a log of %d entries", ErrProof, p.Index, h.Size)
	}
	return p, nil
}

// ParseGrowthProof is [ParseProof] for the other kind.
func ParseGrowthProof(b []byte) (*GrowthProof, error) {
	if len(b) > MaxProofFile {
		return nil, fmt.Errorf("%w: %d bytes, at most %d", ErrProof, len(b), MaxProofFile)
	}
	r := proofReader{rest: b}
	line, ok := r.line()
	text, found := strings.CutPrefix(line, growthHeader)
	if !ok || !found {
		return nil, fmt.Errorf("%w: the first line is not \"old SIZE\"", ErrProof)
	}
	p := new(GrowthProof)
	var err error
	if p.From, err = canonicalSize(text); err != nil {
		return nil, fmt.Errorf("%w: size %.32q", ErrProof, text)
	}
	h, err := r.end(&p.Hashes, &p.Head)
	if err != nil {
		return nil, err
	}
	if p.From > h.Size {
		return nil, fmt.Errorf("%w: from size %d in a log of %d entries", ErrProof, p.From, h.Size)
	}
	return p, nil
}

// proofReader takes lines off the front of rest.
type proofReader struct{ rest []byte }

func (r *proofReader) line() (string, bool) {
	line, rest, ok := bytes.Cut(r.rest, []byte("\n"))
	if !ok {
		return "", false
	}
	r.rest = rest
	return string(line), true
}

// end reads the hashes, the empty line and the head.
func (r *proofReader) end(hashes *[]tlog.Hash, head *[]byte) (SignedTreeHead, error) {
	for {
		line, ok := r.line()
		if !ok {
			return SignedTreeHead{}, fmt.Errorf("%w: it ends before the head", ErrProof)
		}
		if line == "" {
			break
		}
		b, err := canonicalBase64(line)
		if err != nil || len(b) != tlog.HashSize || len(*hashes) == maxProofHashes {
			return SignedTreeHead{}, fmt.Errorf("%w: %.64q is not one of at most %d hashes in base64", ErrProof, line, maxProofHashes)
		}
		*hashes = append(*hashes, tlog.Hash(b))
	}
	if len(r.rest) > maxHeadFile {
		return SignedTreeHead{}, fmt.Errorf("%w: a head of %d bytes, at most %d", ErrProof, len(r.rest), maxHeadFile)
	}
	h, err := peekHead(r.rest)
	if err != nil {
		return h, fmt.Errorf("%w: %w", ErrProof, err)
	}
	if most := 2 * bits.Len64(h.Size); len(*hashes) > most {
		return h, fmt.Errorf("%w: %d hashes for a log of %d entries", ErrProof, len(*hashes), h.Size)
	}
	*head = bytes.Clone(r.rest)
	return h, nil
}

// canonicalBase64 decodes standard base64 of which there is only one for the same bytes.
func canonicalBase64(s string) ([]byte, error) {
	b, err := base64.StdEncoding.Strict().DecodeString(s)
	if err == nil && base64.StdEncoding.EncodeToString(b) != s { // it passes over line ends
		err = ErrProof
	}
	return b, err
}

// canonicalSize reads a number in decimal without leading zeros.
func canonicalSize(s string) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, 63)
	if err == nil && (strconv.FormatUint(n, 10) != s || n > maxSize) {
		err = ErrProof
	}
	return n, err
}
