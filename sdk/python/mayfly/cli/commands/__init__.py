"""One module a command, or a few that belong together.

They import what takes long (gRPC, rich) inside their functions, so that `mayfly --help` is quick.
"""
