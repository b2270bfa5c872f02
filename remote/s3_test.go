package remote

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/minio/minio-go/v7/pkg/credentials"
)

const testSecret = "s3cr3t-canary"

// openTest prepares a store whose server is handle.
func openTest(t *testing.T, handle http.HandlerFunc, change func(*S3Options)) Store {
	t.Helper()
	server := httptest.NewServer(handle)
	t.Cleanup(server.Close)
	o := S3Options{Bucket: "bucket", Endpoint: server.URL, Creds: credentials.NewStaticV4("AKID", testSecret, "t0ken-canary"), Timeout: 10 * time.Second}
	if change != nil {
		change(&o)
	}
	s, err := OpenS3(o)
	check(t, err)
	return s
}

// storeCalls are all calls of a store but Stat, to whose question no server answers with a text.
func storeCalls(s Store) map[string]func(context.Context) error {
	return map[string]func(context.Context) error{
		"list":    func(ctx context.Context) error { _, err := s.List(ctx, "p/"); return err },
		"open":    func(ctx context.Context) error { _, _, err := s.Open(ctx, "k"); return err },
		"put":     func(ctx context.Context) error { return s.Put(ctx, "k", []byte("x"), Tags{}) },
		"begin":   func(ctx context.Context) error { _, err := s.Begin(ctx, "k", Tags{}); return err },
		"part":    func(ctx context.Context) error { _, err := s.Part(ctx, "k", "u", 1, []byte("x")); return err },
		"finish":  func(ctx context.Context) error { return s.Finish(ctx, "k", "u", []string{"e"}, Tags{}) },
		"abort":   func(ctx context.Context) error { return s.Abort(ctx, "k", "u") },
		"uploads": func(ctx context.Context) error { _, err := s.Uploads(ctx, "p/"); return err },
		"remove":  func(ctx context.Context) error { return s.Remove(ctx, "k") },
	}
}

// TestClasses has each answer of a server mean the same in every call, and repeats nothing of it but its code.
func TestClasses(t *testing.T) {
	for _, tt := range []struct {
		status int
		code   string
		want   error
	}{
		{403, "AccessDenied", ErrDenied}, {403, "InvalidAccessKeyId", ErrDenied}, {403, "SignatureDoesNotMatch", ErrDenied}, {400, "ExpiredToken", ErrDenied}, {401, "Unauthorized", ErrDenied}, {400, "InvalidArgument", ErrDenied}, {403, "RequestTimeTooSkewed", ErrDenied},
		{404, "NoSuchBucket", ErrNotFound},
		{500, "InternalError", ErrUnreachable}, {503, "SlowDown", ErrUnreachable}, {503, "ServiceUnavailable", ErrUnreachable}, {429, "TooManyRequests", ErrUnreachable}, {400, "RequestTimeout", ErrUnreachable}, {400, "BadDigest", ErrUnreachable},
	} {
		s := openTest(t, func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body) // so that the answer is read
			w.Header().Set("Content-Type", "application/xml")
			w.WriteHeader(tt.status)
			fmt.Fprintf(w, "<Error><Code>%s</Code><Message>%s AKID</Message><StringToSign>%s</StringToSign></Error>", tt.code, testSecret, testSecret)
		}, nil)
		for name, call := range storeCalls(s) {
			err := call(t.Context())
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.code) || !strings.Contains(err.Error(), "s3://bucket/") || strings.Contains(err.Error(), "canary") || strings.Contains(err.Error(), "AKID") || strings.Contains(err.Error(), "\n") {
				t.Errorf("%s: %d %s becomes %v", name, tt.status, tt.code, err)
			}
		}
	}
}

// TestBroken takes what is no answer for a store that does not answer.
func TestBroken(t *testing.T) {
	for what, handle := range map[string]http.HandlerFunc{
		"cut":      func(w http.ResponseWriter, _ *http.Request) { panic(http.ErrAbortHandler) },
		"nonsense": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(502); fmt.Fprint(w, "<html>"+testSecret) },
	} {
		s := openTest(t, handle, nil)
		for name, call := range storeCalls(s) {
			if err := call(t.Context()); !errors.Is(err, ErrUnreachable) || strings.Contains(err.Error(), "canary") {
				t.Errorf("%s, %s: %v", what, name, err)
			}
		}
	}
	s := openTest(t, nil, func(o *S3Options) { o.Endpoint = "http://127.0.0.1:1" })
	for name, call := range storeCalls(s) {
		if err := call(t.Context()); !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "refused") {
			t.Errorf("%s: %v", name, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := call(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", name, err)
		}
	}
	s = openTest(t, nil, func(o *S3Options) { o.Creds = credentials.NewStaticV4("", "", "") })
	for name, call := range storeCalls(s) {
		if err := call(t.Context()); !errors.Is(err, ErrDenied) || !strings.Contains(err.Error(), "AWS_ACCESS_KEY_ID") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestCutBody has an object whose connection ends in the middle be a store that does not answer, and not a short object.
func TestCutBody(t *testing.T) {
	s := openTest(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "1000")
		w.Header().Set("Etag", `"x"`)
		w.Header().Set("Last-Modified", time.Now().UTC().Format(http.TimeFormat))
		fmt.Fprint(w, "short")
	}, nil)
	r, size, err := s.Open(t.Context(), "k")
	check(t, err)
	if _, err := io.ReadAll(r); !errors.Is(err, ErrUnreachable) || size != 1000 {
		t.Errorf("%d bytes: %v", size, err)
	}
	check(t, r.Close())
}

// TestCertificate trusts whom AWS_CA_BUNDLE names, and nobody else.
func TestCertificate(t *testing.T) {
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/xml")
		fmt.Fprint(w, `<ListBucketResult><Name>bucket</Name><IsTruncated>false</IsTruncated></ListBucketResult>`)
	}))
	t.Cleanup(server.Close)
	server.Config.ErrorLog = nil
	file := filepath.Join(t.TempDir(), "ca.pem")
	check(t, os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600))
	o := S3Options{Bucket: "bucket", Endpoint: server.URL, Creds: credentials.NewStaticV4("AKID", testSecret, ""), Timeout: 10 * time.Second}
	s, err := OpenS3(o)
	check(t, err)
	if _, err := s.List(t.Context(), ""); !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("an unknown certificate: %v", err)
	}
	o.Env = []string{"AWS_CA_BUNDLE=" + file}
	s, err = OpenS3(o)
	check(t, err)
	if _, err := s.List(t.Context(), ""); err != nil {
		t.Error(err)
	}
	o.Env = []string{"AWS_CA_BUNDLE=" + file + "x"}
	if _, err := OpenS3(o); err == nil || !strings.Contains(err.Error(), "AWS_CA_BUNDLE") {
		t.Error(err)
	}
}
