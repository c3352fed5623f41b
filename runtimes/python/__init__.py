"""The server that runs a Python handler. Standard library only, CPython 3.9 or newer."""
