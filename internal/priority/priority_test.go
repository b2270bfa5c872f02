package priority

import (
	"slices"
	"testing"
)

func TestUnsignalled(t *testing.T) {
	for _, c := range []struct{ name, before, after string }{
		{"nothing said", "", "GODEBUG=asyncpreemptoff=1"},
		{"said to be nothing", "GODEBUG=", "GODEBUG=asyncpreemptoff=1"},
		{"something else", "GODEBUG=gctrace=1,madvdontneed=1", "GODEBUG=gctrace=1,madvdontneed=1,asyncpreemptoff=1"},
		{"another name that ends so", "GODEBUG=myasyncpreemptoff=1", "GODEBUG=myasyncpreemptoff=1,asyncpreemptoff=1"},
		{"wanted", "GODEBUG=asyncpreemptoff=0,gctrace=1", ""},
		{"refused already", "GODEBUG=gctrace=1,asyncpreemptoff=1", ""},
	} {
		env := append(make([]string, 0, 8), "HOME=/x", "NOTGODEBUG=a")
		if c.before != "" {
			env = append(env, "GODEBUG=overridden,asyncpreemptoff=0", c.before)
		}
		want := env
		if c.after != "" {
			want = append(slices.Clone(env), c.after)
		}
		kept := slices.Clone(env[:cap(env)])
		if got := Unsignalled(env); !slices.Equal(got, want) {
			t.Errorf("%s: %q", c.name, got)
		}
		if !slices.Equal(kept, env[:cap(env)]) {
			t.Errorf("%s: wrote behind what it was given", c.name)
		}
	}
}
