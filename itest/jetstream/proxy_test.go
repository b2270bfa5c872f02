package jetstream_test

import (
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/usp-project/usp/sink/sinktest"
)

// proxy stands between a sink and a server, and lets through what it is told to.
type proxy struct {
	listener net.Listener
	to       string

	mu      sync.Mutex
	changed *sync.Cond
	mute    bool   // what the server says is thrown away
	hold    bool   // what the client says is not passed on yet
	stall   bool   // nothing is read from the client
	gone    bool   // connections are closed at once
	muteAt  string // once the client says this, the server is muted
	conns   []net.Conn
}

func newProxy(t *testing.T, to string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{listener: l, to: to}
	p.changed = sync.NewCond(&p.mu)
	t.Cleanup(func() {
		_ = l.Close() // the test is over
		p.set(func() { p.hold, p.stall = false, false })
		p.cut()
	})
	go p.accept()
	return p
}

func (p *proxy) url() string { return "nats://" + p.listener.Addr().String() }

func (p *proxy) set(change func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change()
	p.changed.Broadcast()
}

// cut ends all connections.
func (p *proxy) cut() {
	p.set(func() {
		for _, c := range p.conns {
			_ = c.Close() // whoever uses it learns of it
		}
		p.conns = nil
	})
}

// fault is for sinktest.Destination.Fault.
func (p *proxy) fault(_ *testing.T, how sinktest.Fault) {
	p.set(func() { p.gone, p.mute = how == sinktest.Away, how == sinktest.Silent })
	if how == sinktest.Away {
		p.cut()
	}
}

func (p *proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		gone := false
		p.set(func() { gone = p.gone })
		server, err := net.Dial("tcp", p.to)
		if err == nil && gone {
			_ = server.Close() // nobody talks to it
		}
		if err != nil || gone {
			_ = client.Close() // there is nobody to talk to
			continue
		}
		p.set(func() { p.conns = append(p.conns, client, server) })
		go p.pass(client, server, true)
		go p.pass(server, client, false)
	}
}

// pass copies one direction. A client that has gone does not take with it what it has sent.
func (p *proxy) pass(from, to net.Conn, client bool) {
	buf := make([]byte, 32<<10)
	for {
		p.mu.Lock()
		for client && p.stall {
			p.changed.Wait()
		}
		p.mu.Unlock()
		n, err := from.Read(buf)
		p.mu.Lock()
		for client && p.hold {
			p.changed.Wait()
		}
		if client && p.muteAt != "" && strings.Contains(string(buf[:n]), p.muteAt) {
			p.mute = true
		}
		drop := !client && p.mute
		p.mu.Unlock()
		if n > 0 && !drop {
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			if !client {
				_ = to.Close() // the server has hung up
			} else if c, ok := to.(*net.TCPConn); ok {
				_ = c.CloseWrite() // the client has
			}
			return
		}
	}
}
