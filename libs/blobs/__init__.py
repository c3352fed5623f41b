"""S3-compatible storage, and nothing else: the only package that imports its client."""
