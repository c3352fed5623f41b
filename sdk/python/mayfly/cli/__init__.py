"""The command line: `mayfly`."""
