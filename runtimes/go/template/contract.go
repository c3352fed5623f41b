package main

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
)

// ContractVersion is the version of the handler contract that this server speaks.
const ContractVersion = "1"

// Event is a request. Header names are lower-case; where a header or a query name is repeated,
// headers are joined with ", " and Query has the last value (QueryPairs has them all).
type Event struct {
	Method     string            `json:"method"`
	Path       string            `json:"path"`
	Headers    map[string]string `json:"headers"`
	Query      map[string]string `json:"query"`
	QueryPairs url.Values        `json:"query_pairs"`
	Body       string            `json:"body"`
	RawPath    string            `json:"raw_path"`
	RawQuery   string            `json:"raw_query"`
}

// JSON decodes the body.
func (e Event) JSON(target any) error { return json.Unmarshal([]byte(e.Body), target) }

// Context is what a handler may know about its surroundings. It ends at the deadline of the
// request and when the caller goes away.
type Context struct {
	context.Context
	FunctionID      string
	RequestID       string
	ContractVersion string
}

// Response is a full answer; Body is any value a handler may return.
//
// A handler returns a value (JSON), text (string), bytes ([]byte), a Response, or a stream: an
// io.Reader, an iter.Seq[string] or an iter.Seq[[]byte]. An error is a 500 for the caller, and its
// text is in the logs.
type Response struct {
	Status  int
	Headers map[string]string
	Body    any
}

func newEvent(r *http.Request, body []byte) Event {
	rawPath, rawQuery := r.URL.EscapedPath(), r.URL.RawQuery
	pairs, _ := url.ParseQuery(rawQuery) // what is malformed is left out, and is in RawQuery
	event := Event{
		Method: r.Method, Path: r.URL.Path, RawPath: rawPath, RawQuery: rawQuery,
		Headers: make(map[string]string, len(r.Header)+1), Query: make(map[string]string, len(pairs)),
		QueryPairs: pairs, Body: string(body),
	}
	for name, values := range r.Header {
		event.Headers[lower(name)] = join(values)
	}
	if r.Host != "" {
		event.Headers["host"] = r.Host
	}
	for name, values := range pairs {
		event.Query[name] = values[len(values)-1]
	}
	return event
}
