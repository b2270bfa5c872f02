package web

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/usp-project/usp/internal/vfs"
)

func TestHost(t *testing.T) {
	s := newServer(t, Options{FS: vfs.NewMem(), Hosts: []string{"Usp.Example"}})
	for host, want := range map[string]int{
		"localhost": 200, "localhost:1": 200, "127.0.0.1:8765": 200, "[::1]:8765": 200, "[::1]": 200, "usp.example:9": 200, "usp.example.": 200, "127.9.9.9": 200,
		"evil.example": 421, "evil.example:8765": 421, "localhost.evil.example": 421, "10.0.0.1:8765": 421, "": 421, "0.0.0.0": 421, "[::]": 421, "127.0.0.1.nip.io": 421,
	} {
		r := httptest.NewRequest("GET", "/healthz", nil)
		r.Host = host
		w := httptest.NewRecorder()
		if s.Handler().ServeHTTP(w, r); w.Code != want {
			t.Errorf("%q: %d, want %d", host, w.Code, want)
		}
	}
}

const token = "0123456789abcdef0123456789abcdef"

func TestToken(t *testing.T) {
	now := created
	mem := vfs.NewMem()
	full(t, mem, "/runs").end()
	if _, err := New(Options{FS: mem, Token: "short"}); err == nil {
		t.Error("a short token was taken")
	}
	s := newServer(t, Options{FS: mem, Token: token, Now: func() time.Time { return now }, Metrics: http.NotFoundHandler()})
	for _, path := range []string{"/", "/run/" + id, "/compare", "/events", "/events/" + id, "/readyz", "/version", "/metrics", "/none"} {
		if w := get(t, s, path); w.Code != http.StatusUnauthorized || w.Header().Get("WWW-Authenticate") == "" || strings.Contains(w.Body.String(), id) {
			t.Errorf("%s without a token: %d", path, w.Code)
		}
		if w := get(t, s, path, "Accept", "text/html"); w.Code != http.StatusSeeOther || !strings.HasPrefix(w.Header().Get("Location"), "/login?next=") {
			t.Errorf("%s in a browser: %d", path, w.Code)
		}
	}
	for _, path := range []string{"/healthz", "/login", s.assets["live.js"].path} {
		if w := get(t, s, path); w.Code != 200 {
			t.Errorf("%s: %d", path, w.Code)
		}
	}
	if w := get(t, s, "/", "Authorization", "Bearer "+token); w.Code != 200 {
		t.Errorf("with the token: %d", w.Code)
	}
	for _, wrong := range []string{"Bearer " + token[1:], "Basic " + token, "Bearer", token} {
		if w := get(t, s, "/", "Authorization", wrong); w.Code != http.StatusUnauthorized {
			t.Errorf("%q: %d", wrong, w.Code)
		}
	}
	get(t, s, "/", "Authorization", "Bearer x") // the fifth
	if w := get(t, s, "/", "Authorization", "Bearer "+token); w.Code != http.StatusTooManyRequests || w.Header().Get("Retry-After") == "" {
		t.Errorf("after five wrong tokens: %d", w.Code)
	}
	r := httptest.NewRequest("GET", "/", nil)
	r.RemoteAddr = "192.0.2.9:1"
	if w := do(t, s, r, "Authorization", "Bearer "+token); w.Code != 200 {
		t.Errorf("from another address: %d", w.Code)
	}
	now = now.Add(2 * failureEvery)
	if w := get(t, s, "/", "Authorization", "Bearer "+token); w.Code != 200 {
		t.Errorf("later: %d", w.Code)
	}
}

func post(path, form string) *http.Request {
	r := httptest.NewRequest("POST", path, strings.NewReader(form))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return r
}

func TestLogin(t *testing.T) {
	now := created
	mem := vfs.NewMem()
	full(t, mem, "/runs").end()
	s := newServer(t, Options{FS: mem, Token: token, Now: func() time.Time { return now }})
	if w := do(t, s, post("/login", "token=wrong&next=/run/"+id)); w.Code != http.StatusUnauthorized || len(w.Result().Cookies()) > 0 {
		t.Errorf("a wrong token: %d", w.Code)
	} else {
		contains(t, w.Body.String(), "not the token", `aria-invalid="true"`, `value="/run/`+id)
	}
	w := do(t, s, post("/login", "token="+token+"&next=/run/"+id))
	cookies := w.Result().Cookies()
	if w.Code != http.StatusSeeOther || w.Header().Get("Location") != "/run/"+id || len(cookies) != 1 {
		t.Fatalf("the token: %d, to %s, %d cookies", w.Code, w.Header().Get("Location"), len(cookies))
	}
	c := cookies[0]
	if !c.HttpOnly || c.SameSite != http.SameSiteStrictMode || strings.Contains(c.Value, token) {
		t.Errorf("cookie %v", c)
	}
	cookie := c.Name + "=" + c.Value
	if w := get(t, s, "/run/"+id, "Cookie", cookie); w.Code != 200 {
		t.Errorf("with the cookie: %d", w.Code)
	} else {
		contains(t, w.Body.String(), "Log out")
	}
	end, mac, _ := strings.Cut(c.Value, ".")
	for _, forged := range []string{end + "0." + mac, end + "." + mac[1:], end, "", "99999999999."} {
		if w := get(t, s, "/", "Cookie", c.Name+"="+forged); w.Code != http.StatusUnauthorized {
			t.Errorf("cookie %q: %d", forged, w.Code)
		}
	}
	if w := do(t, s, post("/logout", ""), "Cookie", cookie); w.Code != http.StatusSeeOther || w.Result().Cookies()[0].MaxAge >= 0 {
		t.Errorf("log out: %d", w.Code)
	}
	for _, from := range []string{"cross-site", "same-site"} {
		if w := do(t, s, post("/logout", ""), "Cookie", cookie, "Sec-Fetch-Site", from, "Origin", "https://evil.example"); w.Code != http.StatusForbidden {
			t.Errorf("a form of another site (%s): %d", from, w.Code)
		}
	}
	now = now.Add(sessionFor + time.Second)
	if w := get(t, s, "/", "Cookie", cookie); w.Code != http.StatusUnauthorized {
		t.Errorf("an old cookie: %d", w.Code)
	}
	for _, next := range []string{"//evil.example", "///evil.example", "https://evil.example", `/\evil.example`, "/\tx", "evil", ""} {
		if got := within(next); got != "/" {
			t.Errorf("next=%q leads to %q", next, got)
		}
	}
	if w := do(t, s, post("/login", "token="+strings.Repeat("x", 10<<10))); w.Code != http.StatusBadRequest {
		t.Errorf("a long form: %d", w.Code)
	}
}
