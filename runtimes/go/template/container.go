package main

import (
	"context"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
)

// In a container nobody hands a listening socket over and nobody counts connections from outside:
// it listens on PORT, takes every connection, and lets concurrency requests into the handler.

const probeHeader = "Mayfly-Probe" // see runtimes/python/probes.py

// limitOpenFiles holds this process to MAYFLY_OPEN_FILES: a container itself sets no limit.
func limitOpenFiles() error {
	wanted := uint64(max(0, number("MAYFLY_OPEN_FILES", 0)))
	if wanted == 0 {
		return nil
	}
	var now syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &now); err != nil {
		return err
	}
	limit := min(wanted, now.Max)
	return syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: limit, Max: limit})
}

func listenOnPort() (net.Listener, error) {
	port := os.Getenv("PORT")
	if port == "" {
		port = "8080"
	}
	return net.Listen("tcp", ":"+port)
}

// contained answers probes itself and makes requests beyond concurrency wait.
type contained struct {
	http.Handler
	settings settings
	permits  chan struct{}
	draining *atomic.Bool
}

func newContained(inner http.Handler, s settings, draining *atomic.Bool) *contained {
	return &contained{inner, s, make(chan struct{}, s.concurrency), draining}
}

func (c *contained) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := r.URL.Path
	if r.Method == http.MethodGet && r.Header[probeHeader] != nil &&
		(path == "/healthz" || path == "/readyz") {
		if path == "/readyz" && c.draining.Load() {
			writeJSON(w, http.StatusServiceUnavailable, map[string]string{"status": "draining"})
			return
		}
		writeJSON(w, http.StatusOK, map[string]string{"status": "ok"})
		return
	}
	select {
	case c.permits <- struct{}{}:
	case <-r.Context().Done():
		return
	}
	var once sync.Once
	release := func() { once.Do(func() { <-c.permits }) }
	defer release()
	// A handler that does not heed its context cannot be stopped: the next one goes ahead. The
	// caller is told by whoever is in front.
	overdue, cancel := context.WithTimeout(context.Background(), c.settings.timeout)
	defer cancel()
	stop := context.AfterFunc(overdue, func() {
		if context.Cause(overdue) == context.DeadlineExceeded {
			release()
		}
	})
	defer stop()
	c.Handler.ServeHTTP(w, r)
}
