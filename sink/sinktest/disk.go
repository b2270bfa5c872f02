package sinktest

import (
	"syscall"
	"testing"

	"github.com/usp-project/usp/internal/vfs"
)

// Disk is a file system for a destination of files, on which it can be away or not answer.
type Disk struct {
	*vfs.Injector
	answers chan struct{} // nil: at once
}

// NewDisk makes one over the operating system's.
func NewDisk() *Disk { return &Disk{Injector: vfs.Inject(vfs.OS())} }

// Fault is for Destination.Fault; such a destination blocks.
func (d *Disk) Fault(_ *testing.T, how Fault) {
	d.Clear()
	d.SetHook(nil)
	if d.answers != nil {
		close(d.answers)
		d.answers = nil
	}
	switch how {
	case Away:
		d.Add(vfs.Rule{Op: vfs.OpAny &^ vfs.OpClose, Sticky: true, Err: syscall.EIO})
	case Silent:
		answers := make(chan struct{})
		d.answers = answers
		d.SetHook(func(vfs.Op) { <-answers })
	}
}
