package remote

import (
	"context"
	"io"
	"time"
)

// A Store is a bucket. Its methods are safe for use by one goroutine; each returns soon after ctx has ended, and its errors
// wrap the classes of this package.
type Store interface {
	// List returns the objects whose keys begin with a prefix, by key.
	List(ctx context.Context, prefix string) ([]Object, error)
	// Open reads an object. The reader is closed by the caller.
	Open(ctx context.Context, key string) (io.ReadCloser, int64, error)
	// Stat describes an object.
	Stat(ctx context.Context, key string) (Object, error)
	// Put makes an object in one request.
	Put(ctx context.Context, key string, data []byte, t Tags) error
	// Remove removes an object, with what a versioned bucket would keep of it. One that is not there is no error.
	Remove(ctx context.Context, key string) error

	// Begin, Part and Finish make an object in parts, which are numbered from 1. Part returns what Finish is to be told.
	Begin(ctx context.Context, key string, t Tags) (upload string, err error)
	Part(ctx context.Context, key, upload string, number int, data []byte) (tag string, err error)
	Finish(ctx context.Context, key, upload string, tags []string, t Tags) error
	// Abort gives up an upload; one that is not there is no error. Uploads lists those that were begun and not ended.
	Abort(ctx context.Context, key, upload string) error
	Uploads(ctx context.Context, prefix string) ([]Upload, error)
}

// Object is what a store says of an object.
type Object struct {
	Key      string
	Size     int64
	Modified time.Time
	SHA256   string // from Stat: what was said of it when it was made; hexadecimal, "" if nothing was
}

// Upload is an upload that was not ended.
type Upload struct{ Key, ID string }

// Tags go with an object.
type Tags struct {
	SHA256 string // of the whole object, in hexadecimal
	Text   bool   // it is JSON
}
