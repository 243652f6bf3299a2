package wallclock

import (
	"bytes"
	"cmp"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"svid-watchdog/internal/e2e/neighbour"
)

// Clock is a wall clock that may be set. It is safe for concurrent use.
type Clock struct {
	mu    sync.Mutex
	ahead time.Duration
	// governed are the memories of the programs, by the place of the number of
	// seconds that is added to the time.
	governed map[*os.File]int64
}

// New makes a clock, which shows the right time until it is set. With the end of
// the test it lets go of the programs, as they are.
func New(t testing.TB) *Clock {
	t.Helper()
	if err := allowed(); err != nil {
		neighbour.Lacking(t, "the kernel does not let us change what a program runs: "+err.Error())
	}
	c := &Clock{governed: make(map[*os.File]int64)}
	t.Cleanup(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		for memory := range c.governed {
			memory.Close()
		}
		c.governed = nil
	})
	return c
}

// Now is what the clock shows.
func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.ahead)
}

// Set sets the clock that far ahead of the right time, or behind it if negative,
// by whole seconds. A program that is stopped, or short of anything, is no
// hindrance; one that has ended is forgotten.
func (c *Clock) Set(ahead time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ahead = ahead.Truncate(time.Second)
	for memory, place := range c.governed {
		if err := write(memory, place, c.ahead); err != nil {
			memory.Close()
			delete(c.governed, memory)
		}
	}
}

func write(memory *os.File, place int64, ahead time.Duration) error {
	_, err := memory.WriteAt(binary.LittleEndian.AppendUint64(nil, uint64(ahead/time.Second)), place) //nolint:gosec // two's complement is meant
	return err
}

// Begin puts a program under the clock. The program must not run, as it must be
// nowhere in what is overwritten: it is meant for [child.StartHeld].
func (c *Clock) Begin(pid int) error {
	from, to, err := vdso(pid)
	if err != nil {
		return fmt.Errorf("put process %d under the clock: %w", pid, err)
	}
	memory, err := os.OpenFile(proc(pid, "mem"), os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("put process %d under the clock: %w", pid, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	place, err := replace(memory, from, to, c.ahead)
	if err != nil || c.governed == nil {
		memory.Close()
		return fmt.Errorf("put process %d under the clock: %w", pid, cmp.Or(err, os.ErrClosed))
	}
	c.governed[memory] = place
	return nil
}

// allowed tells whether the kernel lets us write where a program cannot.
func allowed() error {
	from, _, err := vdso(os.Getpid())
	if err != nil {
		return err
	}
	memory, err := os.OpenFile(proc(os.Getpid(), "mem"), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer memory.Close()
	same := make([]byte, 1)
	if _, err := memory.ReadAt(same, from); err != nil {
		return err
	}
	_, err = memory.WriteAt(same, from)
	return err
}

func proc(pid int, name string) string { return filepath.Join("/proc", fmt.Sprint(pid), name) }

// vdso is where a program has the functions that the kernel gave it.
func vdso(pid int) (from, to int64, err error) {
	maps, err := os.ReadFile(proc(pid, "maps"))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(maps)) {
		if strings.HasSuffix(line, "[vdso]\n") {
			_, err := fmt.Sscanf(line, "%x-%x", &from, &to)
			return from, to, err
		}
	}
	return 0, 0, errors.New("it has no vDSO")
}

// The functions that are put in the place of the kernel's. Where there are four
// zeros, the distance follows from there to the seconds that are added.
var (
	clockGettime = []byte{
		0xb8, 0xe4, 0, 0, 0, // mov eax, SYS_clock_gettime
		0x0f, 0x05, // syscall
		0x85, 0xc0, // test eax, eax
		0x75, 0x13, // jnz out
		0x85, 0xff, // test edi, edi          CLOCK_REALTIME
		0x74, 0x05, // jz add
		0x83, 0xff, 0x05, // cmp edi, 5       CLOCK_REALTIME_COARSE
		0x75, 0x0a, // jne out
		0x48, 0x8b, 0x15, 0, 0, 0, 0, // add: mov rdx, [ahead]
		0x48, 0x01, 0x16, // add [rsi], rdx
		0xc3, // out: ret
	}
	getTimeOfDay = []byte{
		0xb8, 0x60, 0, 0, 0, // mov eax, SYS_gettimeofday
		0x0f, 0x05, // syscall
		0x85, 0xc0, // test eax, eax
		0x75, 0x0f, // jnz out
		0x48, 0x85, 0xff, // test rdi, rdi
		0x74, 0x0a, // jz out
		0x48, 0x8b, 0x15, 0, 0, 0, 0, // mov rdx, [ahead]
		0x48, 0x01, 0x17, // add [rdi], rdx
		0xc3, // out: ret
	}
	timeOfDay = []byte{
		0xb8, 0xc9, 0, 0, 0, // mov eax, SYS_time
		0x0f, 0x05, // syscall
		0x48, 0x03, 0x05, 0, 0, 0, 0, // add rax, [ahead]
		0x48, 0x85, 0xff, // test rdi, rdi
		0x74, 0x03, // jz out
		0x48, 0x89, 0x07, // mov [rdi], rax
		0xc3, // out: ret
	}
	distance = []byte{0, 0, 0, 0}
)

// replace overwrites the functions, and returns the place of the seconds that
// they add: behind the first of them, where it was much longer.
func replace(memory *os.File, from, to int64, ahead time.Duration) (place int64, err error) {
	image := make([]byte, to-from)
	if _, err := memory.ReadAt(image, from); err != nil {
		return 0, err
	}
	file, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		return 0, err
	}
	symbols, err := file.DynamicSymbols()
	if err != nil {
		return 0, err
	}
	const number = 64 // aligned, so that it is written at once
	size := func(name string) (at, size int64) {
		for _, s := range symbols {
			if s.Name == name {
				return from + int64(s.Value), int64(s.Size) //nolint:gosec // both are within the image
			}
		}
		return 0, 0
	}
	first, room := size("__vdso_clock_gettime")
	if room < number+8 {
		return 0, fmt.Errorf("__vdso_clock_gettime takes %d bytes", room)
	}
	place = first + number
	if err := write(memory, place, ahead); err != nil {
		return 0, err
	}
	for name, code := range map[string][]byte{
		"__vdso_clock_gettime": clockGettime, "__vdso_gettimeofday": getTimeOfDay, "__vdso_time": timeOfDay,
	} {
		at, room := size(name)
		if room < int64(len(code)) {
			return 0, fmt.Errorf("%s takes %d bytes", name, room)
		}
		operand := bytes.LastIndex(code, distance)
		code = bytes.Clone(code)
		binary.LittleEndian.PutUint32(code[operand:], uint32(place-at-int64(operand)-4)) //nolint:gosec // two's complement is meant
		if _, err := memory.WriteAt(code, at); err != nil {
			return 0, err
		}
	}
	return place, nil
}
