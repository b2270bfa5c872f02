package web

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/usp-project/usp/internal/vfs"
)

// pipes is a listener whose connections take nothing that the other end does not read.
type pipes struct {
	come chan net.Conn
	over chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.come:
		return c, nil
	case <-p.over:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { close(p.over); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)} }

// dial connects and sends.
func (p *pipes) dial(t *testing.T, text string) net.Conn {
	t.Helper()
	here, there := net.Pipe()
	p.come <- there
	if _, err := io.WriteString(here, text); err != nil {
		t.Fatal(err)
	}
	return here
}

// Who stops to read, or to send, is let go of after a while, so that others have room.
func TestSlowClients(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := vfs.NewMem()
		f := full(t, mem, "/runs")
		s := newServer(t, Options{FS: mem, Streams: 1})
		l := &pipes{make(chan net.Conn), make(chan struct{})}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx, l) }()
		const events = "GET /events/" + id + " HTTP/1.1\r\nHost: localhost\r\n\r\n"
		open := func() (net.Conn, *http.Response) {
			c := l.dial(t, events)
			resp, err := http.ReadResponse(bufio.NewReaderSize(c, 16), nil)
			if err != nil {
				t.Fatal(err)
			}
			return c, resp
		}
		began := time.Now()
		one, resp := open() // and reads no further
		if resp.StatusCode != 200 {
			t.Fatal(resp.Status)
		}
		two, resp := open()
		if resp.StatusCode != http.StatusServiceUnavailable {
			t.Errorf("one too many: %s", resp.Status)
		}
		_ = two.Close()
		f.emit(101, 110) // there is something to tell
		time.Sleep(writeFor + heartbeat)
		three, resp := open()
		if resp.StatusCode != 200 {
			t.Errorf("a client that has read nothing for %v still counts: %s", time.Since(began), resp.Status)
		}
		_ = three.Close()
		_ = one.Close()

		for what, text := range map[string]string{
			"reads no page":   "GET /run/" + id + " HTTP/1.1\r\nHost: localhost\r\n\r\n",
			"ends no header":  "GET / HTTP/1.1\r\nHost: local",
			"ends no body":    "POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 100\r\n\r\ntoken=",
			"asks no further": "HEAD /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
		} {
			c := l.dial(t, text)
			time.Sleep(5 * time.Minute)
			_ = c.SetReadDeadline(time.Now().Add(time.Minute))
			if _, err := io.Copy(io.Discard, c); err != nil {
				t.Errorf("a client that %s is still there: %v", what, err)
			}
			_ = c.Close()
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
