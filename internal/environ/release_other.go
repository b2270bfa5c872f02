//go:build !unix

package environ

func release() string { return "" }
