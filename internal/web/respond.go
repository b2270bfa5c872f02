package web

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"io/fs"
	"mime"
	"net/http"
	"path"
	"strings"

	"github.com/usp-project/usp/internal/rundir"
)

//go:embed assets/* templates/*
var files embed.FS

// asset is a file that every page needs. Its path has its hash, so that a browser need not ask for it again.
type asset struct {
	path string
	kind string
	body []byte
	zip  []byte
}

func loadAssets() (map[string]*asset, error) {
	list, err := files.ReadDir("assets")
	if err != nil {
		return nil, err
	}
	all := map[string]*asset{}
	for _, e := range list {
		body, err := files.ReadFile("assets/" + e.Name())
		if err != nil {
			return nil, err
		}
		sum := sha256.Sum256(body)
		ext := path.Ext(e.Name())
		name := strings.TrimSuffix(e.Name(), ext) + "-" + hex.EncodeToString(sum[:6]) + ext
		a := &asset{path: "/assets/" + name, kind: mime.TypeByExtension(ext), body: body, zip: compress(body)}
		all[name], all[e.Name()] = a, a
	}
	return all, nil
}

func (s *Server) asset(w http.ResponseWriter, r *http.Request) {
	a := s.assets[r.PathValue("name")]
	if a == nil || a.path != r.URL.Path {
		s.fail(w, r, http.StatusNotFound, "There is no such file.")
		return
	}
	w.Header().Set("Content-Type", a.kind)
	w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
	send(w, r, http.StatusOK, a.body, a.zip)
}

// page is what every page has.
type page struct {
	Title  string
	Script string // path
	Style  string
	Logout bool // a token is needed
	Fleet  bool // there is one

	OfStream bool // it is read from a stream, not from run directories
}

func (s *Server) page(title string) page {
	return page{Title: title, Script: s.assets["live.js"].path, Style: s.assets["style.css"].path, Logout: len(s.guard.secret()) > 0, Fleet: s.o.Fleet != nil}
}

// render answers with a page.
func (s *Server) render(w http.ResponseWriter, r *http.Request, code int, name string, view any) {
	var b bytes.Buffer
	if err := s.pages.ExecuteTemplate(&b, name, view); err != nil {
		s.o.Logger.Error("a page could not be made", "page", name, "error", err)
		http.Error(w, "the page could not be made; the log of usp serve says why", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Cache-Control", "private, no-cache")
	send(w, r, code, b.Bytes(), nil)
}

// send answers with bytes, compressed if they are long and the client wants that, or says that it has them.
func send(w http.ResponseWriter, r *http.Request, code int, body, zip []byte) {
	h := w.Header()
	sum := sha256.Sum256(body)
	tag := `W/"` + hex.EncodeToString(sum[:12]) + `"`
	h.Set("ETag", tag)
	h.Add("Vary", "Accept-Encoding")
	if code == http.StatusOK && matches(r.Header.Get("If-None-Match"), tag) {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	if len(body) > 1<<10 && accepts(r, "gzip") {
		if zip == nil {
			zip = compress(body)
		}
		h.Set("Content-Encoding", "gzip")
		body = zip
	}
	w.WriteHeader(code)
	_, _ = w.Write(body) // the client may have gone
}

func matches(header, tag string) bool {
	for t := range strings.SplitSeq(header, ",") {
		if t = strings.TrimSpace(t); t == tag || t == "*" || "W/"+t == tag {
			return true
		}
	}
	return false
}

// accepts says whether a client takes an encoding; what it gives a weight of 0 it does not.
func accepts(r *http.Request, encoding string) bool {
	for e := range strings.SplitSeq(r.Header.Get("Accept-Encoding"), ",") {
		name, weight, _ := strings.Cut(e, ";")
		if weight = strings.ReplaceAll(weight, " ", ""); strings.EqualFold(strings.TrimSpace(name), encoding) {
			return weight != "q=0" && !strings.HasPrefix(weight, "q=0.0")
		}
	}
	return false
}

func compress(body []byte) []byte {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, _ = z.Write(body) // a buffer takes everything
	_ = z.Close()
	return b.Bytes()
}

type failView struct {
	page
	Text string
}

// fail answers with what is wrong.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, code int, text string) {
	s.render(w, r, code, "fail.html", failView{page: s.page(http.StatusText(code)), Text: text})
}

// failed answers with an error of reading a run.
func (s *Server) failed(w http.ResponseWriter, r *http.Request, err error) {
	switch {
	case r.Context().Err() != nil: // the client has gone
	case errors.Is(err, rundir.ErrNotFound), errors.Is(err, fs.ErrNotExist):
		s.fail(w, r, http.StatusNotFound, "There is no such run here. The list of runs has all that there are.")
	default:
		s.o.Logger.Warn("a run could not be read", "path", r.URL.Path, "error", err)
		s.fail(w, r, http.StatusInternalServerError, "The run cannot be read: "+s.inRuns(err.Error())+". What can be said of its damage says: usp verify RUN")
	}
}

// inRuns takes the directory of the runs out of a text: where it lies is nobody's business.
func (s *Server) inRuns(text string) string {
	return strings.ReplaceAll(text, strings.TrimSuffix(s.o.Runs, "/")+"/", "")
}

func (s *Server) healthz(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = w.Write([]byte("ok\n"))
}

// readyz says whether runs can be shown, and if not, why.
func (s *Server) readyz(w http.ResponseWriter, _ *http.Request) {
	reasons := []string{}
	if list, err := rundir.List(s.o.FS, s.o.Runs); err != nil {
		reasons = append(reasons, "the directory of the runs cannot be read: "+s.inRuns(err.Error()))
	} else {
		for i := range list {
			if list[i].Err != nil {
				s.o.Logger.Debug("a run is unreadable", "run", list[i].ID, "error", list[i].Err)
			}
		}
		if _, err := s.o.FS.Stat(s.o.Runs); err != nil {
			reasons = append(reasons, "there is no directory of runs yet")
		}
	}
	if s.o.Fleet != nil {
		if v := s.o.Fleet.Stand(); v.Fault != "" {
			reasons = append(reasons, "the stream of the fleet is not read: "+clip(v.Fault, 500))
		}
	}
	select {
	case <-s.ending:
		reasons = append(reasons, "the server is ending")
	default:
	}
	code := http.StatusOK
	if len(reasons) > 0 {
		code = http.StatusServiceUnavailable
	}
	writeJSON(w, code, map[string]any{"ready": len(reasons) == 0, "reasons": reasons})
}

func (s *Server) version(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, s.o.Version)
}

func writeJSON(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(v) // the client may have gone
}

func (s *Server) parsePages() (*template.Template, error) {
	t, err := template.New("").Funcs(template.FuncMap{"count": thousands, "number": short}).ParseFS(files, "templates/*.html")
	if err != nil {
		return nil, fmt.Errorf("the pages: %w", err)
	}
	return t, nil
}
