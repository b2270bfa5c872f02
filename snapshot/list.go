package snapshot

import (
	"cmp"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/usp-project/usp/internal/vfs"
)

func baseName(path string) string { return filepath.Base(path) }

// ParseFileName is the reverse of FileName; ok is false for any other name.
func ParseFileName(name string) (step uint64, generation uint32, ok bool) {
	s, g, found := strings.Cut(strings.TrimSuffix(name, ".snap"), "-")
	step, err1 := strconv.ParseUint(s, 10, 64)
	gen, err2 := strconv.ParseUint(g, 10, 32)
	if !found || err1 != nil || err2 != nil || FileName(step, uint32(gen)) != name {
		return 0, 0, false
	}
	return step, uint32(gen), true
}

// List returns the snapshots of a directory by ascending step and generation.
// It reads and checks headers and indexes only; a file that fails that is listed
// with Err. Other names, such as temporary files, are passed over.
func List(fsys vfs.FS, dir string) ([]Info, error) {
	entries, err := fsys.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("snapshot: %w", err)
	}
	var infos []Info
	for _, d := range entries {
		step, generation, ok := ParseFileName(d.Name())
		if !ok {
			continue
		}
		info := Info{Name: d.Name(), Meta: Meta{Step: step, Generation: generation}}
		path := filepath.Join(dir, d.Name())
		r, err := open(fsys, path)
		if err != nil {
			info.Err = err
		} else {
			r.close()
			info = r.info()
			if info.Step != step || info.Generation != generation {
				info.Err = &CorruptError{path, 0, fmt.Errorf("named for step %d generation %d but holds step %d generation %d",
					step, generation, info.Step, info.Generation)}
			}
		}
		infos = append(infos, info)
	}
	slices.SortFunc(infos, byStep)
	return infos, nil
}

func byStep(a, b Info) int {
	return cmp.Or(cmp.Compare(a.Step, b.Step), cmp.Compare(a.Generation, b.Generation))
}

// Retention says which snapshots to keep. The zero value keeps all.
type Retention struct {
	KeepLast  int           `json:"keep_last"`  // keep the newest n; 0: no such rule
	KeepEvery uint64        `json:"keep_every"` // also keep the oldest one of every block of n steps; 0: no such rule
	MaxAge    time.Duration `json:"max_age"`    // what is older goes unless KeepLast holds it; 0: no limit
}

// Plan returns the snapshots that r gives up at the time now, in the order in
// which they are to be removed, without touching anything: those that refer to
// others first, newest first, then the others, oldest first. Whatever r says, there
// stay
//
//   - the newest snapshot with Verified set, the newest older one that needs no file
//     that it needs too, so that no single damage takes both, and all that is newer;
//   - every file that one that stays refers to;
//   - files with Err set: damaged ones are evidence.
//
// Planning again after some were removed gives up only the rest.
//
// Before removing one, the caller must have the newer ones durable and in the
// digest log, and the removal itself logged.
func Plan(infos []Info, r Retention, now time.Time) []Info {
	if r.KeepLast <= 0 && r.KeepEvery == 0 && r.MaxAge <= 0 {
		return nil
	}
	needed := map[string]bool{}
	all := slices.DeleteFunc(slices.Clone(infos), func(i Info) bool {
		if i.Err != nil {
			need(needed, i)
		}
		return i.Err != nil
	})
	slices.SortFunc(all, byStep)
	var referring, whole []Info
	least := floor(all)
	for i, info := range slices.Backward(all) { // what refers to a base is newer
		switch {
		case i >= least || r.keeps(all, i, now) || needed[info.Name]:
			need(needed, info)
		case len(info.Bases) > 0:
			referring = append(referring, info)
		default:
			whole = append(whole, info)
		}
	}
	slices.Reverse(whole)
	return append(referring, whole...)
}

// keeps says whether the rules alone keep all[i].
func (r Retention) keeps(all []Info, i int, now time.Time) bool {
	info := all[i]
	switch {
	case len(all)-i <= r.KeepLast:
		return true
	case r.MaxAge > 0 && now.Sub(info.Created) > r.MaxAge:
		return false
	case r.KeepEvery == 0:
		return r.KeepLast <= 0
	}
	return i == 0 || all[i-1].Step/r.KeepEvery != info.Step/r.KeepEvery
}

func need(needed map[string]bool, i Info) {
	for _, b := range i.Bases {
		needed[b.Name] = true
	}
}

// floor is the index of the second of two verified snapshots without a file in
// common, or 0: only what is before it may go.
func floor(all []Info) int {
	var newest map[string]bool
	for i, info := range slices.Backward(all) {
		if !info.Verified {
			continue
		}
		files := map[string]bool{info.Name: true}
		need(files, info)
		if newest == nil {
			newest = files
			continue
		}
		shared := false
		for name := range files {
			shared = shared || newest[name]
		}
		if !shared {
			return i
		}
	}
	return 0
}
