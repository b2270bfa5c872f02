package cli

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/usp-project/usp/internal/fleet"
	"github.com/usp-project/usp/internal/priority"
	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/internal/systemd"
	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/internal/web"
)

const serveLong = `Show the runs in a browser: the list of runs, each run's telemetry over any range of
its steps, followed while it is recorded, and two runs beside each other. No run is
changed by it. What long runs are drawn from is made when it is missing, with the
lowest priority, and kept in your cache directory (serve.cache, serve.cache_size).

By default it listens on this machine only, on port 8765 or, if that is taken, one of
the next ones; port 0 takes any that is free. To listen for other machines it needs a
certificate and a file with a token, which a browser is asked for and other programs
send as "Authorization: Bearer TOKEN". Requests under a host name that was not given
with --host are refused, so that no page elsewhere can read through your browser.

--fleet shows beside them the runs of all machines that mirror theirs in a stream of NATS
JetStream, under /fleet. Exit 75 if the server does not answer, 10 if it has no such
stream, 1 if it does not take the credentials (jetstream.credentials_file).

SIGHUP has certificate and token read again; if one is wrong, both stay as they were.
/metrics is for Prometheus: the newest telemetry of every run that is recorded.
/healthz says that it runs, /readyz whether it can show runs, and why not. --control
makes a socket that only you can open, for profiles of the server itself:

  curl --unix-socket FILE http://usp/debug/pprof/heap > heap.pprof`

const (
	servePort  = 8765
	servePorts = 20 // that are tried
	mostToken  = 4 << 10
)

type serveFlags struct {
	listen    string
	cert, key string
	tokenFile string
	hosts     []string
	control   string
}

func (a *app) serveCommand() *cobra.Command {
	var f serveFlags
	cmd := &cobra.Command{
		Use: "serve", Short: "Show the runs in a browser", Long: serveLong, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.serve(cmd.Context(), f) },
	}
	fl := cmd.Flags()
	fl.StringVar(&f.listen, "listen", "", "`address` and port to listen on (default 127.0.0.1:8765 or the next that is free)")
	fl.StringVar(&f.cert, "tls-cert", "", "PEM `file` of the certificate, then those of its issuers")
	fl.StringVar(&f.key, "tls-key", "", "PEM `file` of the certificate's key")
	fl.StringVar(&f.tokenFile, "token-file", "", "`file` with the token that requests must show")
	fl.StringArrayVar(&f.hosts, "host", nil, "further host `name` under which requests may come")
	a.setting(cmd, false, "fleet", "", "serve.fleet", "show also the runs in the stream of a NATS `server`, nats://HOST:PORT")
	fl.StringVar(&f.control, "control", "", "`file` of a socket for profiles of the server")
	return cmd
}

// serving is the line that usp serve --json prints when it is ready.
type serving struct {
	Type    string `json:"type"`
	URL     string `json:"url"`
	Address string `json:"address"`
	PID     int    `json:"pid"`
	Control string `json:"control,omitempty"`
	Fleet   string `json:"fleet,omitempty"` // where the runs of the fleet are shown
}

func (a *app) serve(ctx context.Context, f serveFlags) error {
	token, err := a.checkServe(&f)
	if err != nil {
		return err
	}
	runs, err := a.servedFleet(ctx)
	if err != nil {
		return err
	}
	s, err := web.New(a.webOptions(f, token, runs))
	if err != nil {
		return usageError(fmt.Errorf("--token-file %s: %w", f.tokenFile, err))
	}
	certificate, err := loadCertificate(f)
	if err != nil {
		return err
	}
	l, err := listen(f.listen)
	if err != nil {
		return err
	}
	address := l.Addr().String()
	var current atomic.Pointer[tls.Certificate]
	if certificate != nil {
		current.Store(certificate)
		get := func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return current.Load(), nil }
		l = tls.NewListener(l, &tls.Config{GetCertificate: get, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}})
	}
	if f.control != "" {
		end, err := a.control(f.control)
		if err != nil {
			return errors.Join(err, l.Close())
		}
		defer end()
	}
	if err := a.sayServing(f, address); err != nil {
		return errors.Join(err, l.Close())
	}
	manager := systemd.FromEnvironment(a.env, os.Getpid())
	beside, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	if runs != nil {
		wg.Go(func() { runs.Run(beside) })
	}
	wg.Go(func() { manager.Watchdog(beside, func() bool { return answers(address) }) })
	wg.Go(func() { a.reloads(beside, manager, func() error { return a.reload(f, s, &current) }) })
	if err := manager.Notify(systemd.Ready, systemd.Status("listens on "+address)); err != nil {
		a.logger().Warn("the service manager does not know that this is ready", "err", err)
	}
	err = s.Run(ctx, l)
	_ = manager.Notify(systemd.Stopping) // a manager that is gone does not care
	stop()
	wg.Wait()
	if err != nil {
		return err
	}
	return context.Cause(ctx)
}

