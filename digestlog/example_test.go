package digestlog_test

import (
	"bytes"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"golang.org/x/mod/sumdb/note"

	"github.com/usp-project/usp/digestlog"
)

// A log is written, signed, and verified by someone who has only the public key.
func Example() {
	run, err := os.MkdirTemp("", "usp-example-")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(run)
	dir, head := filepath.Join(run, "digests"), filepath.Join(run, digestlog.HeadName)

	fixed := bytes.NewReader(make([]byte, 64)) // a real key comes from crypto/rand: pass nil
	signer, verifierKey, err := digestlog.LoadOrCreateKey(nil, filepath.Join(run, "key"), fixed)
	if err != nil {
		log.Fatal(err)
	}
	l, err := digestlog.Open(dir, digestlog.Options{RunID: "example", Signer: signer})
	if err != nil {
		log.Fatal(err)
	}
	for step := range uint64(3) {
		rho := [32]byte{byte(step)} // SHA-256 of the weight vector
		if _, err := l.Append(&digestlog.Entry{Kind: digestlog.KindStep, Step: step, Seq: step, Digests: [][32]byte{rho}}); err != nil {
			log.Fatal(err)
		}
	}
	if _, err := l.Append(&digestlog.Entry{Kind: digestlog.KindEnd, Status: digestlog.StatusClean, Stored: 3}); err != nil {
		log.Fatal(err)
	}
	if err := l.Close(); err != nil {
		log.Fatal(err)
	}

	verifier, err := note.NewVerifier(verifierKey)
	if err != nil {
		log.Fatal(err)
	}
	report, err := digestlog.Verify(nil, dir, head, note.VerifierList(verifier))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("faults:", report.Err())
	fmt.Println("closed:", report.Closed())
	fmt.Println("signed:", report.Head.Origin, report.Head.Size)
	fmt.Printf("root:   %x\n", report.Root[:8])
	// Output:
	// faults: <nil>
	// closed: true
	// signed: usp/example 4
	// root:   b04ade08df6df166
}

// Entries reads a log without a key.
func ExampleEntries() {
	for item, err := range digestlog.Entries(nil, "../testdata/vectors/digestlog/log-active/digests") {
		if err != nil {
			fmt.Println(err)
			continue
		}
		fmt.Println(item.Index, item.Entry.Kind, item.Entry.Step, item.File, item.Offset)
	}
	// Output:
	// 0 STEP 0 00000000000000000000.seg 4136
	// 1 STEP 1 00000000000000000000.seg 4238
	// 2 STEP 2 00000000000000000000.seg 4384
}
