package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"log"
	"net/http"
	"os"
	"runtime/debug"
	"strings"
	"time"
)

type server struct {
	settings settings
	page     *statusPage
	handle   func(Event, Context) (any, error)
}

func lower(name string) string    { return strings.ToLower(name) }
func join(values []string) string { return strings.Join(values, ", ") }
func newRequestID() string        { return rand.Text() }
func note(id, format string, args ...any) {
	log.Printf("request %s: "+format, append([]any{id}, args...)...)
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	id := r.Header.Get("X-Request-Id")
	if id == "" {
		id = newRequestID()
	}
	w.Header().Set("X-Request-Id", id)
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, s.settings.maxBody))
	if err != nil {
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			writeJSON(w, http.StatusRequestEntityTooLarge,
				map[string]string{"error": fmt.Sprintf("a body may have %d bytes", tooLarge.Limit)})
		}
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), s.settings.timeout)
	defer cancel()
	slot := slotOf(r.Context())
	s.page.begin(slot)
	defer s.page.end(slot)
	result, err := s.call(newEvent(r, body), Context{
		Context: ctx, FunctionID: s.settings.functionID, RequestID: id,
		ContractVersion: ContractVersion,
	})
	if err != nil {
		note(id, "the handler failed: %v", err)
		writeInternal(w, id)
		return
	}
	s.reply(w, r, id, slot, result)
}

// call turns a panic into an error whose text holds the stack.
func (s *server) call(event Event, ctx Context) (result any, err error) {
	defer func() {
		if reason := recover(); reason != nil {
			err = fmt.Errorf("panic: %v\n%s", reason, debug.Stack())
		}
	}()
	return s.handle(event, ctx)
}

func (s *server) reply(w http.ResponseWriter, r *http.Request, id string, slot int, result any) {
	status := http.StatusOK
	response, full := result.(Response)
	if pointer, ok := result.(*Response); ok && pointer != nil {
		response, full = *pointer, true
	}
	if full {
		if response.Status != 0 {
			status = response.Status
		}
		for name, value := range response.Headers {
			w.Header().Set(name, value)
		}
		result = response.Body
	}
	if status < 200 || status > 599 {
		note(id, "%d is no status of a response (200 to 599)", status)
		writeInternal(w, id)
		return
	}
	switch body := result.(type) {
	case string:
		write(w, status, "text/plain; charset=utf-8", []byte(body))
	case []byte:
		write(w, status, "application/octet-stream", body)
	case io.Reader:
		s.stream(w, r, id, slot, status, readerItems(body))
	case iter.Seq[[]byte]:
		s.stream(w, r, id, slot, status, toPairs(body))
	case iter.Seq[string]:
		s.stream(w, r, id, slot, status, toPairs(body))
	default:
		data, err := json.Marshal(result)
		if err != nil {
			note(id, "the result is not JSON: %v", err)
			writeInternal(w, id)
			return
		}
		write(w, status, "application/json", data)
	}
}

func readerItems(reader io.Reader) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		if closer, ok := reader.(io.Closer); ok {
			defer closer.Close()
		}
		buffer := make([]byte, 64<<10)
		for {
			count, err := reader.Read(buffer)
			if count > 0 && !yield(buffer[:count], nil) {
				return
			}
			if err != nil {
				if err != io.EOF {
					yield(nil, err)
				}
				return
			}
		}
	}
}

func toPairs[T string | []byte](items iter.Seq[T]) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		for item := range items {
			if !yield([]byte(item), nil) {
				return
			}
		}
	}
}

// stream sends items as they come; an error in the middle cuts the connection off.
func (s *server) stream(w http.ResponseWriter, r *http.Request, id string, slot, status int,
	items iter.Seq2[[]byte, error],
) {
	defer func() {
		if reason := recover(); reason != nil {
			if reason != http.ErrAbortHandler {
				note(id, "the stream failed: %v\n%s", reason, debug.Stack())
			}
			panic(http.ErrAbortHandler)
		}
	}()
	setType(w, "application/octet-stream")
	s.page.end(slot)
	w.WriteHeader(status)
	control := http.NewResponseController(w)
	control.Flush()
	for data, err := range items {
		if err != nil {
			note(id, "the stream failed: %v", err)
			panic(http.ErrAbortHandler)
		}
		if _, err := w.Write(data); err != nil {
			return
		}
		control.Flush()
		if r.Context().Err() != nil {
			return
		}
	}
}

func setType(w http.ResponseWriter, kind string) {
	if w.Header().Get("Content-Type") == "" {
		w.Header().Set("Content-Type", kind)
	}
}

func write(w http.ResponseWriter, status int, kind string, body []byte) {
	setType(w, kind)
	w.Header().Set("Content-Length", fmt.Sprint(len(body)))
	w.WriteHeader(status)
	w.Write(body)
}

func writeJSON(w http.ResponseWriter, status int, value any) {
	data, err := json.Marshal(value)
	if err != nil {
		log.Panic(err)
	}
	write(w, status, "application/json", data)
}

func writeInternal(w http.ResponseWriter, id string) {
	for name := range w.Header() {
		if name != "X-Request-Id" {
			w.Header().Del(name)
		}
	}
	writeJSON(w, http.StatusInternalServerError,
		map[string]string{"error": "internal", "request_id": id})
}

func newServer(handle func(Event, Context) (any, error), s settings, page *statusPage) *http.Server {
	return &http.Server{
		Handler:           &server{settings: s, page: page, handle: handle},
		ReadHeaderTimeout: 60 * time.Second,
		IdleTimeout:       30 * time.Second,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          log.New(os.Stderr, "", 0),
		ConnContext:       contextWithSlot,
	}
}