// servedFleet is the fleet that is shown too, after a first look at it; nil: none is.
func (a *app) servedFleet(ctx context.Context) (*fleet.Fleet, error) {
	if a.cfg.Serve.Fleet == "" {
		return nil, nil
	}
	f, err := a.fleet()
	if err != nil {
		return nil, err
	}
	if err := f.Look(ctx); err != nil {
		f.Close()
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, a.fleetError(err)
	}
	return f, nil
}

// answers says whether the server takes connections.
func answers(address string) bool {
	c, err := net.DialTimeout("tcp", address, time.Second)
	if err != nil {
		return false
	}
	return c.Close() == nil
}

// loadCertificate reads the certificate that the flags name; nil if they name none.
func loadCertificate(f serveFlags) (*tls.Certificate, error) {
	if f.cert == "" {
		return nil, nil
	}
	c, err := tls.LoadX509KeyPair(f.cert, f.key)
	if err != nil {
		return nil, usageError(fmt.Errorf("--tls-cert %s, --tls-key %s: %w", f.cert, f.key, err))
	}
	return &c, nil
}

// reloads reads certificate and token again at each SIGHUP, which then no more ends the program. What is wrong is said, and
// the old ones stay.
func (a *app) reloads(ctx context.Context, manager systemd.Manager, reload func() error) {
	hup := make(chan os.Signal, 1)
	signal.Reset(syscall.SIGHUP)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	for {
		select {
		case <-ctx.Done():
			return
		case <-hup:
		}
		_ = manager.Notify(systemd.Reloading(monotonic())) // a manager that is gone does not care
		if err := reload(); err != nil {
			fmt.Fprintf(a.err, "usp: nothing is loaded again, what was stays: %v\n", err)
		} else {
			fmt.Fprintln(a.err, "usp: certificate and token are loaded again")
		}
		_ = manager.Notify(systemd.Ready)
	}
}

// reload replaces certificate and token by what their files hold now, both or none.
func (a *app) reload(f serveFlags, s *web.Server, current *atomic.Pointer[tls.Certificate]) error {
	certificate, err := loadCertificate(f)
	if err != nil {
		return err
	}
	if f.tokenFile != "" {
		token, err := a.readToken(f.tokenFile)
		if err == nil {
			err = s.SetToken(token)
		}
		if err != nil {
			return err
		}
	}
	if certificate != nil {
		current.Store(certificate)
	}
	return nil
}

// checkServe checks the flags and reads the token.
func (a *app) checkServe(f *serveFlags) (token string, err error) {
	host, _, err := net.SplitHostPort(f.listen)
	if f.listen != "" && err != nil {
		return "", usageError(fmt.Errorf("--listen %s: want an address and a port, such as 127.0.0.1:%d or :0", f.listen, servePort))
	}
	if (f.cert == "") != (f.key == "") {
		return "", usageError(errors.New("--tls-cert and --tls-key go together"))
	}
	if f.tokenFile != "" {
		if token, err = a.readToken(f.tokenFile); err != nil {
			return "", err
		}
	}
	if f.listen != "" && !loopback(host) {
		switch {
		case f.cert == "":
			return "", usageError(fmt.Errorf("--listen %s: other machines can reach this address, so what is sent must be encrypted: give --tls-cert and --tls-key, or listen on 127.0.0.1", f.listen))
		case token == "":
			return "", usageError(fmt.Errorf("--listen %s: other machines can reach this address, so requests must show a token: give --token-file, or listen on 127.0.0.1", f.listen))
		}
	}
	return token, nil
}

// loopback says whether only this machine can reach an address. A name other than localhost may lead anywhere.
func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}

