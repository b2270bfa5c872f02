// Package web holds usp serve against a real browser: what it draws, how soon it follows a run, whether it works with the
// keyboard, without JavaScript and for people who do not see it. Its tests need Chromium and, for accessibility, axe-core,
// and skip what they lack.
package web

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/chromedp/chromedp"
)

// Build compiles usp into a directory.
func Build(ctx context.Context, dir string) (usp string, err error) {
	usp = filepath.Join(dir, "usp")
	root, err := repository()
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-o", usp, "./cmd/usp")
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build ./cmd/usp: %w\n%s", err, out)
	}
	return usp, nil
}

// repository is the directory of usp's own module.
func repository() (string, error) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/usp-project/usp").Output()
	if err != nil {
		return "", fmt.Errorf("go list -m: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}

// A Process is a running usp serve.
type Process struct {
	URL string // ends in a slash
	PID int

	cmd *exec.Cmd
	out io.Reader
}

// Serve starts usp serve in a directory.
func Serve(usp, dir string, args ...string) (*Process, error) {
	p := &Process{cmd: exec.Command(usp, append([]string{"serve", "--json", "--listen", "127.0.0.1:0"}, args...)...)}
	p.cmd.Dir, p.cmd.Stderr = dir, os.Stderr
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	lines := bufio.NewReader(out)
	line, err := lines.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, p)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("usp serve said %q: %w", line, err), p.cmd.Process.Kill(), p.cmd.Wait())
	}
	p.out = lines
	return p, nil
}

// End interrupts it, and says with which code it exits.
func (p *Process) End() (code int, err error) {
	if err := p.cmd.Process.Signal(syscall.SIGINT); err != nil {
		return 0, err
	}
	late := time.AfterFunc(10*time.Second, func() { _ = p.cmd.Process.Kill() })
	defer late.Stop()
	err = p.cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode(), nil
	}
	return 0, err
}

// ErrNoBrowser says that there is no Chromium.
var ErrNoBrowser = errors.New("no Chromium: install one (apt-get install chromium), or name it by CHROMIUM")

// Browser starts a headless Chromium, in a context that ends it.
func Browser(ctx context.Context, options ...chromedp.ExecAllocatorOption) (context.Context, context.CancelFunc, error) {
	path := os.Getenv("CHROMIUM")
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if found, err := exec.LookPath(name); path == "" && err == nil {
			path = found
		}
	}
	if path == "" {
		return nil, nil, ErrNoBrowser
	}
	o := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), chromedp.DisableGPU, chromedp.WindowSize(1200, 900))
	if os.Geteuid() == 0 {
		o = append(o, chromedp.NoSandbox) // which does not work for the superuser
	}
	allocator, stop := chromedp.NewExecAllocator(ctx, append(o, options...)...)
	tab, cancel := chromedp.NewContext(allocator)
	end := func() { cancel(); stop() }
	if err := chromedp.Do(tab); err != nil {
		end()
		return nil, nil, fmt.Errorf("start %s: %w", path, err)
	}
	return tab, end, nil
}
