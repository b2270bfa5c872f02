package web

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// policy lets a page load its own style sheet and script and talk to where it came from, and nothing else. There is no
// inline style or script.
const policy = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"

const (
	cookieName = "usp_session"
	sessionFor = 12 * time.Hour
	leastToken = 16 // characters

	mostFailures  = 5 // wrong tokens at once from one address
	failureEvery  = 2 * time.Second
	mostAddresses = 4096 // that failed
)

// guard decides which requests are answered.
type guard struct {
	hosts   map[string]bool
	secrets atomic.Pointer[secrets]
	now     func() time.Time

	mu       sync.Mutex
	failures map[string]bucket // by address
}

// secrets are replaced together.
type secrets struct {
	token []byte
	key   []byte // of the cookies; made anew with each process and token
}

// bucket counts failures that are forgotten one by one.
type bucket struct {
	n    float64
	seen time.Time
}

func newGuard(o *Options) (*guard, error) {
	g := &guard{hosts: map[string]bool{}, now: o.Now, failures: map[string]bucket{}}
	if err := g.setToken(o.Token); err != nil {
		return nil, err
	}
	for _, h := range o.Hosts {
		g.hosts[hostOf(h)] = true
	}
	return g, nil
}

// setToken replaces the token, and with it the key of the cookies, so that those of the old one are worth nothing.
func (g *guard) setToken(token string) error {
	if token != "" && len(token) < leastToken {
		return fmt.Errorf("the token has %d characters, fewer than %d, so it could be guessed; make one with: openssl rand -hex 32", len(token), leastToken)
	}
	s := &secrets{token: []byte(token), key: make([]byte, 32)}
	_, _ = rand.Read(s.key) // never fails
	g.secrets.Store(s)
	return nil
}

// secret is the token; empty: none is wanted.
func (g *guard) secret() []byte { return g.secrets.Load().token }

// key is that of the cookies.
func (g *guard) key() []byte { return g.secrets.Load().key }

// hostOf is the name or address in a Host header, in lower case and without port, brackets and final dot.
func hostOf(header string) string {
	host := header
	if h, _, err := net.SplitHostPort(header); err == nil {
		host = h
	}
	return strings.ToLower(strings.TrimSuffix(strings.Trim(host, "[]"), "."))
}

// allowed says whether a request may come under a Host header.
func (g *guard) allowed(header string) bool { return g.hosts[hostOf(header)] || Local(header) }

// Local says whether a Host header is of this machine, whoever resolves names: a page elsewhere, whose own name is made to lead
// here, cannot send it. An address needs no resolution; but only this machine's own are taken.
func Local(header string) bool {
	host := hostOf(header)
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.Unmap().IsLoopback()
}

// protect is in front of everything.
func (g *guard) protect(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cache-Control", "no-store")
		if !g.allowed(r.Host) {
			http.Error(w, fmt.Sprintf("usp does not answer under the name %q; allow it with: usp serve --host NAME", clip(r.Host, 100)), http.StatusMisdirectedRequest)
			return
		}
		if wait, ok := g.admits(r); !ok {
			g.refuse(w, r, wait)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// open are the paths that need no token.
func open(path string) bool {
	return path == "/healthz" || path == "/login" || strings.HasPrefix(path, "/assets/")
}

// admits checks what a request shows. wait is how long its address must not try again.
func (g *guard) admits(r *http.Request) (wait time.Duration, ok bool) {
	if len(g.secret()) == 0 || open(r.URL.Path) {
		return 0, true
	}
	if c, err := r.Cookie(cookieName); err == nil && g.sessionOK(c.Value) {
		return 0, true
	}
	if auth := r.Header.Get("Authorization"); auth != "" {
		shown, bearer := strings.CutPrefix(auth, "Bearer ")
		return g.try(r, shown, bearer)
	}
	return 0, false
}

// try compares a token, unless its address has failed too often.
func (g *guard) try(r *http.Request, shown string, bearer bool) (wait time.Duration, ok bool) {
	address, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		address = r.RemoteAddr
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	b, now := g.failures[address], g.now()
	b.n, b.seen = max(0, b.n-float64(now.Sub(b.seen))/float64(failureEvery)), now
	if b.n > mostFailures-1 {
		return time.Duration((b.n - mostFailures + 1) * float64(failureEvery)), false
	}
	a, c := sha256.Sum256([]byte(shown)), sha256.Sum256(g.secret()) // of equal length, so that the time tells nothing
	if bearer && subtle.ConstantTimeCompare(a[:], c[:]) == 1 {
		return 0, true
	}
	b.n++
	if _, known := g.failures[address]; !known && len(g.failures) >= mostAddresses {
		for old, o := range g.failures {
			if now.Sub(o.seen) > mostFailures*failureEvery {
				delete(g.failures, old)
			}
		}
		if len(g.failures) >= mostAddresses {
			return failureEvery, false // under attack from many addresses: nothing new is tried
		}
	}
	g.failures[address] = b
	return 0, false
}

func (g *guard) refuse(w http.ResponseWriter, r *http.Request, wait time.Duration) {
	if wait > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(wait/time.Second)+1))
		http.Error(w, "too many wrong tokens; try again later", http.StatusTooManyRequests)
		return
	}
	if r.Method == http.MethodGet && strings.Contains(r.Header.Get("Accept"), "text/html") && r.Header.Get("Authorization") == "" {
		http.Redirect(w, r, "/login?next="+url.QueryEscape(r.URL.RequestURI()), http.StatusSeeOther)
		return
	}
	w.Header().Set("WWW-Authenticate", `Bearer realm="usp"`)
	http.Error(w, "show the token of usp serve --token-file as a bearer token, or log in at /login", http.StatusUnauthorized)
}

