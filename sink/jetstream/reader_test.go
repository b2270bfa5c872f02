package jetstream

import (
	"crypto/sha256"
	"testing"
	"time"

	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/usp-project/usp/record"
)

// FuzzMessage gives a Reader's decoders what anybody may write: they return, and what they accept is a message of the kind its
// subject is for, with frames that lie in it.
func FuzzMessage(f *testing.F) {
	payload := appendFrame(nil, record.AppendRecord(nil, 0, 7, []uint64{1, 2}))
	schema, err := record.NewSchema("x", record.Field{Name: "a", Class: record.Metric, Type: record.Float64, Len: 1})
	if err != nil {
		f.Fatal(err)
	}
	for _, p := range [][]byte{payload, schema.Text(), nil, []byte("hello"), payload[:9], {255, 255, 255, 255, 0}} {
		for _, h := range some(p) {
			f.Add("usp.telemetry.a%2Eb", h.kind, "1", "9", "0", "rack", p)
		}
	}
	f.Add("usp.audit.a", kindHead, "7", "7", "clean", "", []byte("usp/a\n"))
	f.Add("usp.other", kindHead, "7", "7", "clean", "", []byte("usp/a\n"))
	f.Fuzz(func(t *testing.T, subject, kind, first, next, text, host string, payload []byte) {
		h := header{kind: kind, payload: sha256.Sum256(payload)}
		m := h.encode("a", "usp", 0)
		m["Usp-First"], m["Usp-Next"] = []string{first}, []string{next}
		for _, name := range []string{"Generation", "Schema", "Records", "Lost", "Step", "Time", "Segment"} {
			if len(m["Usp-"+name]) == 0 {
				m["Usp-"+name] = []string{text}
			}
		}
		m["Usp-Status"], m["Usp-Host"] = []string{text}, []string{host}
		got, ok, err := Decode(&natsjs.RawStreamMsg{Subject: subject, Sequence: 3, Header: m, Data: payload, Time: time.Unix(1, 0)})
		if ok != (got != nil) || !ok && err != nil {
			t.Fatalf("%+v, %v, %v", got, ok, err)
		}
		if err != nil || !ok {
			return
		}
		if got.Audit != (kind == kindEntries || kind == kindHead) || got.Next < got.First {
			t.Fatalf("%s is %+v", subject, got)
		}
		size := 0
		for frame, err := range got.Frames() {
			if err == nil {
				size += 4 + len(frame)
			}
		}
		if size > len(payload) {
			t.Fatalf("%d bytes of frames in %d", size, len(payload))
		}
		d, described, err := got.Describes()
		if described != (kind == kindSchema) || err == nil && described && (d.Words() < 2 || d.Host != "" && !readable(d.Host)) {
			t.Fatalf("%+v, %v, %v", d, described, err)
		}
	})
}
