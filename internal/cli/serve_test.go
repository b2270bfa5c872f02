package cli

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/usp-project/usp/internal/vfs"
)

// serveIn runs usp serve in the test until the test ends, and returns what it says that it serves.
func serveIn(t *testing.T, f serveFlags) (s serving, stop func() error) {
	t.Helper()
	out, w := io.Pipe()
	a := &app{out: w, err: io.Discard, fs: vfs.OS(), now: time.Now, json: true, settings: nil, env: []string{"USP_RUN_DIR=" + t.TempDir(), "USP_SERVE_CACHE=" + filepath.Join(t.TempDir(), "cache")}}
	if err := a.loadConfig(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	done := make(chan error, 1)
	go func() {
		err := a.serve(ctx, f)
		w.CloseWithError(err)
		done <- err
	}()
	var once sync.Once
	var err error
	stop = func() error {
		once.Do(func() { cancel(signalError{syscall.SIGINT}); err = <-done })
		return err
	}
	t.Cleanup(func() { _ = stop() })
	line, rerr := bufio.NewReader(out).ReadBytes('\n')
	if rerr != nil || json.Unmarshal(line, &s) != nil {
		t.Fatalf("%q: %v", line, rerr)
	}
	go io.Copy(io.Discard, out)
	return s, stop
}

func fetch(t *testing.T, c *http.Client, url string, headers ...string) (code int, body string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), "GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	resp, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func TestServe(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "control")
	s, stop := serveIn(t, serveFlags{listen: "127.0.0.1:0", control: socket})
	if code, body := fetch(t, http.DefaultClient, s.URL); code != 200 || !strings.Contains(body, "There are no runs yet") {
		t.Errorf("%d %s", code, body)
	}
	if code, body := fetch(t, http.DefaultClient, s.URL+"version"); code != 200 || !strings.Contains(body, `"formats"`) {
		t.Errorf("%d %s", code, body)
	}
	if code, _ := fetch(t, http.DefaultClient, s.URL+"debug/pprof/"); code != 404 {
		t.Errorf("profiles for everybody: %d", code)
	}
	info, err := os.Lstat(socket)
	if err != nil || info.Mode() != os.ModeSocket|0o600 {
		t.Fatalf("%v, %v", info.Mode(), err)
	}
	inside := &http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", socket) }}}
	if code, body := fetch(t, inside, "http://usp/debug/pprof/goroutine?debug=1"); code != 200 || !strings.Contains(body, "goroutine profile") {
		t.Errorf("%d %.100s", code, body)
	}
	inside.CloseIdleConnections()
	if err := stop(); exitCode(err) != 130 {
		t.Errorf("ended with %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(socket), "*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(socket), ".usp*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// A socket that a server which died left is replaced; a file, and one that someone listens on, are not.
func TestControlSocket(t *testing.T) {
	a := &app{}
	dir := t.TempDir()
	stale := filepath.Join(dir, "stale")
	l, err := net.Listen("unix", stale)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.control(stale); err == nil || !strings.Contains(err.Error(), "another program listens") {
		t.Errorf("a socket in use: %v", err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	end, err := a.control(stale)
	if err != nil {
		t.Fatalf("a stale socket: %v", err)
	}
	end()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := a.control(file); err == nil {
		t.Error("a file was taken for a socket")
	}
	if b, err := os.ReadFile(file); string(b) != "precious" {
		t.Errorf("the file is gone: %v", err)
	}
}

// certificate writes one for a name, and its key.
func certificate(t *testing.T, dir, name string) (cert, key string, pool *x509.CertPool) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for file, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pool = x509.NewCertPool()
	pool.AppendCertsFromPEM(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	return cert, key, pool
}

func TestServeTLS(t *testing.T) {
	dir := t.TempDir()
	const token = "0123456789abcdef0123456789abcdef"
	file := filepath.Join(dir, "token")
	if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cert, key, pool := certificate(t, dir, "usp.example")
	s, _ := serveIn(t, serveFlags{listen: "0.0.0.0:0", cert: cert, key: key, tokenFile: file, hosts: []string{"usp.example"}})
	_, port, err := net.SplitHostPort(s.Address)
	if err != nil || s.URL != "https://usp.example:"+port+"/" {
		t.Errorf("%+v, %v", s, err)
	}
	c := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, DialContext: func(_ context.Context, network, _ string) (net.Conn, error) {
		return net.Dial(network, "127.0.0.1:"+port)
	}}}
	if code, body := fetch(t, c, s.URL); code != http.StatusUnauthorized {
		t.Errorf("without the token: %d %s", code, body)
	}
	if code, body := fetch(t, c, s.URL, "Authorization", "Bearer "+token); code != 200 {
		t.Errorf("with the token: %d %s", code, body)
	}
	if resp, err := http.Get("http://127.0.0.1:" + port + "/"); err == nil {
		if resp.StatusCode != http.StatusBadRequest {
			t.Errorf("without TLS: %s", resp.Status)
		}
		resp.Body.Close()
	}
	c.CloseIdleConnections()
}

func TestServeRefuses(t *testing.T) {
	dir := t.TempDir()
	cert, key, _ := certificate(t, dir, "x")
	write := func(name, text string, mode os.FileMode) string {
		t.Helper()
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(file, mode); err != nil {
			t.Fatal(err)
		}
		return file
	}
	good := write("good", "0123456789abcdef0123456789abcdef", 0o600)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for _, c := range []struct {
		flags serveFlags
		code  int
		says  string
	}{
		{serveFlags{listen: "0.0.0.0:0"}, 2, "--tls-cert"},
		{serveFlags{listen: ":0"}, 2, "--tls-cert"},
		{serveFlags{listen: "[::]:0", tokenFile: good}, 2, "--tls-cert"},
		{serveFlags{listen: "192.0.2.1:0", cert: cert, key: key}, 2, "--token-file"},
		{serveFlags{listen: "example.org:0", cert: cert, key: key}, 2, "--token-file"},
		{serveFlags{listen: "nonsense"}, 2, "127.0.0.1:8765"},
		{serveFlags{listen: "127.0.0.1:0", cert: cert}, 2, "go together"},
		{serveFlags{listen: "127.0.0.1:0", cert: key, key: cert}, 2, "--tls-cert"},
		{serveFlags{listen: "127.0.0.1:0", tokenFile: write("open", "0123456789abcdef0123456789abcdef", 0o644)}, 2, "chmod 600"},
		{serveFlags{listen: "127.0.0.1:0", tokenFile: write("short", "secret", 0o600)}, 2, "openssl rand"},
		{serveFlags{listen: "127.0.0.1:0", tokenFile: write("empty", "\n", 0o600)}, 2, "openssl rand"},
		{serveFlags{listen: "127.0.0.1:0", tokenFile: filepath.Join(dir, "none")}, 1, "no such file"},
		{serveFlags{listen: taken.Addr().String()}, 1, "another program listens"},
		{serveFlags{listen: "127.0.0.1:0", control: filepath.Join(dir, "none", "s")}, 1, "--control"},
	} {
		a := &app{out: new(bytes.Buffer), err: io.Discard, fs: vfs.OS(), now: time.Now, env: []string{"USP_SERVE_CACHE=none"}}
		if err := a.loadConfig(); err != nil {
			t.Fatal(err)
		}
		err := a.serve(t.Context(), c.flags)
		if exitCode(err) != c.code || !strings.Contains(fmt.Sprint(err), c.says) || strings.Contains(fmt.Sprint(err), "0123456789abcdef") {
			t.Errorf("%+v: %d, %v; want %d, %q", c.flags, exitCode(err), err, c.code, c.says)
		}
		if out := a.out.(*bytes.Buffer); out.Len() > 0 {
			t.Errorf("%+v: it said %s", c.flags, out)
		}
	}
}

// Without --listen the next port is taken where one is in use.
func TestServePort(t *testing.T) {
	first, err := listen("")
	if err != nil {
		t.Skipf("NOT CHECKED: %v", err)
	}
	defer first.Close()
	second, err := listen("")
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	a, b := first.Addr().(*net.TCPAddr), second.Addr().(*net.TCPAddr)
	if a.Port < servePort || b.Port <= a.Port || b.Port >= servePort+servePorts || !a.IP.IsLoopback() || !b.IP.IsLoopback() {
		t.Errorf("%v, then %v", a, b)
	}
}
