package config

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Duration is a time.Duration written as in Go: "50ms", "1h30m".
type Duration time.Duration

// String implements fmt.Stringer.
func (d Duration) String() string { return time.Duration(d).String() }

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("%.40q is not a duration; write one with its unit, such as \"50ms\" or \"1h30m\"", text)
	}
	*d = Duration(v)
	return nil
}

// Size is a number of bytes, written with a unit of 1024 (KiB, MiB, GiB, TiB)
// or 1000 (kB, MB, GB, TB): "64MiB".
type Size int64

// String writes the size exactly, in the largest unit of 1024 that divides it.
func (s Size) String() string {
	if s == 0 {
		return "0B"
	}
	for shift, unit := 40, []string{"TiB", "GiB", "MiB", "KiB"}; shift > 0; shift, unit = shift-10, unit[1:] {
		if s%(1<<shift) == 0 {
			return strconv.FormatInt(int64(s>>shift), 10) + unit[0]
		}
	}
	return strconv.FormatInt(int64(s), 10) + "B"
}

// MarshalText implements encoding.TextMarshaler.
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Size) UnmarshalText(text []byte) error {
	v, err := parseSize(string(text))
	if err != nil {
		return fmt.Errorf("%.40q %w", text, err)
	}
	*s = v
	return nil
}

func parseSize(text string) (Size, error) {
	digits := strings.TrimRight(text, "BKMGTikb")
	n, err := strconv.ParseInt(strings.TrimSpace(digits), 10, 64)
	if errors.Is(err, strconv.ErrRange) {
		return 0, errors.New("is too large")
	}
	unit := unitOf(text[len(digits):])
	if err != nil || unit == 0 || n < 0 {
		return 0, errors.New("is not a size; write one such as \"64MiB\" or \"512KiB\"")
	}
	if n > math.MaxInt64/unit {
		return 0, errors.New("is too large")
	}
	return Size(n * unit), nil
}

// unitOf returns the bytes in a unit; 0 for an unknown one.
func unitOf(name string) int64 {
	switch name {
	case "", "B":
		return 1
	case "KiB":
		return 1 << 10
	case "MiB":
		return 1 << 20
	case "GiB":
		return 1 << 30
	case "TiB":
		return 1 << 40
	case "kB":
		return 1e3
	case "MB":
		return 1e6
	case "GB":
		return 1e9
	case "TB":
		return 1e12
	}
	return 0
}
