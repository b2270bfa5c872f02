// Package environ describes what a run was computed with: processor, compiler, libraries and settings, as far as they
// can make two runs over the same input differ.
//
// An environment is a small map of text. It goes into the entry that opens a generation of the digest log, so it must
// be the same bytes everywhere and must hold no secret: [Collect] takes only what is on its list, [Clean] makes what
// comes from elsewhere fit, and [Encode] and [Decode] know one text for each map. [Diff] compares two of them and puts
// first what changes floating-point results. The text is specified in doc/format/environment.md.
package environ

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// What an environment can hold at most.
const (
	MaxKeys  = 256
	MaxValue = 512      // bytes
	MaxSize  = 16 << 10 // bytes of the whole text
)

// ErrFormat is the class of all errors of Encode and Decode.
var ErrFormat = errors.New("not the text of an environment")

// keyPattern is what a key looks like: at most 63 characters.
var keyPattern = regexp.MustCompile(`\A[a-z][a-z0-9_.]{0,62}\z`)

// Encode writes the environment as text: a line "key=value" for each key, in the order of the keys' bytes. It fails with
// ErrFormat if the map is not one that [Clean] returns. An empty environment is an empty text.
func Encode(m map[string]string) ([]byte, error) {
	if len(m) > MaxKeys {
		return nil, fmt.Errorf("%w: %d keys, more than %d", ErrFormat, len(m), MaxKeys)
	}
	var b []byte
	for _, k := range slices.Sorted(maps.Keys(m)) {
		if err := checkLine(k, m[k]); err != nil {
			return nil, err
		}
		b = append(b, k+"="+m[k]+"\n"...)
	}
	if len(b) > MaxSize {
		return nil, fmt.Errorf("%w: %d bytes, more than %d", ErrFormat, len(b), MaxSize)
	}
	return b, nil
}

// Decode reads what Encode writes, and nothing else: of every environment there is one text. The error is of the class
// ErrFormat and names the line.
func Decode(text []byte) (map[string]string, error) {
	if len(text) > MaxSize {
		return nil, fmt.Errorf("%w: %d bytes, more than %d", ErrFormat, len(text), MaxSize)
	}
	m := map[string]string{}
	last, n := "", 0
	for line := range strings.Lines(string(text)) {
		n++
		line, whole := strings.CutSuffix(line, "\n")
		if !whole {
			return nil, fmt.Errorf("%w: line %d has no line break", ErrFormat, n)
		}
		k, v, found := strings.Cut(line, "=")
		if !found {
			return nil, fmt.Errorf("%w: line %d has no =", ErrFormat, n)
		}
		if err := checkLine(k, v); err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		if k <= last {
			return nil, fmt.Errorf("%w: line %d: the key %s does not come after %s", ErrFormat, n, k, last)
		}
		if n > MaxKeys {
			return nil, fmt.Errorf("%w: more than %d keys", ErrFormat, MaxKeys)
		}
		m[k], last = v, k
	}
	return m, nil
}

func checkLine(k, v string) error {
	switch {
	case !keyPattern.MatchString(k):
		return fmt.Errorf("%w: a key is a-z and then at most 62 of a-z 0-9 _ and . , not %.80q", ErrFormat, k)
	case len(v) > MaxValue:
		return fmt.Errorf("%w: the value of %s has %d bytes, more than %d", ErrFormat, k, len(v), MaxValue)
	case strings.ContainsFunc(v, func(r rune) bool { return !printable(r) }):
		return fmt.Errorf("%w: the value of %s has characters outside printable ASCII", ErrFormat, k)
	case v != strings.Trim(v, " "):
		return fmt.Errorf("%w: the value of %s begins or ends with a space", ErrFormat, k)
	}
	return nil
}

// printable is true of what may stand in a value. More than ASCII would need a table that changes with each edition of
// Unicode, and would let a value look like another one in a terminal.
func printable(r rune) bool { return r >= ' ' && r <= '~' }

// suspects are words in a key that say that its value is none of a log's business.
var suspects = []string{"token", "tokens", "secret", "secrets", "password", "passwd", "passphrase", "credential", "credentials", "auth", "apikey", "key", "keys", "cookie", "session"}

