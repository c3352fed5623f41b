"""What the drivers for a Kubernetes cluster share.

names.py: names, labels and selectors. container.py: what every function's container may and has.
world.py: the objects of the functions' namespace, kept up to date, applied and removed.
pods.py: what a pod says about itself. failures.py: why one does not start. logs.py: what they
write. drift.py: what somebody else changed. follower.py: all of these as notifications.
residue.py: what is there, whatever the database says.

A driver has pure builders for its manifests (`desired(workload) -> list[Manifest]`, each stamped
by `drift.stamped`), hands them to `World.apply`, waits with `World.until`, and gives its builders
to `Follower`.
"""
