package otlp

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/usp-project/usp/internal/vfs"
)

// variables are those that Environ looks at. The ones with a twin for metrics alone, such as
// OTEL_EXPORTER_OTLP_METRICS_ENDPOINT, yield to it.
const (
	prefix      = "OTEL_EXPORTER_OTLP_"
	ofMetrics   = "METRICS_"
	service     = "OTEL_SERVICE_NAME"
	attributes  = "OTEL_RESOURCE_ATTRIBUTES"
	maxVariable = 64 << 10
)

type environ struct {
	values map[string]string
	fs     vfs.FS
}

// Environ fills in what env, in the form of os.Environ, says in the variables of OpenTelemetry: what is set in o already
// stays. It reads files that they name. Its errors name variables, and never what is in one.
func (o *Options) Environ(env []string, fs vfs.FS) error {
	e := environ{values: map[string]string{}, fs: fs}
	for _, kv := range env {
		if k, v, ok := strings.Cut(kv, "="); ok && strings.HasPrefix(k, "OTEL_") && len(v) <= maxVariable {
			e.values[k] = strings.TrimSpace(v)
		}
	}
	for _, read := range []func(environ) error{o.endpoint, o.headers, o.timeout, o.compression, o.protocol, o.resource, o.trust} {
		if err := read(e); err != nil {
			return fmt.Errorf("otlp: %w", err)
		}
	}
	return nil
}

// get is the value of a variable of the exporter, and the name it has.
func (e environ) get(name string) (value, from string) {
	for _, from := range []string{prefix + ofMetrics + name, prefix + name} {
		if v := e.values[from]; v != "" {
			return v, from
		}
	}
	return "", ""
}

func (o *Options) endpoint(e environ) error {
	v, from := e.get("ENDPOINT")
	if o.Endpoint != "" || v == "" {
		return nil
	}
	o.Endpoint, o.exact = v, from == prefix+ofMetrics+"ENDPOINT"
	if _, err := receiver(o.Endpoint, o.exact); err != nil {
		return fmt.Errorf("%s: %w", from, err)
	}
	return nil
}

func (o *Options) headers(e environ) error {
	v, from := e.get("HEADERS")
	if len(o.Headers) > 0 || v == "" {
		return nil
	}
	list, err := pairs(v, from)
	if err != nil {
		return err
	}
	o.Headers = Headers{}
	for i, a := range list {
		if !headerName(a.Key) || strings.ContainsFunc(a.Value, unicode.IsControl) {
			return fmt.Errorf("%s: entry %d cannot be a header; want name=value, the value percent-encoded", from, i+1)
		}
		o.Headers[http.CanonicalHeaderKey(a.Key)] = a.Value
	}
	return nil
}

// headerName says whether a name is a token of RFC 9110.
func headerName(name string) bool {
	return name != "" && !strings.ContainsFunc(name, func(r rune) bool {
		return r <= ' ' || r > '~' || strings.ContainsRune(`"(),/:;<=>?@[\]{}`, r)
	})
}

// pairs reads a list of key=value, the values percent-encoded, with commas between.
func pairs(v, from string) (list []Attribute, err error) {
	for i, entry := range strings.Split(v, ",") {
		if strings.TrimSpace(entry) == "" {
			continue
		}
		key, value, ok := strings.Cut(entry, "=")
		key = strings.TrimSpace(key)
		value, err := url.PathUnescape(strings.TrimSpace(value))
		if !ok || key == "" || err != nil {
			return nil, fmt.Errorf("%s: entry %d is not key=value, the value percent-encoded", from, i+1)
		}
		list = append(list, Attribute{key, value})
	}
	return list, nil
}

func (o *Options) timeout(e environ) error {
	v, from := e.get("TIMEOUT")
	if o.Timeout > 0 || v == "" {
		return nil
	}
	ms, err := strconv.ParseUint(v, 10, 31)
	if err != nil || ms == 0 {
		return fmt.Errorf("%s is not a positive number of milliseconds", from)
	}
	o.Timeout = time.Duration(ms) * time.Millisecond
	return nil
}

func (o *Options) compression(e environ) error {
	switch v, from := e.get("COMPRESSION"); v {
	case "", "gzip":
	case "none":
		o.Plain = true
	default:
		return fmt.Errorf("%s is not gzip or none", from)
	}
	return nil
}

func (o *Options) protocol(e environ) error {
	if v, from := e.get("PROTOCOL"); v != "" && v != "http/protobuf" {
		return fmt.Errorf("%s is not http/protobuf, which is the only protocol that usp speaks", from)
	}
	return nil
}

// resource reads the attributes; the first of a key counts, and what is set in o comes first.
func (o *Options) resource(e environ) error {
	list, err := pairs(e.values[attributes], attributes)
	if err != nil {
		return err
	}
	name := e.values[service]
	for _, a := range list {
		a.Key, a.Value = strings.ToValidUTF8(a.Key, "\uFFFD"), strings.ToValidUTF8(a.Value, "\uFFFD")
		switch {
		case a.Key == "service.name":
			if name == "" {
				name = a.Value
			}
		case !slices.ContainsFunc(o.Attributes, func(have Attribute) bool { return have.Key == a.Key }):
			o.Attributes = append(o.Attributes, a)
		}
	}
	if o.Service == "" {
		o.Service = strings.ToValidUTF8(name, "\uFFFD")
	}
	return nil
}

// trust reads whom to trust, and who we are, from files.
func (o *Options) trust(e environ) error {
	file := func(name string) ([]byte, string, error) {
		path, from := e.get(name)
		if path == "" {
			return nil, "", nil
		}
		b, err := vfs.ReadFile(e.fs, path, 1<<20)
		if err != nil {
			err = fmt.Errorf("%s: %w", from, err)
		}
		return b, from, err
	}
	roots, from, err := file("CERTIFICATE")
	if err != nil {
		return err
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if roots != nil {
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(roots) {
			return fmt.Errorf("%s names a file without a certificate in PEM", from)
		}
	}
	own, _, err := file("CLIENT_CERTIFICATE")
	if err != nil {
		return err
	}
	key, _, err := file("CLIENT_KEY")
	if err != nil {
		return err
	}
	if own != nil || key != nil {
		pair, err := tls.X509KeyPair(own, key)
		if err != nil {
			return fmt.Errorf("the certificate that %sCLIENT_CERTIFICATE names and the key that %sCLIENT_KEY names do not go together", prefix, prefix)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	o.tls = c
	return nil
}
