//go:build unix

package ring_test

import (
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/usp-project/usp/ring"
)

// Both ends of a ring. They are usually two processes.
func Example() {
	dir, err := os.MkdirTemp("", "ring")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	p, err := ring.Create(ring.Config{Path: filepath.Join(dir, "a.ring"), RunID: "example", PayloadLen: 16, Slots: 4})
	if err != nil {
		log.Fatal(err)
	}
	c, err := ring.Open(p.Path())
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()

	for step := range uint64(6) { // two more than the ring holds
		p.Emit([]uint64{step, step * step})
	}
	if err := p.Close(true); err != nil {
		log.Fatal(err)
	}

	record := make([]uint64, c.Header().Words())
	for {
		seq, status := c.Next(record)
		switch status {
		case ring.Got:
			fmt.Println(seq, record)
			continue
		case ring.Lost:
			from, to, reason := c.LostRange()
			fmt.Printf("lost [%d, %d): %v\n", from, to, reason)
			continue
		}
		fmt.Println(status, c.State(), c.Produced())
		break
	}
	if err := c.Remove(); err != nil {
		log.Fatal(err)
	}
	// Output:
	// lost [0, 2): overrun
	// 2 [2 4]
	// 3 [3 9]
	// 4 [4 16]
	// 5 [5 25]
	// empty closed 6
}

// A state is staged without waiting; the consumer takes it when it can.
func ExampleProducer_Stage() {
	dir, err := os.MkdirTemp("", "ring")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	p, err := ring.Create(ring.Config{
		Path: filepath.Join(dir, "a.ring"), PayloadLen: 8, Slots: 4,
		StagingAreas: 1, StagingCapacity: 1 << 10,
	})
	if err != nil {
		log.Fatal(err)
	}
	defer p.Close(true)
	c, err := ring.Open(p.Path())
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()

	state := "weights"
	for step := range uint64(2) {
		p.Emit([]uint64{step})
		staged := p.Stage(step, 0, len(state), func(dst []byte) { copy(dst, state) })
		fmt.Println("step", step, "staged", staged)
	}
	if s, ok := c.Staged(); ok {
		fmt.Printf("%s after step %d: store records < %d first\n", s.Bytes(), s.Step, s.Seq)
		if err := s.Release(); err != nil {
			log.Fatal(err)
		}
	}
	fmt.Println("dropped", c.Drops())
	// Output:
	// step 0 staged true
	// step 1 staged false
	// weights after step 0: store records < 1 first
	// dropped 1
}
