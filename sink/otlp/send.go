package otlp

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/usp-project/usp/sink"
)

const (
	pathSuffix   = "/v1/metrics"
	protobufType = "application/x-protobuf"
	maxAnswer    = 64 << 10         // bytes that are read of one
	maxSaid      = 200              // bytes of a receiver's message that are told
	tries        = 4                // of a request, before the caller hears of it
	firstWait    = time.Second / 2  // between the first two, doubled after each
	longestWait  = 10 * time.Minute // that a receiver may ask for
	warnEvery    = time.Minute      // of points that were refused
)

// receiver is the URL that requests go to.
func receiver(endpoint string, exact bool) (*url.URL, error) {
	u, err := url.Parse(endpoint)
	switch {
	case endpoint == "":
		return nil, errors.New("otlp: no endpoint; want the URL of a receiver, such as http://localhost:4318")
	case err != nil: // which has the whole URL in it, and perhaps a password
		return nil, errors.New("otlp: the endpoint is no URL; want one such as http://localhost:4318")
	case u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "":
		return nil, errors.New("otlp: the endpoint is no http or https URL with a host; want one such as http://localhost:4318")
	case u.User != nil:
		return nil, errors.New("otlp: the endpoint has a user or password in it, which would be seen; set OTEL_EXPORTER_OTLP_HEADERS instead")
	case u.Fragment != "":
		return nil, errors.New("otlp: the endpoint has a part behind #, which is never sent")
	}
	if !exact && !strings.HasSuffix(u.Path, pathSuffix) {
		u = u.JoinPath("/", pathSuffix)
		u.Path = "/" + strings.TrimPrefix(u.Path, "/")
	}
	return u, nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// client follows no redirect: what it would send on are headers that are meant for one host.
func (o *Options) client() *http.Client {
	transport := o.Transport
	if transport == nil {
		transport = &http.Transport{
			TLSClientConfig:     o.tls,
			ForceAttemptHTTP2:   true,
			MaxIdleConns:        1,
			IdleConnTimeout:     90 * time.Second,
			TLSHandshakeTimeout: 10 * time.Second,
		}
	}
	return &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// waitError is of an answer after which the same request may be sent again.
type waitError struct {
	err   error
	until time.Time // the receiver's wish; zero: none
}

func (e *waitError) Error() string { return e.err.Error() }
func (e *waitError) Unwrap() error { return e.err }

// flush sends the request, a few times if the receiver is busy. An error leaves it to the caller to begin again.
func (s *Sink) flush(ctx context.Context) error {
	if s.request.points == 0 {
		return nil
	}
	body, err := s.compress(s.encode())
	if err != nil {
		return err
	}
	backoff := firstWait
	for try := 1; ; try++ {
		if err := s.pause(ctx, s.notBefore.Sub(s.opts.Now())); err != nil {
			return fmt.Errorf("%s asked to be left alone until %s: %w", s.url.Host, s.notBefore.UTC().Format(time.RFC3339), err)
		}
		err := s.send(ctx, body)
		var wait *waitError
		if err == nil {
			s.request.reset()
			return nil
		}
		if !errors.As(err, &wait) {
			return err
		}
		s.notBefore = wait.until
		if try == tries {
			return err
		}
		if wait.until.IsZero() {
			if s.pause(ctx, backoff-time.Duration(s.opts.Jitter()*float64(backoff)/2)) != nil {
				return err
			}
			backoff *= 2
		}
	}
}

// pause waits, or says at once that there is no time to.
func (s *Sink) pause(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	if end, ok := ctx.Deadline(); ok && time.Until(end) < d {
		return context.DeadlineExceeded
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *Sink) compress(message []byte) ([]byte, error) {
	if s.opts.Plain {
		return message, nil
	}
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(message); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// send makes one request.
func (s *Sink) send(ctx context.Context, body []byte) error {
	ctx, cancel := context.WithTimeout(ctx, s.opts.Timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url.String(), bytes.NewReader(body))
	if err != nil {
		return s.failed(err)
	}
	req.Header.Set("User-Agent", strings.TrimSuffix("usp/"+s.opts.Version, "/"))
	for k, v := range s.opts.Headers {
		req.Header.Set(k, v)
	}
	req.Header.Set("Content-Type", protobufType)
	if !s.opts.Plain {
		req.Header.Set("Content-Encoding", "gzip")
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return s.failed(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil && resp.StatusCode/100 == 2 {
		return s.failed(err) // what it says of refused points is lost: the same once more does no harm
	}
	return s.answered(resp, answer)
}

// failed names the host and the cause, and not the URL, which may hold a secret in its query.
func (s *Sink) failed(err error) error {
	var inURL *url.Error
	if errors.As(err, &inURL) {
		err = inURL.Err
	}
	return fmt.Errorf("send metrics to %s: %w", s.url.Host, err)
}

// answered judges an answer. Points that the receiver will never take are counted and given up; the counters' later points
// make up for theirs.
func (s *Sink) answered(resp *http.Response, answer []byte) error {
	binary := false
	if t, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type")); err == nil {
		binary = t == protobufType || t == "application/protobuf"
	}
	code := resp.StatusCode
	if code/100 == 2 {
		if n, said := partial(answer); binary && (n > 0 || said != "") {
			s.rejected(n, "answer", said)
		}
		return nil
	}
	err := fmt.Errorf("send metrics to %s: it answers %d %s%s", s.url.Host, code, http.StatusText(code), s.said(answer, binary))
	switch code {
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return &waitError{err: err, until: s.retryAfter(resp.Header.Get("Retry-After"))}
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity:
		s.rejected(uint64(s.request.points), "err", err.Error())
		return nil
	case http.StatusUnauthorized, http.StatusForbidden:
		return fmt.Errorf("%w: %w; see OTEL_EXPORTER_OTLP_HEADERS", sink.ErrRefused, err)
	case http.StatusMethodNotAllowed, http.StatusUnsupportedMediaType:
		return fmt.Errorf("%w: %w; want a receiver of OTLP over HTTP, with protobuf", sink.ErrRefused, err)
	case http.StatusNotFound:
		return fmt.Errorf("%w; is %s where it takes metrics?", err, s.url.Path)
	}
	if code/100 == 3 {
		return fmt.Errorf("%w: %w; redirects are not followed: set the endpoint to where it is", sink.ErrRefused, err)
	}
	return err
}

// rejected counts points that are not taken, and says so now and then.
func (s *Sink) rejected(points uint64, key, said string) {
	s.state.Rejected += points
	if now := s.opts.Now(); s.warned.IsZero() || now.Sub(s.warned) >= warnEvery {
		s.warned = now
		s.opts.Logger.Warn("the receiver does not take all points", "host", s.url.Host, "points", points, "so far", s.state.Rejected, key, s.clean(said))
	}
}

// said is what a receiver gives as its reason.
func (s *Sink) said(answer []byte, binary bool) string {
	text := string(answer)
	if binary {
		text = field(answer, 2) // of google.rpc.Status
	}
	if text = s.clean(strings.TrimSpace(text)); text == "" {
		return ""
	}
	return fmt.Sprintf(": %q", text)
}

// clean cuts a receiver's words short, and takes out headers that it may repeat.
func (s *Sink) clean(text string) string {
	for _, v := range s.opts.Headers {
		if v != "" {
			text = strings.ReplaceAll(text, v, "***")
		}
	}
	if len(text) > maxSaid {
		text = text[:maxSaid] + "…"
	}
	return strings.ToValidUTF8(text, "\uFFFD")
}

// retryAfter reads a wish to be left alone, in seconds or as a date. The zero time: there is none that can be read.
func (s *Sink) retryAfter(header string) time.Time {
	now := s.opts.Now()
	until, err := http.ParseTime(header)
	if n, errNumber := strconv.ParseUint(strings.TrimSpace(header), 10, 31); errNumber == nil {
		until, err = now.Add(time.Duration(n)*time.Second), nil
	}
	if err != nil || !until.After(now) {
		return time.Time{}
	}
	if longest := now.Add(longestWait); until.After(longest) {
		return longest
	}
	return until
}

// partial reads ExportMetricsServiceResponse: how many points were refused, and why.
func partial(answer []byte) (points uint64, said string) {
	p := []byte(field(answer, 1))
	each(p, func(n protowire.Number, typ protowire.Type, b []byte) {
		if v, size := protowire.ConsumeVarint(b); n == 1 && typ == protowire.VarintType && size > 0 && int64(v) > 0 {
			points = v
		}
	})
	return points, field(p, 2)
}

// field is the last text, or message, of a number.
func field(b []byte, number protowire.Number) (text string) {
	each(b, func(n protowire.Number, typ protowire.Type, b []byte) {
		if v, size := protowire.ConsumeBytes(b); n == number && typ == protowire.BytesType && size > 0 {
			text = string(v)
		}
	})
	return text
}

// each visits the fields of a message up to where it is none.
func each(b []byte, visit func(n protowire.Number, typ protowire.Type, value []byte)) {
	for len(b) > 0 {
		n, typ, tag := protowire.ConsumeTag(b)
		if tag < 0 {
			return
		}
		size := protowire.ConsumeFieldValue(n, typ, b[tag:])
		if size < 0 {
			return
		}
		visit(n, typ, b[tag:tag+size])
		b = b[tag+size:]
	}
}
