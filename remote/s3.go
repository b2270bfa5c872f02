package remote

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/usp-project/usp/internal/vfs"
)

// Lock modes of S3Options.
const (
	LockNone       = "off"
	LockGovernance = "governance"
	LockCompliance = "compliance"
)

// S3Options say where a bucket is and how it is used. The zero value of each field but Bucket has a meaning.
type S3Options struct {
	Bucket   string
	Endpoint string        // http or https URL without a path; "": AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, else Amazon's
	Lock     string        // LockNone, LockGovernance or LockCompliance
	LockFor  time.Duration // from the making of an object; with a Lock
	Timeout  time.Duration // without a byte going over the wire; default 30 s

	Env       []string                 // as os.Environ; for the endpoint and the region. Credentials are read from the process' own environment
	Creds     *credentials.Credentials // default: environment, shared credentials file, instance role
	Transport http.RoundTripper        // default: that of net/http, with limits of time
	Now       func() time.Time         // default time.Now
}

// s3 is a bucket.
type s3 struct {
	core  minio.Core
	opts  S3Options
	creds *credentials.Credentials
}

// metaSHA256 is the user metadata of an object with its SHA-256.
const metaSHA256 = "Usp-Sha256"

// OpenS3 prepares access to a bucket. It asks nothing of it: see Check.
func OpenS3(o S3Options) (Store, error) {
	env := variables(o.Env)
	if o.Endpoint == "" {
		o.Endpoint = env("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
	}
	if o.Timeout <= 0 {
		o.Timeout = 30 * time.Second
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	region := env("AWS_REGION", "AWS_DEFAULT_REGION")
	host, secure := "s3.amazonaws.com", true
	if o.Endpoint != "" {
		if err := CheckEndpoint(o.Endpoint); err != nil {
			return nil, fmt.Errorf("%w: the endpoint %w", ErrAddress, err)
		}
		u, err := url.Parse(o.Endpoint)
		if err != nil {
			return nil, fmt.Errorf("%w: the endpoint", ErrAddress)
		}
		host, secure = u.Host, u.Scheme == "https"
		if region == "" {
			region = "us-east-1" // as all that is not Amazon takes it
		}
	}
	if o.Transport == nil {
		var err error
		if o.Transport, err = transport(o.Timeout, env("AWS_CA_BUNDLE")); err != nil {
			return nil, err
		}
	}
	if o.Creds == nil {
		o.Creds = chain(env("AWS_EC2_METADATA_DISABLED"))
	}
	client, err := minio.New(host, &minio.Options{Creds: o.Creds, Secure: secure, Transport: o.Transport, Region: region, MaxRetries: 1})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrAddress, errors.New("the endpoint cannot be used"))
	}
	return &s3{core: minio.Core{Client: client}, opts: o, creds: o.Creds}, nil
}

// variables looks the first variable up that is set.
func variables(env []string) func(names ...string) string {
	return func(names ...string) string {
		for _, name := range names {
			for _, kv := range env {
				if v, ok := strings.CutPrefix(kv, name+"="); ok && v != "" {
					return v
				}
			}
		}
		return ""
	}
}

// CheckEndpoint refuses what is no endpoint, and http but on loopback: what is sent would be read on the way. Its errors never repeat
// what was given.
func CheckEndpoint(text string) error {
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return errors.New("is not an address; write one such as https://s3.example:9000")
	case u.Scheme != "http" && u.Scheme != "https", u.Hostname() == "":
		return errors.New("is not an http or https address; write one such as https://s3.example:9000")
	case u.User != nil:
		return errors.New("holds a user name; credentials come from the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) or the shared credentials file")
	case u.RawQuery != "" || u.Fragment != "" || u.ForceQuery || strings.Trim(u.Path, "/") != "":
		return errors.New("holds a path, a query or a fragment; name host and port only")
	case u.Scheme == "http" && !loopback(u.Hostname()):
		return errors.New("is http and not on loopback: states and tokens would be read on the way; use https")
	}
	return nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// chain is where credentials come from: the first that has some.
func chain(noMetadata string) *credentials.Credentials {
	list := []credentials.Provider{&credentials.EnvAWS{}, &credentials.FileAWSCredentials{}}
	if !strings.EqualFold(noMetadata, "true") {
		list = append(list, &credentials.IAM{Client: &http.Client{Timeout: 3 * time.Second}})
	}
	return credentials.NewChainCredentials(list)
}

