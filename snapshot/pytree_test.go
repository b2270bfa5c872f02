package snapshot

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
)

// pytreeLeaf is a leaf as the section "pytree" describes it, doc/format/pytree.md.
type pytreeLeaf struct {
	Path    string  `json:"path"`
	Kind    string  `json:"kind"`
	Dtype   string  `json:"dtype"`
	Shape   []int64 `json:"shape"`
	Length  *int64  `json:"length"`
	Section string  `json:"section"`
	Offset  int64   `json:"offset"`
	Value   any     `json:"value"`
	Hex     *string `json:"hex"` // in the index: the bytes
}

var (
	errNoPytree  = errors.New("no section pytree")
	errNewPytree = errors.New("of a newer version")
	trailingBits = regexp.MustCompile(`^[a-z]+([0-9]+)$`)
)

// itemSize is the length of one element: what the name's digits say, at least a byte.
func itemSize(dtype string) (int64, error) {
	switch dtype {
	case "bool", "float8_e4m3fn", "float8_e5m2":
		return 1, nil
	case "datetime64[D]":
		return 8, nil
	}
	m := trailingBits.FindStringSubmatch(dtype)
	if m == nil {
		return 0, fmt.Errorf("dtype %q", dtype)
	}
	bits, err := strconv.ParseInt(m[1], 10, 64)
	return (bits + 7) / 8, err
}

func parsePytree(sections []Section) ([]pytreeLeaf, error) {
	data := map[string][]byte{}
	for _, s := range sections {
		data[s.Name] = s.Data
	}
	var doc struct {
		Version int          `json:"version"`
		Leaves  []pytreeLeaf `json:"leaves"`
	}
	text, ok := data["pytree"]
	if !ok {
		return nil, errNoPytree
	}
	if err := json.Unmarshal(text, &doc); err != nil {
		return nil, err
	}
	if doc.Version != 1 {
		return nil, errNewPytree
	}
	for i := range doc.Leaves {
		if err := doc.Leaves[i].read(data); err != nil {
			return nil, fmt.Errorf("leaf %q: %w", doc.Leaves[i].Path, err)
		}
	}
	return doc.Leaves, nil
}

// read finds the bytes of a leaf, and leaves what the index has.
func (l *pytreeLeaf) read(data map[string][]byte) error {
	size := int64(1)
	switch l.Kind {
	case "int", "float", "complex", "bool", "str", "none":
		return nil
	case "bytes":
		size = *l.Length
	case "jax", "key", "numpy", "numpy.scalar":
		n, err := itemSize(l.Dtype)
		if err != nil {
			return err
		}
		size = n
		for _, n := range l.Shape {
			if n < 0 {
				return fmt.Errorf("shape %v", l.Shape)
			}
			size *= n
		}
	default:
		return fmt.Errorf("kind %q", l.Kind)
	}
	b, ok := data[l.Section]
	if !ok || l.Offset+size > int64(len(b)) || l.Section != "packed" && (l.Offset != 0 || size != int64(len(b))) {
		return fmt.Errorf("%d bytes at %d of section %q, which has %d", size, l.Offset, l.Section, len(b))
	}
	text := hex.EncodeToString(b[l.Offset : l.Offset+size])
	l.Hex, l.Section, l.Offset, l.Length = &text, "", 0, nil
	return nil
}

// TestPytreeVectors reads what the Python package writes, by the page alone.
func TestPytreeVectors(t *testing.T) {
	const dir = "../testdata/vectors/pytree"
	var index struct {
		Vectors []struct {
			File   string       `json:"file"`
			Class  string       `json:"class"`
			Leaves []pytreeLeaf `json:"leaves"`
		} `json:"vectors"`
	}
	b, err := os.ReadFile(filepath.Join(dir, "index.json"))
	if err == nil {
		err = json.Unmarshal(b, &index)
	}
	if err != nil || len(index.Vectors) < 10 {
		t.Fatalf("%d vectors: %v", len(index.Vectors), err)
	}
	for _, v := range index.Vectors {
		t.Run(v.File, func(t *testing.T) {
			data, err := os.ReadFile(filepath.Join(dir, v.File))
			if err != nil {
				t.Fatal(err)
			}
			sections, err := ParseSections(data)
			if err != nil {
				t.Fatal(err)
			}
			leaves, err := parsePytree(sections)
			class := "ok"
			switch {
			case errors.Is(err, errNoPytree):
				class = "not-ours"
			case errors.Is(err, errNewPytree):
				class = "too-new"
			case err != nil:
				class = "corrupt"
			}
			if class != v.Class {
				t.Fatalf("class %s (%v), want %s", class, err, v.Class)
			}
			got, _ := json.Marshal(leaves)
			want, _ := json.Marshal(v.Leaves)
			if class == "ok" && string(got) != string(want) {
				t.Errorf("leaves\n%s\nwant\n%s", got, want)
			}
		})
	}
}
