package jetstream_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"

	"github.com/usp-project/usp/sink"
	"github.com/usp-project/usp/sink/jetstream"
	"github.com/usp-project/usp/sink/sinktest"
)

// pair makes a key pair.
func pair(t *testing.T, make func() (nkeys.KeyPair, error)) (kp nkeys.KeyPair, public string, seed []byte) {
	t.Helper()
	kp, err := make()
	if err != nil {
		t.Fatal(err)
	}
	if public, err = kp.PublicKey(); err != nil {
		t.Fatal(err)
	}
	if seed, err = kp.Seed(); err != nil {
		t.Fatal(err)
	}
	return kp, public, seed
}

func file(t *testing.T, text []byte) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// refused wants that a sink gives up at once, and says nothing of a secret.
func refused(t *testing.T, to jetstream.Options, secrets ...string) {
	t.Helper()
	r := sinktest.Record(t)
	r.Emit(1)
	err := sink.Bring(t.Context(), bringing(r), jetstream.New(to))
	if !errors.Is(err, sink.ErrRefused) {
		t.Errorf("%v, want a refusal", err)
	}
	for _, s := range secrets {
		if strings.Contains(fmt.Sprintf("%v %+v", err, err), s) {
			t.Errorf("the error shows %q: %v", s, err)
		}
	}
}

func accepted(t *testing.T, to jetstream.Options) {
	t.Helper()
	r := sinktest.Record(t)
	r.Emit(100)
	if err := sink.Bring(t.Context(), bringing(r), jetstream.New(to)); err != nil {
		t.Error(err)
		return
	}
	same(t, to, r)
}

// TestNkey has a server that knows the public keys of its users.
func TestNkey(t *testing.T) {
	_, public, seed := pair(t, nkeys.CreateUser)
	_, poor, poorSeed := pair(t, nkeys.CreateUser)
	_, _, other := pair(t, nkeys.CreateUser)
	s := serve(t, server.Options{Nkeys: []*server.NkeyUser{{Nkey: public}, {Nkey: poor, Permissions: &server.Permissions{
		Publish:   &server.SubjectPermission{Deny: []string{"usp.>"}},
		Subscribe: &server.SubjectPermission{Allow: []string{">"}},
	}}}})
	to := jetstream.Options{URL: s.ClientURL(), CredentialsFile: file(t, append(seed, '\n'))}
	accepted(t, to)
	to.CredentialsFile = file(t, other)
	refused(t, to, string(other))
	to.CredentialsFile = file(t, []byte("S3CRET that is no seed"))
	refused(t, to, "S3CRET")
	to.CredentialsFile = filepath.Join(t.TempDir(), "nothing")
	refused(t, to)
	to.CredentialsFile = ""
	refused(t, to)
	to.CredentialsFile = file(t, poorSeed) // may connect, and not publish
	r := sinktest.Record(t)
	r.Emit(200) // more than the stream has
	o := bringing(r)
	o.Timeout = 500 * time.Millisecond
	if err := sink.Bring(t.Context(), o, jetstream.New(to)); !errors.Is(err, sink.ErrRefused) || !strings.Contains(err.Error(), "ermissions") {
		t.Errorf("a user who may not publish: %v", err)
	}
	for _, address := range []string{
		"nats://me:S3CRET@127.0.0.1:4222", "nats://S3CRET@127.0.0.1:4222", "me:S3CRET@127.0.0.1", "nats://me:S3CRET @x", "http://127.0.0.1:1", "",
	} {
		refused(t, jetstream.Options{URL: address}, "S3CRET")
	}
}

