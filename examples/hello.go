// A handler in Go: the same shapes as in Python. Greets whoever `?name=` says.
package function

func Handle(e Event, c Context) (any, error) {
	name := e.Query["name"]
	if name == "" {
		name = "world"
	}
	return map[string]any{"hello": name, "function": c.FunctionID, "path": e.Path}, nil
}
