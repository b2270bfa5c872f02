package systemd

import (
	"context"
	"net"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"
)

// listen is the manager's end.
func listen(t *testing.T) (*net.UnixConn, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() }) // the test is over
	if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return c, path
}

func heard(t *testing.T, c *net.UnixConn) string {
	t.Helper()
	b := make([]byte, 256)
	n, err := c.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:n])
}

func TestNotify(t *testing.T) {
	c, path := listen(t)
	m := FromEnvironment([]string{"NOTIFY_SOCKET=" + path}, 1)
	if err := m.Notify(Ready, Status("one\nline")); err != nil {
		t.Fatal(err)
	}
	if got := heard(t, c); got != "READY=1\nSTATUS=one line" {
		t.Errorf("heard %q", got)
	}
	if got := Reloading(1500 * time.Microsecond); got != "RELOADING=1\nMONOTONIC_USEC=1500" {
		t.Errorf("reloading is %q", got)
	}
	if err := (Manager{}).Notify(Ready); err != nil {
		t.Errorf("without a manager: %v", err)
	}
	if err := FromEnvironment([]string{"NOTIFY_SOCKET=" + path + ".gone"}, 1).Notify(Ready); err == nil {
		t.Error("a manager that is gone heard it")
	}
}

func TestWatchdog(t *testing.T) {
	for _, test := range []struct {
		env  []string
		want time.Duration
	}{
		{[]string{"WATCHDOG_USEC=20000"}, 20 * time.Millisecond},
		{[]string{"WATCHDOG_USEC=20000", "WATCHDOG_PID=7"}, 20 * time.Millisecond},
		{[]string{"WATCHDOG_USEC=20000", "WATCHDOG_PID=8"}, 0},
		{[]string{"WATCHDOG_USEC=-1"}, 0},
		{nil, 0},
	} {
		if m := FromEnvironment(append(test.env, "NOTIFY_SOCKET=@x"), 7); m.watchdog != test.want {
			t.Errorf("%v: every %v, want %v", test.env, m.watchdog, test.want)
		}
	}
	c, path := listen(t)
	m := FromEnvironment([]string{"NOTIFY_SOCKET=" + path, "WATCHDOG_USEC=20000"}, 1)
	ctx, cancel := context.WithCancel(t.Context())
	var ill atomic.Bool
	done := make(chan struct{})
	go func() { defer close(done); m.Watchdog(ctx, func() bool { return !ill.Load() }) }()
	for range 3 {
		if got := heard(t, c); got != alive {
			t.Errorf("heard %q", got)
		}
	}
	ill.Store(true)
	time.Sleep(30 * time.Millisecond) // what was on its way
	_ = c.SetReadDeadline(time.Now().Add(time.Millisecond))
	for b := make([]byte, 64); ; {
		if _, err := c.Read(b); err != nil {
			break
		}
	}
	_ = c.SetReadDeadline(time.Now().Add(60 * time.Millisecond))
	if n, err := c.Read(make([]byte, 64)); err == nil {
		t.Errorf("an ill process says that it is alive, %d bytes", n)
	}
	cancel()
	<-done
}