// session is the value of a cookie that is good for a while.
func (g *guard) session() string {
	until := strconv.FormatInt(g.now().Add(sessionFor).Unix(), 10)
	return until + "." + g.mac(until)
}

func (g *guard) sessionOK(value string) bool {
	until, mac, _ := strings.Cut(value, ".")
	end, err := strconv.ParseInt(until, 10, 64)
	return err == nil && hmac.Equal([]byte(mac), []byte(g.mac(until))) && g.now().Unix() < end
}

func (g *guard) mac(until string) string {
	h := hmac.New(sha256.New, g.key())
	h.Write([]byte(until))
	return hex.EncodeToString(h.Sum(nil))
}

type loginView struct {
	page
	Next, Fault string
}

func (s *Server) loginPage(w http.ResponseWriter, r *http.Request) {
	if len(s.guard.secret()) == 0 {
		http.Redirect(w, r, "/", http.StatusSeeOther)
		return
	}
	s.render(w, r, http.StatusOK, "login.html", loginView{page: s.page("Log in"), Next: within(r.URL.Query().Get("next"))})
}

func (s *Server) login(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, 4<<10)
	if err := r.ParseForm(); err != nil {
		http.Error(w, "the form cannot be read", http.StatusBadRequest)
		return
	}
	next := within(r.PostFormValue("next"))
	if len(s.guard.secret()) > 0 {
		wait, ok := s.guard.try(r, strings.TrimSpace(r.PostFormValue("token")), true)
		if wait > 0 {
			s.guard.refuse(w, r, wait)
			return
		}
		if !ok {
			s.render(w, r, http.StatusUnauthorized, "login.html", loginView{page: s.page("Log in"), Next: next, Fault: "This is not the token of this server."})
			return
		}
		http.SetCookie(w, &http.Cookie{
			Name: cookieName, Value: s.guard.session(), Path: "/", MaxAge: int(sessionFor / time.Second), HttpOnly: true, Secure: r.TLS != nil, SameSite: http.SameSiteStrictMode,
		})
	}
	http.Redirect(w, r, next, http.StatusSeeOther)
}

func (s *Server) logout(w http.ResponseWriter, r *http.Request) {
	http.SetCookie(w, &http.Cookie{Name: cookieName, Path: "/", MaxAge: -1, HttpOnly: true, Secure: r.TLS != nil, SameSite: http.SameSiteStrictMode})
	http.Redirect(w, r, "/login", http.StatusSeeOther)
}

// within is a path on this server, or its first page.
func within(next string) string {
	u, err := url.Parse(next)
	if err != nil || u.IsAbs() || u.Host != "" || !strings.HasPrefix(next, "/") || strings.HasPrefix(next, "//") || strings.ContainsAny(next, "\\\r\n\t") {
		return "/"
	}
	return next
}

// clip shortens what someone sent.
func clip(s string, most int) string {
	if r := []rune(s); len(r) > most {
		return string(r[:most]) + "…"
	}
	return s
}
