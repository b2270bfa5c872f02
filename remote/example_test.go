package remote_test

import (
	"fmt"

	"github.com/usp-project/usp/remote"
)

func ExampleParseRun() {
	at, run, err := remote.ParseRun("s3://my-snapshots/fleet/latest")
	fmt.Println(at, run, err)
	_, _, err = remote.ParseRun("s3://me:password@my-snapshots/fleet/latest")
	fmt.Println(err)
	// Output:
	// s3://my-snapshots/fleet latest <nil>
	// no address of a remote store: it holds a user name, a query or a fragment: credentials come from the environment, and never stand in an address; write one such as s3://bucket/prefix
}
