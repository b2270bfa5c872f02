//go:build !linux

package cli

import "time"

// monotonic is for a service manager that only Linux has.
func monotonic() time.Duration { return 0 }
