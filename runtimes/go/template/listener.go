package main

import (
	"context"
	"net"
	"sync"
	"syscall"
	"unsafe"
)

// statusPage is the page of memory shared with the supervisor; its layout is in
// runtimes/python/status.py. A zero page (no descriptor) counts for nobody.
type statusPage struct {
	mutex sync.Mutex
	words []uint64
}

const (
	wordOpen, wordAccepted, wordChanged, wordDrain = 0, 1, 2, 3
	firstSlot                                      = 8
)

func openStatusPage(fd, concurrency int) (*statusPage, error) {
	size := 8 * (firstSlot + concurrency)
	pageSize := syscall.Getpagesize()
	size = (size + pageSize - 1) / pageSize * pageSize
	var memory []byte
	if fd < 0 {
		memory = make([]byte, size)
	} else {
		mapped, err := syscall.Mmap(fd, 0, size, syscall.PROT_READ|syscall.PROT_WRITE,
			syscall.MAP_SHARED)
		if err != nil {
			return nil, err
		}
		memory = mapped
	}
	return &statusPage{words: unsafe.Slice((*uint64)(unsafe.Pointer(&memory[0])), size/8)}, nil
}

// now is CLOCK_MONOTONIC in nanoseconds, which the supervisor compares with its own.
func now() uint64 {
	var spec syscall.Timespec
	const clockMonotonic = 1
	syscall.Syscall(syscall.SYS_CLOCK_GETTIME, clockMonotonic, uintptr(unsafe.Pointer(&spec)), 0)
	return uint64(spec.Nano())
}

func (p *statusPage) change(delta int) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	p.words[wordOpen] += uint64(delta)
	if delta > 0 {
		p.words[wordAccepted]++
	}
	p.words[wordChanged] = now()
}

func (p *statusPage) begin(slot int) { p.words[firstSlot+slot] = now() }
func (p *statusPage) end(slot int)   { p.words[firstSlot+slot] = 0 }
func (p *statusPage) drain()         { p.words[wordDrain] = 2 }

// limitedListener accepts only while fewer than the allowed number of connections are open;
// what is beyond waits in the kernel, where the supervisor sees it.
type limitedListener struct {
	net.Listener
	page   *statusPage
	slots  chan int
	closed chan struct{}
	once   sync.Once
}

func newLimitedListener(inner net.Listener, concurrency int, page *statusPage) *limitedListener {
	slots := make(chan int, concurrency)
	for slot := range concurrency {
		slots <- slot
	}
	return &limitedListener{Listener: inner, page: page, slots: slots, closed: make(chan struct{})}
}

func (l *limitedListener) Accept() (net.Conn, error) {
	select {
	case <-l.closed:
		return nil, net.ErrClosed
	case slot := <-l.slots:
		conn, err := l.Listener.Accept()
		if err != nil {
			l.slots <- slot
			return nil, err
		}
		l.page.change(1)
		return &countedConn{Conn: conn, listener: l, slot: slot}, nil
	}
}

func (l *limitedListener) Close() error {
	var err error
	l.once.Do(func() {
		close(l.closed)
		err = l.Listener.Close()
	})
	return err
}

type countedConn struct {
	net.Conn
	listener *limitedListener
	slot     int
	once     sync.Once
}

func (c *countedConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() {
		c.listener.page.end(c.slot)
		c.listener.page.change(-1)
		c.listener.slots <- c.slot
	})
	return err
}

type slotKey struct{}

func contextWithSlot(ctx context.Context, conn net.Conn) context.Context {
	if counted, ok := conn.(*countedConn); ok {
		return context.WithValue(ctx, slotKey{}, counted.slot)
	}
	return ctx
}

func slotOf(ctx context.Context) int {
	slot, _ := ctx.Value(slotKey{}).(int)
	return slot
}