// Clean makes an environment of a map that comes from elsewhere, such as another program. In values, white space and
// control characters become spaces, other characters outside ASCII become "?", and what is too long is cut and ends in
// "...". Left out are keys that are not well formed, keys that name a secret, and, where there are too many, those that
// matter least. dropped lists what was left out, in order, quoted where it would not print.
func Clean(m map[string]string) (clean map[string]string, dropped []string) {
	clean = map[string]string{}
	size := 0
	for _, k := range slices.SortedFunc(maps.Keys(m), compareKeys) {
		v := cleanValue(m[k])
		line := len(k) + len(v) + 2
		if checkLine(k, v) != nil || secret(k) || len(clean) == MaxKeys || size+line > MaxSize {
			dropped = append(dropped, quoted(k))
			continue
		}
		clean[k] = v
		size += line
	}
	slices.Sort(dropped)
	return clean, dropped
}

func cleanValue(v string) string {
	v = strings.Map(func(r rune) rune {
		switch {
		case r < ' ' || r >= 0x7f && r <= 0x9f:
			return ' '
		case !printable(r):
			return '?'
		}
		return r
	}, v)
	if v = strings.Trim(v, " "); len(v) > MaxValue {
		v = v[:MaxValue-len("...")] + "..."
	}
	return v
}

// secret says whether one of the words that a key is made of is a suspect.
func secret(k string) bool {
	words := strings.FieldsFunc(k, func(r rune) bool { return r == '.' || r == '_' })
	return slices.ContainsFunc(words, func(w string) bool { return slices.Contains(suspects, w) })
}

func quoted(k string) string {
	if keyPattern.MatchString(k) {
		return k
	}
	return fmt.Sprintf("%.80q", k)
}

// Difference is one key that two environments do not have alike.
type Difference struct {
	Key      string `json:"key"`
	A        string `json:"a"`
	B        string `json:"b"`
	OnlyA    bool   `json:"only_a,omitempty"` // B does not have the key
	OnlyB    bool   `json:"only_b,omitempty"`
	Numerics bool   `json:"numerics"` // it is known to change floating-point results, or to choose the code that computes them
}

// Diff lists the keys in which two environments differ. What is known to change floating-point results comes first, from
// the likeliest cause on; the rest follows in the order of the keys.
func Diff(a, b map[string]string) []Difference {
	keys := map[string]bool{}
	for _, m := range []map[string]string{a, b} {
		for k := range m {
			keys[k] = true
		}
	}
	var list []Difference
	for _, k := range slices.SortedFunc(maps.Keys(keys), compareKeys) {
		va, inA := a[k]
		vb, inB := b[k]
		if va != vb || inA != inB {
			list = append(list, Difference{Key: k, A: va, B: vb, OnlyA: !inB, OnlyB: !inA, Numerics: rank(k) < len(numerics)})
		}
	}
	return list
}

// numerics are the keys that change results, the likeliest cause first. One that ends in a dot stands for all that begin
// with it.
var numerics = []string{
	"jax.backend", "jax.device_kind", "goarch", "jax.enable_x64", "jax.default_matmul_precision", "xla.flags",
	"goamd64", "goarm64", "cpu.features", "godebug", "race", "go.gcflags", "go.tags", "go.pgo", "cgo",
	"usp.version", "usp.revision", "usp.modified", "program.", "go.version", "go.experiment", "module.", "go.deps",
	"jaxlib.version", "jax.version", "xla.", "cuda.", "cudnn.", "rocm.", "jax.", "numpy.", "cpu.model",
}

func rank(k string) int {
	at := slices.IndexFunc(numerics, func(n string) bool {
		return k == n || strings.HasSuffix(n, ".") && strings.HasPrefix(k, n)
	})
	if at < 0 {
		return len(numerics)
	}
	return at
}

// compareKeys orders keys by what they can do to results.
func compareKeys(a, b string) int {
	return cmp.Or(cmp.Compare(rank(a), rank(b)), strings.Compare(a, b))
}
