"""`python -m bench.cluster`: the figures of a Mayfly on Kubernetes."""
