package vfs

import (
	"fmt"
	"strings"
)

// OpKind names kinds of file system operations; several may be or-ed together to select a set.
type OpKind uint32

// The kinds of operations, as [Mem] reports and [Injector] matches them.
const (
	OpOpen        OpKind = 1 << iota // OpenFile without O_CREATE
	OpCreate                         // OpenFile with O_CREATE
	OpMkdir                          //
	OpRemove                         //
	OpRename                         //
	OpLink                           //
	OpStat                           // FS.Stat and File.Stat
	OpReadDir                        //
	OpChmod                          //
	OpSyncDir                        // FS.SyncDir, and Sync or Datasync on an open directory
	OpFree                           //
	OpLock                           //
	OpRead                           // Read and ReadAt
	OpWrite                          // Write and WriteAt
	OpSync                           // File.Sync
	OpDatasync                       // File.Datasync
	OpTruncate                       //
	OpPreallocate                    //
	OpClose                          //

	opEnd // one past the last kind
)

// Sets of kinds.
const (
	OpAny     = opEnd - 1
	OpMutates = OpCreate | OpMkdir | OpRemove | OpRename | OpLink | OpChmod | OpSyncDir |
		OpWrite | OpSync | OpDatasync | OpTruncate | OpPreallocate // operations that change what a crash leaves
	OpAnySync = OpSync | OpDatasync | OpSyncDir
)

// String names the kinds, joined by '|'.
func (k OpKind) String() string {
	names := [...]string{"open", "create", "mkdir", "remove", "rename", "link", "stat", "readdir", "chmod",
		"syncdir", "free", "lock", "read", "write", "sync", "datasync", "truncate", "preallocate", "close"}
	var parts []string
	for i, name := range names {
		if k&(1<<i) != 0 {
			parts = append(parts, name)
		}
	}
	if len(parts) == 0 || k >= opEnd {
		return fmt.Sprintf("op(%#x)", uint32(k))
	}
	return strings.Join(parts, "|")
}

// Op is one operation about to be made.
type Op struct {
	Kind OpKind // exactly one kind
	Name string // the file or directory; for Rename and Link the new name
	N    int    // 0 for the first operation on the file system
}

// String returns "N kind name", for test failures.
func (o Op) String() string { return fmt.Sprintf("%d %s %s", o.N, o.Kind, o.Name) }
