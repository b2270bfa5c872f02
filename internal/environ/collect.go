package environ

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"regexp"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/cpu"
)

// usp is the path of this module.
const usp = "github.com/usp-project/usp"

// Collect describes this process. It reads the build's own record, the processor's features and, on Linux, /proc/cpuinfo;
// what it cannot find out is left out. Of environment variables it looks at GODEBUG alone, and there at the switches of
// processor features. It names neither machine nor user, no path, and no module that is not on its list.
func Collect() map[string]string {
	p := process{godebug: os.Getenv("GODEBUG"), cpuinfo: readCPUInfo(), release: release(), features: features()}
	p.build, _ = debug.ReadBuildInfo()
	return p.describe()
}

// process is where an environment comes from.
type process struct {
	build    *debug.BuildInfo // nil if the binary has none
	godebug  string
	cpuinfo  []byte
	release  string
	features []string
}

func (p *process) describe() map[string]string {
	m := map[string]string{
		"goos": runtime.GOOS, "goarch": runtime.GOARCH, "go.version": runtime.Version(), "go.compiler": runtime.Compiler,
		"gomaxprocs": strconv.Itoa(runtime.GOMAXPROCS(0)), "cpu.count": strconv.Itoa(runtime.NumCPU()),
		"cpu.features": strings.Join(p.features, " "), "cpu.model": cpuModel(p.cpuinfo),
		"godebug": processorSwitches(p.godebug), "os.release": p.release,
	}
	if p.build != nil {
		buildSettings(m, p.build)
		modules(m, p.build)
	}
	for k, v := range m {
		if v == "" {
			delete(m, k)
		}
	}
	m, _ = Clean(m)
	return m
}

// processorSwitches keeps of GODEBUG what turns processor features on and off, in its order: the last one counts.
func processorSwitches(godebug string) string {
	known := regexp.MustCompile(`\Acpu\.[a-z0-9_]{1,20}=(on|off)\z`)
	var list []string
	for _, s := range strings.Split(godebug, ",") {
		if known.MatchString(s) {
			list = append(list, s)
		}
	}
	return strings.Join(list, ",")
}

// buildSettings takes from the build's record what changes the code that was made. Values that may hold paths, such as
// flags for the C compiler, are not taken; of compiler flags and tags only those known to matter.
func buildSettings(m map[string]string, info *debug.BuildInfo) {
	plain := map[string]string{"GOAMD64": "goamd64", "GOARM64": "goarm64", "CGO_ENABLED": "cgo", "-race": "race", "GOEXPERIMENT": "go.experiment"}
	for _, s := range info.Settings {
		switch s.Key {
		case "-gcflags":
			m["go.gcflags"] = only(s.Value, "-N", "-l", "-B")
		case "-tags":
			m["go.tags"] = only(s.Value, "noasm", "purego", "safe", "bounds")
		case "-pgo":
			if s.Value != "" && s.Value != "off" {
				m["go.pgo"] = "on" // the value is the path of a profile, which changes what is inlined
			}
		case "vcs.revision":
			m[owner(info)+".revision"] = s.Value
		case "vcs.modified":
			m[owner(info)+".modified"] = s.Value
		default:
			if k, ok := plain[s.Key]; ok {
				m[k] = s.Value
			}
		}
	}
	m[owner(info)+".version"] = info.Main.Version
}

// owner says whether the binary's own module is usp's, or that of a program that uses it.
func owner(info *debug.BuildInfo) string {
	if info.Main.Path == usp {
		return "usp"
	}
	return "program"
}

// only keeps the words of a setting that are listed, without the package pattern before the first.
func only(value string, words ...string) string {
	var list []string
	for _, w := range strings.FieldsFunc(value, func(r rune) bool { return r == ' ' || r == ',' }) {
		if _, after, ok := strings.Cut(w, "="); ok {
			w = after
		}
		if slices.Contains(words, w) {
			list = append(list, w)
		}
	}
	return strings.Join(list, " ")
}

