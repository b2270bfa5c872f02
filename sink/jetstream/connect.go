package jetstream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/usp-project/usp/internal/vfs"
	"github.com/usp-project/usp/sink"
)

// dialTimeout bounds the dialogue that opens a connection, with each server.
const dialTimeout = 5 * time.Second

// Conn is a connection to a server. It is never mended: what fails is begun anew with another one, so nothing that an
// earlier attempt left in a buffer is sent after all.
type Conn struct {
	JS natsjs.JetStream

	nc     *nats.Conn
	dialer *dialer
	lost   chan struct{} // closed when the connection is: package nats leaves who waits for an acknowledgement then waiting

	mu    sync.Mutex
	async error // the last error that the server sent without being asked
}

// dialer dials for one context, whose end closes what is just being opened, whatever it waits for.
type dialer struct {
	ctx context.Context

	mu    sync.Mutex
	last  net.Conn
	stops []func() bool
}

// Dial is called by package nats.
func (d *dialer) Dial(network, address string) (net.Conn, error) {
	c, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(d.ctx, network, address)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.last = c
	d.stops = append(d.stops, d.closeWhen(d.ctx, c))
	return c, nil
}

// closeWhen closes the socket when ctx ends before stop is called.
func (d *dialer) closeWhen(ctx context.Context, c net.Conn) (stop func() bool) {
	return context.AfterFunc(ctx, func() { _ = c.Close() }) // whoever uses it learns of it
}

func (d *dialer) opened() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, stop := range d.stops {
		stop()
	}
	d.stops = nil
}

// Connect connects to one of the servers of Options.URL. An error that wraps sink.ErrRefused is of the kind that does not
// mend itself. No error has a secret in it.
func Connect(ctx context.Context, o Options) (*Conn, error) {
	o = o.withDefaults()
	servers, err := serverList(o.URL)
	if err != nil {
		return nil, err
	}
	c := &Conn{dialer: &dialer{ctx: ctx}, lost: make(chan struct{})}
	lost := sync.OnceFunc(func() { close(c.lost) })
	opts := []nats.Option{
		nats.Name("usp"), nats.NoReconnect(), nats.SetCustomDialer(c.dialer), nats.Timeout(dialTimeout), nats.FlusherTimeout(dialTimeout),
		nats.ClosedHandler(func(*nats.Conn) { lost() }),
		nats.ErrorHandler(func(nc *nats.Conn, _ *nats.Subscription, err error) {
			if c.noted(err); errors.Is(err, nats.ErrPermissionViolation) {
				nc.Close() // what was asked for is not answered: nobody need wait for it
			}
		}),
	}
	if opts, err = o.identity(opts); err != nil {
		return nil, err
	}
	c.nc, err = nats.Connect(servers, opts...)
	c.dialer.opened()
	if err == nil && ctx.Err() != nil {
		c.nc.Close()
		err = context.Cause(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", servers, refusal(err))
	}
	if c.JS, err = natsjs.New(c.nc); err != nil {
		c.nc.Close()
		return nil, err
	}
	return c, nil
}

// Close closes the connection.
func (c *Conn) Close() { c.nc.Close() }

func (c *Conn) noted(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.async = err
}

// explain adds to an error, such as that no answer came, what the server has said of its own accord.
func (c *Conn) explain(err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil || c.async == nil {
		return refusal(err)
	}
	return fmt.Errorf("%w: %w", err, refusal(c.async))
}

// sending makes the end of ctx close the connection while something is sent: a server that does not read holds up who
// writes.
func (c *Conn) sending(ctx context.Context) (sent func() bool) {
	c.dialer.mu.Lock()
	defer c.dialer.mu.Unlock()
	return c.dialer.closeWhen(ctx, c.dialer.last)
}

// refusal marks an error that trying again does not mend.
func refusal(err error) error {
	for _, e := range []error{
		nats.ErrAuthorization, nats.ErrAuthExpired, nats.ErrAuthRevoked, nats.ErrAccountAuthExpired, nats.ErrPermissionViolation,
		nats.ErrNkeysNotSupported, nats.ErrSecureConnWanted,
	} {
		if errors.Is(err, e) {
			return fmt.Errorf("%w: %w", sink.ErrRefused, err)
		}
	}
	return err
}

// serverList checks the addresses. Its errors do not repeat them: there may be a password in them, in spite of all.
func serverList(list string) (string, error) {
	var servers []string
	for s := range strings.SplitSeq(list, ",") {
		u, err := url.Parse(strings.TrimSpace(s))
		switch {
		case err != nil || u.Host == "" || u.Scheme != "nats" && u.Scheme != "tls":
			return "", fmt.Errorf("%w: an address of a NATS server is not of the form nats://HOST:PORT or tls://HOST:PORT", sink.ErrRefused)
		case u.User != nil:
			return "", fmt.Errorf("%w: the address of the NATS server %s has a user or a password in it: put credentials into a file of their own, and its path into credentials_file", sink.ErrRefused, u.Host)
		}
		servers = append(servers, u.Scheme+"://"+u.Host)
	}
	return strings.Join(servers, ","), nil
}

const maxCredentials = 64 << 10

// identity adds who we are and whom we trust. A credentials file holds a user's JWT and seed, as nsc writes it, or a seed
// alone.
func (o *Options) identity(opts []nats.Option) ([]nats.Option, error) {
	if o.CAFile != "" {
		opts = append(opts, nats.RootCAs(o.CAFile))
	}
	if o.CredentialsFile == "" {
		return opts, nil
	}
	b, err := vfs.ReadFile(o.FS, o.CredentialsFile, maxCredentials)
	if err != nil {
		return nil, fmt.Errorf("%w: NATS credentials: %w", sink.ErrRefused, err)
	}
	defer clear(b)
	if bytes.Contains(b, []byte("BEGIN NATS USER JWT")) {
		return append(opts, nats.UserCredentialBytes(bytes.Clone(b))), nil
	}
	key, err := nats.NkeyOptionFromSeed(o.CredentialsFile)
	if err != nil {
		return nil, fmt.Errorf("%w: %s holds neither NATS credentials (a user JWT and its seed) nor the seed of an nkey", sink.ErrRefused, o.CredentialsFile)
	}
	return append(opts, key), nil
}
