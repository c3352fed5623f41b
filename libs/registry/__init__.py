"""The registry API of the OCI distribution specification."""
