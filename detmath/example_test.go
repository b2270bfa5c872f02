package detmath_test

import (
	"fmt"

	"github.com/usp-project/usp/detmath"
)

func ExampleExp() {
	fmt.Printf("%x\n", detmath.Exp(1)) // the same bits on every platform
	// Output: 0x1.5bf0a8b145769p+01
}

func ExampleUniform() {
	u := detmath.Uniform{Seed: 42}
	a := u.Uint64()
	u.Counter = 0 // the counter is the whole state
	fmt.Println(a == u.Uint64())
	// Output: true
}
