package tensorboard_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/usp-project/usp/sink"
	"github.com/usp-project/usp/sink/sinktest"
	"github.com/usp-project/usp/sink/tensorboard"
)

// shown is what an event file has of the records, and how many it says are lost.
func shown(t *testing.T, dir string) (rows []sinktest.Row, lost uint64) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*", "*tfevents*"))
	check(t, err)
	if len(files) == 0 {
		return nil, 0
	}
	if len(files) > 1 {
		t.Fatalf("more than one file: %q", files)
	}
	b, err := os.ReadFile(files[0])
	check(t, err)
	var generation uint32
	begin := uint64(1) // step of the first record of the generation, which a START says of the later ones
	for _, e := range decode(t, b)[1:] {
		if e.start != "" {
			begin = uint64(e.step)
			if _, err := fmt.Sscanf(e.start, "generation %d", &generation); err != nil {
				t.Fatalf("a start says %q", e.start)
			}
			continue
		}
		if e.values[0].tag == "usp/lost" {
			lost = uint64(e.values[0].number)
			continue
		}
		rows = append(rows, sinktest.Row{Generation: generation, Seq: uint64(e.step) - begin, Step: uint64(e.step)})
	}
	return rows, lost
}

func TestConformance(t *testing.T) {
	sinktest.Test(t, func(t *testing.T) sinktest.Destination {
		dir := filepath.Join(t.TempDir(), "logs")
		disk := sinktest.NewDisk()
		return sinktest.Destination{
			Open:  func() sink.Sink { return tensorboard.New(tensorboard.Options{Dir: dir, FS: disk}) },
			Fault: disk.Fault, Blocks: true,
			Held: func(t *testing.T) (all [][]byte) {
				files, err := filepath.Glob(filepath.Join(dir, "*", "*"))
				check(t, err)
				for _, name := range files {
					b, err := os.ReadFile(name)
					check(t, err)
					all = append(all, b)
				}
				return all
			},
			Rows: func(t *testing.T) []sinktest.Row { rows, _ := shown(t, dir); return rows },
			Lost: func(t *testing.T) uint64 { _, lost := shown(t, dir); return lost },
		}
	})
}
