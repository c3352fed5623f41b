"""Kubernetes, and nothing else: the only package that imports its client.

`Cluster` (cluster.py) has the calls, `Informer` (informer.py) what a watch keeps up to date,
kinds.py what there is, errors.py what can go wrong. Importing `libs.kube.cluster` loads the
client, which takes a second or two and 100 MB: import it only where a cluster is used.
"""