// modules takes the versions of modules that compute, and of all together a short digest: enough to see that something
// differs, without naming what a program is made of.
func modules(m map[string]string, info *debug.BuildInfo) {
	named := map[string]string{
		usp: "usp.version", "golang.org/x/sys": "module.x_sys", "golang.org/x/exp": "module.x_exp",
		"gonum.org/v1/gonum": "module.gonum", "gorgonia.org/gorgonia": "module.gorgonia", "gorgonia.org/tensor": "module.tensor",
		"github.com/chewxy/math32": "module.math32", "github.com/viterin/vek": "module.vek",
	}
	var lines []string
	for _, d := range info.Deps {
		path, version, sum := d.Path, d.Version, d.Sum
		if r := d.Replace; r != nil {
			version, sum = "replaced "+r.Version, r.Sum
		}
		if k, ok := named[path]; ok {
			m[k] = strings.TrimSpace(version)
		}
		lines = append(lines, fmt.Sprintf("%s %s %s\n", path, version, sum))
	}
	if len(lines) > 0 {
		slices.Sort(lines)
		sum := sha256.Sum256([]byte(strings.Join(lines, "")))
		m["go.deps"] = hex.EncodeToString(sum[:8])
	}
}

// features lists the processor features that numerical code chooses by, as far as GODEBUG leaves them on.
func features() []string {
	x, a := &cpu.X86, &cpu.ARM64
	all := []struct {
		name string
		has  bool
	}{
		{"sse3", x.HasSSE3}, {"ssse3", x.HasSSSE3}, {"sse4.1", x.HasSSE41}, {"sse4.2", x.HasSSE42}, {"avx", x.HasAVX}, {"avx2", x.HasAVX2},
		{"f16c", x.HasF16C}, {"fma", x.HasFMA}, {"bmi2", x.HasBMI2}, {"avxvnni", x.HasAVXVNNI},
		{"avx512f", x.HasAVX512F}, {"avx512cd", x.HasAVX512CD}, {"avx512bw", x.HasAVX512BW}, {"avx512dq", x.HasAVX512DQ}, {"avx512vl", x.HasAVX512VL},
		{"avx512ifma", x.HasAVX512IFMA}, {"avx512vnni", x.HasAVX512VNNI}, {"avx512bf16", x.HasAVX512BF16},
		{"amx-tile", x.HasAMXTile}, {"amx-int8", x.HasAMXInt8}, {"amx-bf16", x.HasAMXBF16},
		{"fp", a.HasFP}, {"asimd", a.HasASIMD}, {"fphp", a.HasFPHP}, {"asimdhp", a.HasASIMDHP}, {"asimdrdm", a.HasASIMDRDM}, {"asimddp", a.HasASIMDDP},
		{"asimdfhm", a.HasASIMDFHM}, {"fcma", a.HasFCMA}, {"jscvt", a.HasJSCVT}, {"i8mm", a.HasI8MM}, {"sve", a.HasSVE}, {"sve2", a.HasSVE2},
	}
	var list []string
	for _, f := range all {
		if f.has {
			list = append(list, f.name)
		}
	}
	return list
}

// readCPUInfo returns the beginning of Linux's list of processors, or nothing.
func readCPUInfo() []byte {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return nil
	}
	defer f.Close()
	b, _ := io.ReadAll(io.LimitReader(f, 64<<10)) // of many processors the first says enough
	return b
}

// cpuModel names the first processor in the text of /proc/cpuinfo: by its name, or, on arm64, by its numbers.
func cpuModel(info []byte) string {
	first := map[string]string{}
	for line := range bytes.Lines(info) {
		k, v, ok := strings.Cut(string(line), ":")
		if k = strings.TrimSpace(k); ok && first[k] == "" {
			first[k] = strings.TrimSpace(v)
		}
	}
	if name := first["model name"]; name != "" {
		if first["cpu family"] != "" && first["model"] != "" {
			name = fmt.Sprintf("%s (family %s model %s stepping %s)", name, first["cpu family"], first["model"], first["stepping"])
		}
		return name
	}
	if first["CPU implementer"] == "" {
		return ""
	}
	return fmt.Sprintf("implementer %s part %s variant %s revision %s", first["CPU implementer"], first["CPU part"], first["CPU variant"], first["CPU revision"])
}