// readToken reads the first line of a file that nobody else may read.
func (a *app) readToken(file string) (string, error) {
	info, err := a.fs.Stat(file)
	if err != nil {
		return "", fmt.Errorf("--token-file: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return "", usageError(fmt.Errorf("--token-file %s: others may read it; chmod 600 %s", file, file))
	}
	b, err := vfs.ReadFile(a.fs, file, mostToken)
	if err != nil {
		return "", fmt.Errorf("--token-file: %w", err)
	}
	token := strings.TrimSpace(string(b))
	if token == "" || strings.ContainsAny(token, " \t\r\n") {
		return "", usageError(fmt.Errorf("--token-file %s: want one line with the token; make one with: openssl rand -hex 32", file))
	}
	return token, nil
}

func (a *app) webOptions(f serveFlags, token string, runs *fleet.Fleet) web.Options {
	hosts := f.hosts
	if host, _, err := net.SplitHostPort(f.listen); err == nil && host != "" {
		if ip, err := netip.ParseAddr(host); err != nil || !ip.IsUnspecified() {
			hosts = append(hosts, host)
		}
	}
	cache, fault := a.openCache()
	return web.Options{
		Cache: cache, CacheFault: fault, Yield: priority.LowerThread,
		FS: a.fs, Runs: a.cfg.Run.Dir, Now: a.now, Logger: a.logger(), Hosts: hosts, Token: token, Version: versions(), Metrics: a.runMetrics().handler(runs), Fleet: runs,
		Status: func(r *rundir.Run) string { return a.runRow(r).Status },
		Live: func(id string) *web.Live {
			l := a.live(id)
			if l == nil {
				return nil
			}
			return &web.Live{Emitted: l.Emitted, Stored: l.Stored, Lost: l.Lost, Held: l.Held, Fault: l.Fault,
				EmitP50: l.emits.Quantile(.5), EmitP99: l.emits.Quantile(.99), EmitMax: l.emits.Longest}
		},
		Experts: func(m *rundir.Manifest) (names []string) {
			for _, e := range producerOf(m).Experts {
				names = append(names, e.Name)
			}
			return names
		},
	}
}

// listen opens the address that was asked for; without one, the first port that is free.
func listen(address string) (net.Listener, error) {
	if address != "" {
		l, err := net.Listen("tcp", address)
		if errors.Is(err, syscall.EADDRINUSE) {
			return nil, fmt.Errorf("--listen %s: another program listens there; leave the flag out to take the next port, or give port 0 to take any", address)
		}
		if err != nil {
			return nil, fmt.Errorf("--listen: %w", err)
		}
		return l, nil
	}
	for port := servePort; ; port++ {
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err == nil {
			return l, nil
		}
		if !errors.Is(err, syscall.EADDRINUSE) {
			return nil, fmt.Errorf("listen: %w", err)
		}
		if port == servePort+servePorts-1 {
			return nil, fmt.Errorf("other programs listen on all ports from %d to %d; give one with --listen 127.0.0.1:PORT", servePort, port)
		}
	}
}

func (a *app) sayServing(f serveFlags, address string) error {
	scheme := "http"
	if f.cert != "" {
		scheme = "https"
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	if ip, err := netip.ParseAddr(host); err == nil && ip.IsUnspecified() {
		host = "localhost"
		if len(f.hosts) > 0 {
			host = f.hosts[0]
		}
	}
	url := scheme + "://" + net.JoinHostPort(host, port) + "/"
	line := serving{Type: "serving", URL: url, Address: address, PID: os.Getpid(), Control: f.control}
	if a.cfg.Serve.Fleet != "" {
		line.Fleet = url + "fleet"
	}
	if a.json {
		return a.printJSON(line, false)
	}
	fmt.Fprintf(a.out, "runs of %s are shown at %s\n", display(a.cfg.Run.Dir), url)
	if line.Fleet != "" {
		fmt.Fprintf(a.out, "runs of the stream %s are shown at %s\n", a.cfg.JetStream.Stream, line.Fleet)
	}
	if !a.quiet {
		fmt.Fprintln(a.err, "usp: end with Ctrl-C")
	}
	return nil
}

// control serves profiles of this process on a socket that only its owner can open. It is made in a directory that
// only the owner can enter, so that at no moment anyone else can.
func (a *app) control(file string) (end func(), err error) {
	dir, err := os.MkdirTemp(filepath.Dir(file), ".usp-control-")
	if err != nil {
		return nil, fmt.Errorf("--control: %w", err)
	}
	defer os.RemoveAll(dir)
	inside := filepath.Join(dir, "s")
	l, err := net.Listen("unix", inside)
	if err != nil {
		return nil, fmt.Errorf("--control: %w", err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // it will have another name
	if err = errors.Join(os.Chmod(inside, 0o600), removeSocket(file)); err == nil {
		err = os.Rename(inside, file)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("--control: %w", err), l.Close())
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(l) // until end closes it
	}()
	return func() {
		_ = srv.Close()
		<-done
		_ = os.Remove(file)
	}, nil
}

// removeSocket removes the socket of a server that died; what is no socket, or one that someone listens on, stays.
func removeSocket(file string) error {
	info, err := os.Lstat(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != os.ModeSocket {
		return fmt.Errorf("%s is there and is no socket", file)
	}
	if c, err := net.DialTimeout("unix", file, time.Second); err == nil {
		_ = c.Close()
		return fmt.Errorf("another program listens on %s", file)
	}
	return os.Remove(file)
}
