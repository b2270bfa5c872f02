// Command usp-man writes the man pages of usp, one for each command, into a directory. They say what --help says.
package main

import (
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra/doc"

	"github.com/usp-project/usp/internal/cli"
)

func main() {
	if err := write(os.Args[1:], os.Getenv("SOURCE_DATE_EPOCH")); err != nil {
		fmt.Fprintln(os.Stderr, "usp-man:", err)
		os.Exit(1)
	}
}

// write writes the pages into args[0], dated epoch, in Unix seconds, or now.
func write(args []string, epoch string) error {
	if len(args) != 1 {
		return fmt.Errorf("want one directory, got %q", args)
	}
	date := time.Now()
	if s, err := strconv.ParseInt(epoch, 10, 64); err == nil {
		date = time.Unix(s, 0)
	}
	date = date.UTC()
	root := cli.Root()
	root.DisableAutoGenTag = true
	return doc.GenManTree(root, &doc.GenManHeader{Title: "USP", Section: "1", Date: &date, Source: "usp", Manual: "usp"}, args[0])
}
