package jetstream_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// serve starts a server with JetStream in this process, on a free port of loopback unless the options say otherwise.
func serve(t testing.TB, o server.Options) *server.Server {
	t.Helper()
	if o.Port == 0 {
		o.Port = server.RANDOM_PORT
	}
	o.Host, o.NoLog, o.NoSigs, o.JetStream = "127.0.0.1", true, true, true
	if o.StoreDir == "" {
		o.StoreDir = t.TempDir()
	}
	s, err := server.NewServer(&o)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { stop(s) })
	if !s.ReadyForConnections(20 * time.Second) {
		t.Fatal("the server does not start")
	}
	return s
}

func stop(s *server.Server) {
	s.Shutdown()
	s.WaitForShutdown()
}

// ports were handed out.
var ports sync.Map

// port is a port of loopback that is free and stays so: it is none of those that are given to who asks for any.
func port(t testing.TB) int {
	t.Helper()
	for range 100 {
		n := 20000 + rand.IntN(12000)
		if _, again := ports.LoadOrStore(n, true); again {
			continue
		}
		if l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", n)); err == nil {
			l.Close()
			return n
		}
	}
	t.Fatal("no port is free")
	return 0
}

// node is a server of a cluster in a process of its own, which can be killed.
type node struct {
	Name, Store   string
	Client, Route int
	Routes        []int

	process *exec.Cmd
}

const nodeVariable = "USP_ITEST_NODE"

// TestMain is also the program of a node.
func TestMain(m *testing.M) {
	if text := os.Getenv(nodeVariable); text != "" {
		if err := runNode(text); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func runNode(text string) error {
	var n node
	if err := json.Unmarshal([]byte(text), &n); err != nil {
		return err
	}
	o := &server.Options{
		ServerName: n.Name, Host: "127.0.0.1", Port: n.Client, NoLog: true, JetStream: true, StoreDir: n.Store,
		Cluster: server.ClusterOpts{Name: "fleet", Host: "127.0.0.1", Port: n.Route},
	}
	for _, p := range n.Routes {
		o.Routes = append(o.Routes, &url.URL{Scheme: "nats", Host: fmt.Sprintf("127.0.0.1:%d", p)})
	}
	s, err := server.NewServer(o)
	if err != nil {
		return err
	}
	s.Start()
	s.WaitForShutdown()
	return nil
}

// start starts the node; it ends with the test at the latest.
func (n *node) start(t testing.TB) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(n)
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command(self, "-test.run=^$")
	c.Env = append(os.Environ(), nodeVariable+"="+string(text))
	c.Stderr = os.Stderr
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	n.process = c
}

// kill ends the node as a crash does.
func (n *node) kill() {
	if n.process != nil {
		_ = n.process.Process.Kill() // it may be dead already
		_ = n.process.Wait()         // killed
		n.process = nil
	}
}

// cluster starts three nodes.
func cluster(t testing.TB) (nodes []*node, addresses string) {
	t.Helper()
	var routes []int
	for range 3 {
		routes = append(routes, port(t))
	}
	var list []string
	for i, r := range routes {
		n := &node{Name: fmt.Sprintf("n%d", i), Store: t.TempDir(), Client: port(t), Route: r, Routes: routes}
		n.start(t)
		t.Cleanup(n.kill)
		nodes = append(nodes, n)
		list = append(list, fmt.Sprintf("nats://127.0.0.1:%d", n.Client))
	}
	return nodes, strings.Join(list, ",")
}
