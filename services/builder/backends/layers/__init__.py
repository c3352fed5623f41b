"""Images made in this process, without a pod: layers put on a base and pushed."""