// transport is how a store is talked to. authorities is a file of whom to trust, in PEM; "": whom the system does.
func transport(timeout time.Duration, authorities string) (http.RoundTripper, error) {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.DialContext = (&net.Dialer{Timeout: timeout, KeepAlive: 30 * time.Second}).DialContext
	t.TLSHandshakeTimeout, t.IdleConnTimeout, t.DisableCompression = timeout, time.Minute, true
	if authorities == "" {
		return t, nil
	}
	b, err := vfs.ReadFile(vfs.OS(), authorities, 1<<20)
	if err != nil {
		return nil, fmt.Errorf("AWS_CA_BUNDLE: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(b) {
		return nil, fmt.Errorf("AWS_CA_BUNDLE: %s: no certificate in it", authorities)
	}
	t.TLSClientConfig = &tls.Config{RootCAs: pool}
	return t, nil
}

// watched limits the time in which nothing moves: each touch begins it anew.
type watched struct {
	context.Context
	cancel context.CancelCauseFunc
	timer  *time.Timer
	limit  time.Duration
}

var errStalled = errors.New("nothing moved in time")

func watch(ctx context.Context, limit time.Duration) *watched {
	ctx, cancel := context.WithCancelCause(ctx)
	return &watched{ctx, cancel, time.AfterFunc(limit, func() { cancel(errStalled) }), limit}
}

func (w *watched) touch() { w.timer.Reset(w.limit) }

func (w *watched) end() {
	w.timer.Stop()
	w.cancel(nil)
}

// moving is a reader that touches as it is read.
type moving struct {
	io.Reader
	w *watched
}

func (m *moving) Read(b []byte) (int, error) {
	n, err := m.Reader.Read(b)
	if n > 0 {
		m.w.touch()
	}
	return n, err
}

// ready refuses to send what nobody signs: the library would ask as anybody.
func (s *s3) ready(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	v, err := s.creds.GetWithContext(s.core.CredContext())
	if err != nil || v.AccessKeyID == "" || v.SecretAccessKey == "" {
		return fmt.Errorf("%w: there are no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE with the shared credentials file", ErrDenied)
	}
	return nil
}

// call does one request with what it needs, and says what its error means.
func (s *s3) call(ctx context.Context, what string, do func(*watched) error) error {
	if err := s.ready(ctx); err != nil {
		return err
	}
	w := watch(ctx, s.opts.Timeout)
	defer w.end()
	return s.classify(ctx, w, what, do(w))
}

func (s *s3) List(ctx context.Context, prefix string) (list []Object, err error) {
	err = s.call(ctx, "list "+prefix, func(w *watched) error {
		for o := range s.core.Client.ListObjects(w, s.opts.Bucket, minio.ListObjectsOptions{Prefix: prefix, Recursive: true}) {
			if o.Err != nil {
				return o.Err
			}
			w.touch()
			list = append(list, Object{Key: o.Key, Size: o.Size, Modified: o.LastModified})
		}
		return nil
	})
	return list, err
}

func (s *s3) Stat(ctx context.Context, key string) (o Object, err error) {
	err = s.call(ctx, key, func(w *watched) error {
		info, err := s.core.StatObject(w, s.opts.Bucket, key, minio.StatObjectOptions{})
		o = Object{Key: key, Size: info.Size, Modified: info.LastModified, SHA256: info.UserMetadata[metaSHA256]}
		return err
	})
	return o, err
}

// body is an object that is being read.
type body struct {
	io.ReadCloser
	s   *s3
	ctx context.Context
	w   *watched
	key string
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if n > 0 {
		b.w.touch()
	}
	if err != nil && !errors.Is(err, io.EOF) {
		err = b.s.classify(b.ctx, b.w, b.key, err)
	}
	return n, err
}

func (b *body) Close() error {
	defer b.w.end()
	return b.ReadCloser.Close()
}

func (s *s3) Open(ctx context.Context, key string) (io.ReadCloser, int64, error) {
	if err := s.ready(ctx); err != nil {
		return nil, 0, err
	}
	w := watch(ctx, s.opts.Timeout)
	r, info, _, err := s.core.GetObject(w, s.opts.Bucket, key, minio.GetObjectOptions{})
	if err != nil {
		err = s.classify(ctx, w, key, err)
		w.end()
		return nil, 0, err
	}
	return &body{r, s, ctx, w, key}, info.Size, nil
}

// put are the options of an object that is made. DisableContentSha256 means that the library does not sum up the body itself, in chunks: it is given the sum.
func (s *s3) put(t Tags) minio.PutObjectOptions {
	o := minio.PutObjectOptions{UserMetadata: map[string]string{metaSHA256: t.SHA256}, ContentType: "application/octet-stream", DisableContentSha256: true}
	if t.Text {
		o.ContentType = "application/json"
	}
	switch s.opts.Lock {
	case LockGovernance:
		o.Mode = minio.Governance
	case LockCompliance:
		o.Mode = minio.Compliance
	}
	if o.Mode != "" {
		o.RetainUntilDate = s.opts.Now().Add(s.opts.LockFor).UTC().Truncate(time.Second)
	}
	return o
}

// sums are what a server is to hold a body against.
func sums(data []byte) (md5Base64, sha256Hex string) {
	m, h := md5.Sum(data), sha256.Sum256(data)
	return base64.StdEncoding.EncodeToString(m[:]), hex.EncodeToString(h[:])
}

func (s *s3) Put(ctx context.Context, key string, data []byte, t Tags) error {
	return s.call(ctx, key, func(w *watched) error {
		m, h := sums(data)
		_, err := s.core.PutObject(w, s.opts.Bucket, key, &moving{bytes.NewReader(data), w}, int64(len(data)), m, h, s.put(t))
		return err
	})
}

func (s *s3) Remove(ctx context.Context, key string) error {
	err := s.call(ctx, key, func(w *watched) error {
		if s.locks() { // the bucket keeps versions: without naming them nothing would go
			return s.removeVersions(w, key)
		}
		return s.core.RemoveObject(w, s.opts.Bucket, key, minio.RemoveObjectOptions{})
	})
	if errors.Is(err, ErrNotFound) && !isNoBucket(err) {
		return nil
	}
	return err
}

func (s *s3) removeVersions(w *watched, key string) error {
	for o := range s.core.Client.ListObjects(w, s.opts.Bucket, minio.ListObjectsOptions{Prefix: key, WithVersions: true, Recursive: true}) {
		if o.Err != nil {
			return o.Err
		}
		w.touch()
		if o.Key != key {
			continue
		}
		if err := s.core.RemoveObject(w, s.opts.Bucket, key, minio.RemoveObjectOptions{VersionID: o.VersionID}); err != nil {
			return err
		}
	}
	return nil
}

// Check tries whether there are credentials, and whether the store lets the bucket be listed with them, and says whether the bucket offers object lock.
func Check(ctx context.Context, store Store, to Address) (lock bool, err error) {
	s, ok := store.(*s3)
	if !ok {
		_, err := store.List(ctx, to.key("latest", ""))
		return false, err
	}
	err = s.call(ctx, to.Prefix, func(w *watched) error {
		for o := range s.core.Client.ListObjects(w, s.opts.Bucket, minio.ListObjectsOptions{Prefix: to.key("latest", ""), MaxKeys: 1}) {
			return o.Err
		}
		return nil
	})
	if err != nil {
		return false, err
	}
	state := ""
	err = s.call(ctx, to.Prefix, func(w *watched) error {
		state, _, _, _, err = s.core.GetObjectLockConfig(w, s.opts.Bucket)
		return err
	})
	if ctx.Err() != nil {
		return false, context.Cause(ctx)
	}
	return err == nil && state == "Enabled", nil // whoever does not know the question does not offer it
}

func (s *s3) locks() bool { return s.opts.Lock != "" && s.opts.Lock != LockNone }

func (s *s3) Begin(ctx context.Context, key string, t Tags) (id string, err error) {
	err = s.call(ctx, key, func(w *watched) error {
		id, err = s.core.NewMultipartUpload(w, s.opts.Bucket, key, s.put(t))
		return err
	})
	return id, err
}

func (s *s3) Part(ctx context.Context, key, upload string, number int, data []byte) (tag string, err error) {
	err = s.call(ctx, fmt.Sprintf("%s, part %d", key, number), func(w *watched) error {
		m, h := sums(data)
		part, err := s.core.PutObjectPart(w, s.opts.Bucket, key, upload, number, &moving{bytes.NewReader(data), w}, int64(len(data)),
			minio.PutObjectPartOptions{Md5Base64: m, Sha256Hex: h, DisableContentSha256: true})
		tag = part.ETag
		return err
	})
	return tag, err
}

func (s *s3) Finish(ctx context.Context, key, upload string, tags []string, t Tags) error {
	parts := make([]minio.CompletePart, len(tags))
	for i, tag := range tags {
		parts[i] = minio.CompletePart{PartNumber: i + 1, ETag: tag}
	}
	return s.call(ctx, key, func(w *watched) error {
		_, err := s.core.CompleteMultipartUpload(w, s.opts.Bucket, key, upload, parts, minio.PutObjectOptions{})
		return err
	})
}

func (s *s3) Abort(ctx context.Context, key, upload string) error {
	err := s.call(ctx, key, func(w *watched) error { return s.core.AbortMultipartUpload(w, s.opts.Bucket, key, upload) })
	if errors.Is(err, ErrNotFound) && !isNoBucket(err) {
		return nil
	}
	return err
}

func (s *s3) Uploads(ctx context.Context, prefix string) (list []Upload, err error) {
	err = s.call(ctx, "uploads of "+prefix, func(w *watched) error {
		key, id := "", ""
		for {
			r, err := s.core.ListMultipartUploads(w, s.opts.Bucket, prefix, key, id, "", 1000)
			if err != nil {
				return err
			}
			w.touch()
			for _, u := range r.Uploads {
				if strings.HasPrefix(u.Key, prefix) {
					list = append(list, Upload{u.Key, u.UploadID})
				}
			}
			if !r.IsTruncated || r.NextKeyMarker == key && r.NextUploadIDMarker == id {
				return nil
			}
			key, id = r.NextKeyMarker, r.NextUploadIDMarker
		}
	})
	if errors.Is(err, ErrNotFound) && !isNoBucket(err) { // as some servers say that there are none
		return nil, nil
	}
	return list, err
}

// s3Error is an error of a store in its own words, as far as they say nothing that is secret.
type s3Error struct {
	class error
	code  string // of S3, such as NoSuchBucket; or what the network said
	what  string
}

func (e *s3Error) Error() string {
	return fmt.Sprintf("%s: %v (%s)", e.what, e.class, e.code)
}

func (e *s3Error) Unwrap() error { return e.class }

func isNoBucket(err error) bool {
	var e *s3Error
	return errors.As(err, &e) && e.code == "NoSuchBucket"
}

// classify says what an error means to a caller. What a server writes beside its code is left out: it can repeat the key id and what was signed.
func (s *s3) classify(ctx context.Context, w *watched, what string, err error) error {
	if err == nil {
		return nil
	}
	what = Scheme + s.opts.Bucket + "/" + what
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if context.Cause(w.Context) == errStalled {
		return &s3Error{ErrUnreachable, fmt.Sprintf("nothing moved for %v", s.opts.Timeout), what}
	}
	r := minio.ToErrorResponse(err)
	known := r.Code != "" && r.StatusCode != 0
	switch {
	case r.Code == "NoSuchBucket", r.Code == "NoSuchKey", r.Code == "NoSuchUpload", known && r.StatusCode == http.StatusNotFound:
		return &s3Error{ErrNotFound, r.Code, what}
	case known && (r.StatusCode == http.StatusForbidden || r.StatusCode == http.StatusUnauthorized), r.Code == "AccessDenied",
		r.Code == "ExpiredToken", r.Code == "InvalidToken", r.Code == "AuthorizationHeaderMalformed":
		return &s3Error{ErrDenied, r.Code, what}
	case known && (r.StatusCode >= 500 || r.StatusCode == http.StatusTooManyRequests || r.StatusCode == http.StatusRequestTimeout), r.Code == "RequestTimeout", r.Code == "SlowDown":
		return &s3Error{ErrUnreachable, r.Code, what}
	case r.Code == "BadDigest", r.Code == "XAmzContentSHA256Mismatch", r.Code == "IncompleteBody":
		return &s3Error{ErrUnreachable, r.Code + ": a part was changed on the way", what}
	case known:
		return &s3Error{ErrDenied, r.Code, what}
	}
	return &s3Error{ErrUnreachable, network(err), what}
}

// network is what the network said, without the address and what else stands in a URL.
func network(err error) string {
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	var op *net.OpError
	var dns *net.DNSError
	switch {
	case errors.As(err, &dns):
		return "the name of the host is not known"
	case errors.As(err, &op) && op.Err != nil:
		err = op.Err
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "the connection was closed"
	case os.IsTimeout(err):
		return "no answer in time"
	}
	text := err.Error()
	if strings.Contains(text, "://") || strings.Contains(text, "Signature") || len(text) > 200 {
		return "the connection failed"
	}
	return text
}
