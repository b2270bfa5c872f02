// Package systemd tells the service manager how a process is (sd_notify(3)): that it is ready, that it loads its settings
// again, that it is alive. Where nobody has asked for that, every call does nothing.
package systemd

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"
)

// The states that the manager knows.
const (
	Ready    = "READY=1"
	Stopping = "STOPPING=1"
	alive    = "WATCHDOG=1"
)

// Reloading is the state while settings are loaded again; Ready ends it. monotonic is the time since the boot.
func Reloading(monotonic time.Duration) string {
	return fmt.Sprintf("RELOADING=1\nMONOTONIC_USEC=%d", monotonic.Microseconds())
}

// Status is a line for people, as systemctl status shows it.
func Status(text string) string { return "STATUS=" + strings.ReplaceAll(text, "\n", " ") }

// Manager is the way to the service manager. The zero value has none.
type Manager struct {
	address  string
	watchdog time.Duration // within which it wants to hear that the process is alive; 0: not
}

// FromEnvironment reads what the manager has put into the environment, of which pid is this process's..
func FromEnvironment(env []string, pid int) (m Manager) {
	get := func(key string) (value string) {
		for _, e := range env {
			if v, ok := strings.CutPrefix(e, key+"="); ok {
				value = v
			}
		}
		return value
	}
	m.address = get("NOTIFY_SOCKET")
	if usec, err := strconv.ParseInt(get("WATCHDOG_USEC"), 10, 64); err == nil && usec > 0 && m.address != "" {
		if p := get("WATCHDOG_PID"); p == "" || p == strconv.Itoa(pid) {
			m.watchdog = time.Duration(usec) * time.Microsecond
		}
	}
	return m
}

// Notify says a state, or several, one on each line.
func (m Manager) Notify(states ...string) error {
	if m.address == "" {
		return nil
	}
	name := m.address
	if name[0] == '@' { // of the abstract namespace
		name = "\x00" + name[1:]
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("tell the service manager: %w", err)
	}
	defer c.Close()
	if _, err := c.Write([]byte(strings.Join(states, "\n"))); err != nil {
		return fmt.Errorf("tell the service manager: %w", err)
	}
	return nil
}

// Watchdog says that the process is alive, twice within the time the manager gives, as long as healthy says so, until ctx
// ends. Without a watchdog it only waits for that.
func (m Manager) Watchdog(ctx context.Context, healthy func() bool) {
	if m.watchdog <= 0 {
		<-ctx.Done()
		return
	}
	t := time.NewTicker(m.watchdog / 2)
	defer t.Stop()
	for {
		if healthy() {
			_ = m.Notify(alive) // a manager that is gone does not care
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}
