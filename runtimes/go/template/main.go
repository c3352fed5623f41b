// The server around one Handle function: it serves HTTP/1.1 on a listening socket that it
// inherits, or on PORT. See README.md for how it is built and what it inherits.
package main

import (
	"context"
	"errors"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"
)

type settings struct {
	functionID  string
	timeout     time.Duration
	concurrency int
	maxBody     int64
	listenFD    int
	controlFD   int
	statusFD    int
}

func number(name string, otherwise int) int {
	value, err := strconv.Atoi(os.Getenv(name))
	if err != nil {
		return otherwise
	}
	return value
}

func readSettings() settings {
	seconds, err := strconv.ParseFloat(os.Getenv("MAYFLY_TIMEOUT"), 64)
	if err != nil || seconds <= 0 {
		seconds = 60
	}
	return settings{
		functionID:  os.Getenv("MAYFLY_FUNCTION"),
		timeout:     time.Duration(seconds * float64(time.Second)),
		concurrency: max(1, number("MAYFLY_CONCURRENCY", 1)),
		maxBody:     int64(number("MAYFLY_MAX_BODY", 32<<20)),
		listenFD:    number("MAYFLY_LISTEN_FD", -1),
		controlFD:   number("MAYFLY_CONTROL_FD", -1),
		statusFD:    number("MAYFLY_STATUS_FD", -1),
	}
}

func main() {
	log.SetFlags(0)
	s := readSettings()
	for _, fd := range []int{s.listenFD, s.controlFD, s.statusFD} {
		if fd >= 0 {
			syscall.CloseOnExec(fd)
		}
	}
	page, err := openStatusPage(s.statusFD, s.concurrency)
	if err != nil {
		log.Fatalf("the status page: %v", err)
	}
	server := newServer(Handle, s, page)
	var draining atomic.Bool
	var listener net.Listener
	if s.listenFD >= 0 {
		file := os.NewFile(uintptr(s.listenFD), "listener")
		listener, err = net.FileListener(file)
		file.Close()
	} else {
		if err := limitOpenFiles(); err != nil {
			log.Fatalf("the limit of open files: %v", err)
		}
		listener, err = listenOnPort()
	}
	if err != nil {
		log.Fatalf("the listening socket: %v", err)
	}
	if s.listenFD >= 0 {
		listener = newLimitedListener(listener, s.concurrency, page)
	} else {
		server.Handler = newContained(server.Handler, s, &draining)
		server.IdleTimeout = 620 * time.Second // longer than proxies keep an idle connection
	}

	stop := make(chan os.Signal, 4)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT, syscall.SIGXCPU)
	drained := make(chan struct{})
	go func() {
		<-stop
		page.drain()
		draining.Store(true)
		listener.Close()
		if err := server.Shutdown(context.Background()); err != nil {
			log.Printf("while ending: %v", err)
		}
		close(drained)
	}()
	if s.controlFD >= 0 {
		if _, err := syscall.Write(s.controlFD, []byte(`{"ready":true}`)); err != nil {
			log.Fatalf("the control socket: %v", err)
		}
	}
	err = server.Serve(listener)
	if !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
		log.Fatalf("the listening socket is broken: %v", err)
	}
	<-drained
}
