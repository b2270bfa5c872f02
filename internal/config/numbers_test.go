package config

import (
	"slices"
	"strings"
	"testing"
)

func TestLevels(t *testing.T) {
	for _, c := range []struct {
		text string // as in the file
		env  string
		want []int
		fail string
	}{
		{"[]", "", []int{}, ""},
		{"[6, 22, 50]", "6, 22,50", []int{6, 22, 50}, ""},
		{"[22, 6]", "22,6", nil, "ascending"},
		{"[6, 6]", "6,6", nil, "ascending"},
		{"[0]", "0", nil, "none of 2, 6, … 50"},
		{"[7]", "7", nil, "none of 2, 6, … 50"},
		{`["8"]`, "eight", nil, "not a whole number"},
	} {
		for _, from := range []string{"file", "environment"} {
			cfg := Default()
			list := fieldsOf(&cfg)
			f := &list[slices.IndexFunc(list, func(f field) bool { return f.name == "digest.levels" })]
			var err error
			if from == "environment" {
				err = f.setText(c.env)
			} else if _, errs := decode(&cfg, "usp.toml", []byte("[digest]\nlevels = "+c.text+"\n")); len(errs) > 0 {
				err = errs[0]
			}
			if err == nil {
				err = f.check()
			}
			if c.fail == "" && (err != nil || !slices.Equal(cfg.Digest.Levels, c.want)) {
				t.Errorf("%s %s: %v, %v", from, c.text, cfg.Digest.Levels, err)
			}
			if c.fail != "" && (err == nil || !strings.Contains(err.Error(), c.fail)) {
				t.Errorf("%s %s: error %v, want one saying %q", from, c.text, err, c.fail)
			}
		}
	}
}
