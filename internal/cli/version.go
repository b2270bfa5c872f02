package cli

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"github.com/usp-project/usp/digestlog"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/segment"
)

// formatVersion is the version of a format on disk or in memory that this program writes. doc/format has a page for each.
type formatVersion struct {
	name    string
	version int
}

func formatVersions() []formatVersion {
	return []formatVersion{{"ring", 1}, {"segment", segment.Version}, {"digestlog", digestlog.EntryVersion}, {"snapshot", 1}, {"run", rundir.Version}}
}

// version is the module's, or the revision it was built from.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	rev, dirty := "", ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			rev = s.Value[:min(12, len(s.Value))]
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = "+dirty"
		}
	}
	if rev == "" {
		return "devel"
	}
	return "devel-" + rev + dirty
}

// versions is what usp version --json prints.
func versions() map[string]any {
	formats := map[string]int{}
	for _, f := range formatVersions() {
		formats[f.name] = f.version
	}
	return map[string]any{"version": version(), "go": runtime.Version(), "os": runtime.GOOS, "arch": runtime.GOARCH, "formats": formats}
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version of usp and of its formats", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if a.json {
				return a.printJSON(versions(), true)
			}
			text := []string{}
			for _, f := range formatVersions() {
				text = append(text, fmt.Sprintf("%s %d", f.name, f.version))
			}
			fmt.Fprintf(a.out, "usp %s %s %s/%s\n", version(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
			fmt.Fprintf(a.out, "formats: %s\n", strings.Join(text, ", "))
			return nil
		},
	}
}
