package cli

import (
	"errors"
	"os"
	"path/filepath"

	"github.com/usp-project/usp/internal/pyramid"
)

// noCache in serve.cache: aggregates are not kept.
const noCache = "none"

// cacheDir is the directory of the cache of aggregates; empty: there is to be none.
func (a *app) cacheDir() (string, error) {
	switch dir := a.cfg.Serve.Cache; dir {
	case noCache:
		return "", nil
	case "":
		user, err := os.UserCacheDir()
		if err != nil {
			return "", errors.New("the user has no cache directory: name one with serve.cache, or say none")
		}
		return filepath.Join(user, "usp", "aggregates"), nil
	default:
		return dir, nil
	}
}

// openCache opens the cache of aggregates. Where that is not possible runs are shown without, and fault says so.
func (a *app) openCache() (c *pyramid.Cache, fault string) {
	dir, err := a.cacheDir()
	if err == nil && dir == "" {
		return nil, ""
	}
	if err == nil {
		c, err = pyramid.OpenCache(pyramid.CacheOptions{Dir: dir, Max: int64(a.cfg.Serve.CacheSize), FS: a.fs, Now: a.now})
	}
	if err != nil {
		a.logger().Warn("aggregates of runs cannot be kept; each long run is read once by each usp serve that shows it", "err", err)
		return nil, "they cannot be kept: the log of usp serve says why"
	}
	return c, ""
}
