package audit

import (
	"errors"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/segment"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/snapshot"
)

// inventory is what lies in a run directory.
type inventory struct {
	empty     bool // nothing in it at all, or only temporary files
	ours      bool // something in it is usp's
	manifests []uint32
	telemetry []segment.Info
	digests   []segment.Info
	snapshots []string
}

// takeInventory lists the run directory and puts every name in its place.
func takeInventory(fsys vfs.FS, dir rundir.Dir, f *Files) (inventory, error) {
	inv := inventory{empty: true}
	err := eachName(fsys, dir.Path(), "", f, func(name string, d fs.DirEntry) bool {
		inv.empty = false
		generation, manifest := rundir.ParseManifestName(name)
		switch {
		case d.IsDir() && (name == rundir.TelemetryDir || name == rundir.DigestDir || name == rundir.SnapshotDir || name == rundir.SinkDir):
		case d.IsDir():
			return false
		case manifest:
			inv.manifests = append(inv.manifests, generation)
			f.Manifests++
		case name == rundir.HeadFile, name == rundir.CosignedFile, name == rundir.ReserveFile:
		default:
			return false
		}
		inv.ours = true
		return true
	})
	if err == nil {
		inv.telemetry, err = segments(fsys, dir.Telemetry(), rundir.TelemetryDir, f)
	}
	if err == nil {
		inv.digests, err = segments(fsys, dir.Digests(), rundir.DigestDir, f)
	}
	if err == nil {
		err = eachName(fsys, dir.Snapshots(), rundir.SnapshotDir, f, func(name string, _ fs.DirEntry) bool {
			if _, _, ok := snapshot.ParseFileName(name); ok {
				inv.snapshots = append(inv.snapshots, name)
				return true
			}
			return false
		})
	}
	f.Telemetry, f.Digests, f.Snapshots = len(inv.telemetry), len(inv.digests), len(inv.snapshots)
	return inv, err
}

// eachName calls known for each name of a directory that is no leftover; names
// it refuses are unknown. A directory that is not there is empty.
func eachName(fsys vfs.FS, path, rel string, f *Files, known func(string, fs.DirEntry) bool) error {
	list, err := fsys.ReadDir(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, d := range list {
		name := filepath.Join(rel, d.Name())
		if info, err := d.Info(); err == nil && info.Mode().IsRegular() {
			f.Bytes += info.Size()
		}
		switch {
		case !d.IsDir() && isLeftover(d.Name()):
			f.Leftovers = append(f.Leftovers, name)
		case !known(d.Name(), d):
			f.Unknown = append(f.Unknown, name)
		}
	}
	return nil
}

// isLeftover says whether a name is one that crashes and repairs leave: a
// temporary file, NAME.seg.torn[.N], NAME.snap.orphan.
func isLeftover(name string) bool {
	if vfs.IsTemp(name) || strings.HasSuffix(name, rundir.SnapshotSuffix+rundir.OrphanSuffix) {
		return true
	}
	stem, rest, found := strings.Cut(name, rundir.TornSuffix)
	_, isSegment := segment.ParseName(stem)
	return found && isSegment && (rest == "" || rest[0] == '.')
}

func segments(fsys vfs.FS, path, rel string, f *Files) ([]segment.Info, error) {
	var infos []segment.Info
	err := eachName(fsys, path, rel, f, func(name string, d fs.DirEntry) bool {
		base, ok := segment.ParseName(name)
		if !ok || d.IsDir() {
			return false
		}
		info := segment.Info{Name: name, Path: filepath.Join(path, name), Base: base}
		if st, err := d.Info(); err == nil {
			info.Size = st.Size()
		}
		infos = append(infos, info) // names sort by base
		return true
	})
	return infos, err
}
