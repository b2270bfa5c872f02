// Command usp predicts series, records step loops, and verifies, compares and shows what was recorded.
package main

import (
	"os"

	"github.com/usp-project/usp/internal/cli"
)

func main() {
	os.Exit(cli.Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