// TestCredentials has a server that believes the JWTs of an operator.
func TestCredentials(t *testing.T) {
	operator, operatorKey, _ := pair(t, nkeys.CreateOperator)
	account, accountKey, _ := pair(t, nkeys.CreateAccount)
	_, systemKey, _ := pair(t, nkeys.CreateAccount)
	_, userKey, seed := pair(t, nkeys.CreateUser)
	encode := func(text string, err error) string {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	oc := jwt.NewOperatorClaims(operatorKey)
	oc.SystemAccount = systemKey
	oc2, err := jwt.DecodeOperatorClaims(encode(oc.Encode(operator)))
	if err != nil {
		t.Fatal(err)
	}
	resolver := &server.MemAccResolver{}
	for _, key := range []string{accountKey, systemKey} {
		ac := jwt.NewAccountClaims(key)
		if key == accountKey {
			ac.Limits.JetStreamLimits = jwt.JetStreamLimits{DiskStorage: -1, MemoryStorage: -1, Streams: -1, Consumer: -1}
		}
		if err := resolver.Store(key, encode(ac.Encode(operator))); err != nil {
			t.Fatal(err)
		}
	}
	s := serve(t, server.Options{TrustedOperators: []*jwt.OperatorClaims{oc2}, AccountResolver: resolver, SystemAccount: systemKey})
	uc := jwt.NewUserClaims(userKey)
	creds, err := jwt.FormatUserConfig(encode(uc.Encode(account)), seed)
	if err != nil {
		t.Fatal(err)
	}
	to := jetstream.Options{URL: s.ClientURL(), CredentialsFile: file(t, creds)}
	accepted(t, to)

	uc.Expires = time.Now().Add(-time.Hour).Unix()
	if creds, err = jwt.FormatUserConfig(encode(uc.Encode(account)), seed); err != nil {
		t.Fatal(err)
	}
	to.CredentialsFile = file(t, creds)
	refused(t, to, string(seed))
}

// TestTLS has a server whose certificate a file vouches for, and no other.
func TestTLS(t *testing.T) {
	cert, ca := certificate(t)
	_, other := certificate(t)
	s := serve(t, server.Options{TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}}, TLSTimeout: 5})
	address := strings.Replace(s.ClientURL(), "nats://", "tls://", 1)
	accepted(t, jetstream.Options{URL: address, CAFile: ca})
	for _, to := range []jetstream.Options{{URL: address, CAFile: other}, {URL: address}} {
		if c, err := jetstream.Connect(t.Context(), to); err == nil {
			c.Close()
			t.Errorf("connected to a server that nobody vouches for, with %+v", to)
		}
	}
	if c, err := jetstream.Connect(t.Context(), jetstream.Options{URL: serve(t, server.Options{}).ClientURL(), CAFile: ca}); err == nil {
		c.Close()
		t.Error("connected without TLS, although certificates were given")
	}
}

// certificate makes a self-signed certificate, and a file that vouches for it.
func certificate(t *testing.T) (tls.Certificate, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, file(t, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// TestDurability asks servers how they keep what they acknowledge.
func TestDurability(t *testing.T) {
	ask := func(o server.Options) (jetstream.Durability, error) {
		o.HTTPHost, o.HTTPPort = "127.0.0.1", -1
		s := serve(t, o)
		return jetstream.ReadDurability(t.Context(), "http://"+s.MonitorAddr().String())
	}
	d, err := ask(server.Options{})
	if err != nil || !d.JetStream || d.SyncAlways || d.SyncInterval != 2*time.Minute || !strings.Contains(d.String(), "2m0s") {
		t.Errorf("by default: %+v, %v", d, err)
	}
	d, err = ask(server.Options{SyncAlways: true, SyncInterval: time.Minute})
	if err != nil || !d.SyncAlways || strings.Contains(d.String(), "lose") {
		t.Errorf("sync_interval always: %+v, %v", d, err)
	}
	s := serve(t, server.Options{})
	for _, address := range []string{"http://" + s.Addr().String(), "nats://127.0.0.1:1", "http://me:S3CRET@127.0.0.1:1"} {
		if _, err := jetstream.ReadDurability(t.Context(), address); err == nil || strings.Contains(err.Error(), "S3CRET") {
			t.Errorf("%s: %v", address, err)
		}
	}
}
