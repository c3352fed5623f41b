"""Functions as processes of this machine: a supervisor, zygotes that fork, and sandboxes."""
